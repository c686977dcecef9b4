"""The workers as the core knows them, and where a job would end soonest.

Workers with a free slot are grouped by profile (device kind, capabilities, loaded models): workers of one profile
finish a job equally soon, so a job looks at profiles, not at workers.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from orchestrator.core.estimates import Estimates
from orchestrator.core.events import WorkerHello
from orchestrator.core.model import Cost, Fault, Job, Peer, Requirement
from orchestrator.core.timers import Timer
from protocol.enums import ErrorCode

SIGHTINGS_MAX = 10_000
COLD_CANDIDATES = 8  # workers of a profile that are compared by free memory before a model is loaded


class Capability(NamedTuple):
    """What a worker can run; `models` None: any name, the worker will judge."""

    actions: frozenset[str]
    models: frozenset[str] | None


class Profile(NamedTuple):
    device_kind: str
    capability: Capability
    resident: frozenset[str]


class Sighting(NamedTuple):
    """What a worker was when it last said hello."""

    instance_id: str
    device_id: str
    capability: Capability


@dataclass(slots=True)
class Slot:
    """One job that occupies a worker, by what the core knows."""

    attempt: int
    since_ms: int
    exclusive: bool
    missed: int = 0  # heartbeats in a row that did not list it


@dataclass(slots=True, eq=False)
class Worker:
    worker_id: str
    peer: Peer
    instance_id: str
    device_id: str
    memory_total: int
    memory_free: int
    slots: int
    profile: Profile
    draining: bool
    last_seen_ms: int
    stalled: bool = False  # its connection took no more; until the next heartbeat
    quantum_age_ms: int = 0
    jobs: dict[str, Slot] = field(default_factory=dict)
    reserved: bool = False  # emptied for an exclusive job
    lease: Timer | None = None

    @property
    def exclusive(self) -> bool:
        return any(slot.exclusive for slot in self.jobs.values())

    @property
    def free(self) -> bool:
        return not (self.draining or self.stalled or self.exclusive) and len(self.jobs) < self.slots

    @property
    def status(self) -> str:
        return "draining" if self.draining else "ready" if self.free else "busy"

    def can_run(self, requirement: Requirement) -> bool:
        if requirement.worker_pin not in (None, self.worker_id) or requirement.device_pin not in (None, self.device_id):
            return False
        return suits(self.profile.capability, requirement)


def suits(capability: Capability, requirement: Requirement) -> bool:
    model_id = requirement.model_id
    return requirement.action in capability.actions and (
        model_id is None or capability.models is None or model_id in capability.models
    )


class Fleet:
    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._free: dict[Profile, OrderedDict[str, Worker]] = {}
        self._seen: dict[str, Sighting] = {}  # every worker of this run, the latest last
        self.by_id: dict[str, Worker] = {}
        self.by_peer: dict[Peer, Worker] = {}
        self.slots = 0
        self.running_ms = 0  # predicted run time of everything that runs now

    def add(self, hello: WorkerHello, now_ms: int) -> Worker:
        capability = Capability(hello.actions, hello.models)
        worker = Worker(
            worker_id=hello.worker_id,
            peer=hello.peer,
            instance_id=hello.instance_id,
            device_id=hello.device_id,
            memory_total=hello.memory_total,
            memory_free=hello.memory_free,
            slots=hello.slots,
            profile=Profile(hello.device_kind, capability, hello.resident),
            draining=hello.draining,
            last_seen_ms=now_ms,
        )
        self.by_id[worker.worker_id] = self.by_peer[worker.peer] = worker
        self._seen.pop(worker.worker_id, None)
        self._seen[worker.worker_id] = Sighting(worker.instance_id, worker.device_id, capability)
        if len(self._seen) > SIGHTINGS_MAX:
            del self._seen[next(iter(self._seen))]
        self.slots += worker.slots
        self.refresh(worker)
        return worker

    def remove(self, worker: Worker) -> None:
        self._unlist(worker)
        del self.by_id[worker.worker_id], self.by_peer[worker.peer]
        self.slots -= worker.slots

    def refresh(self, worker: Worker, resident: frozenset[str] | None = None) -> None:
        """List the worker under what it is now: its loaded models, and whether a slot is free."""
        if resident is not None and resident != worker.profile.resident:
            self._unlist(worker)
            worker.profile = worker.profile._replace(resident=resident)
        listed = self._free.get(worker.profile)
        if not worker.free or worker.reserved:
            self._unlist(worker)
        elif listed is None:
            self._free[worker.profile] = OrderedDict({worker.worker_id: worker})
        elif worker.worker_id not in listed:
            listed[worker.worker_id] = worker

    def _unlist(self, worker: Worker) -> None:
        listed = self._free.get(worker.profile)
        if listed is not None and worker.worker_id in listed:
            del listed[worker.worker_id]
            if not listed:
                del self._free[worker.profile]

    def occupy(self, worker: Worker, job: Job, attempt: int, now_ms: int) -> None:
        worker.jobs[job.job_id] = Slot(attempt, now_ms, job.requirement.exclusive)
        self.running_ms += job.estimate_ms
        listed = self._free.get(worker.profile)
        if listed is not None and worker.worker_id in listed:
            listed.move_to_end(worker.worker_id)  # the next job of this profile goes to another worker
        self.refresh(worker)

    def vacate(self, worker: Worker, job_id: str, job: Job | None) -> None:
        """Free the slot of a job; `job` None when the core has forgotten it."""
        if worker.jobs.pop(job_id, None) is not None:
            self.running_ms = max(0, self.running_ms - (job.estimate_ms if job else 0))
            self.refresh(worker)

    def best_worker(self, requirement: Requirement, cost: Cost) -> Worker | None:
        """The free worker that would end this job soonest; of equals, the one served longest ago."""
        if requirement.worker_pin is not None:
            pinned = self.by_id.get(requirement.worker_pin)
            return pinned if pinned and self._takes(pinned, requirement) else None
        found: tuple[int, Worker] | None = None
        for profile, workers in self._free.items():
            if not suits(profile.capability, requirement):
                continue
            worker = self._candidate(workers, requirement, profile)
            if worker is not None:
                ends_ms = self._completion_ms(requirement, cost, profile)
                if found is None or ends_ms < found[0]:
                    found = ends_ms, worker
        return found[1] if found else None

    def _candidate(
        self, workers: OrderedDict[str, Worker], requirement: Requirement, profile: Profile
    ) -> Worker | None:
        if requirement.device_pin is None and not requirement.exclusive:
            if requirement.model_id is None or requirement.model_id in profile.resident:
                return next(iter(workers.values()))
            return max(islice(workers.values(), COLD_CANDIDATES), key=lambda worker: worker.memory_free)
        return next((worker for worker in workers.values() if self._takes(worker, requirement)), None)

    def _takes(self, worker: Worker, requirement: Requirement) -> bool:
        return worker.free and worker.can_run(requirement) and not (requirement.exclusive and worker.jobs)

    def _completion_ms(self, requirement: Requirement, cost: Cost, profile: Profile) -> int:
        model_id = requirement.model_id
        cold = model_id is not None and model_id not in profile.resident
        load_ms = self._estimates.load_ms(profile.device_kind, model_id) if cold and model_id else 0
        return load_ms + self._estimates.run_ms(cost, profile.device_kind)

    def seen(self, worker_id: str, instance_id: str) -> bool:
        """Has this process said hello in this run before?"""
        sighting = self._seen.get(worker_id)
        return sighting is not None and sighting.instance_id == instance_id

    def check(self, requirement: Requirement) -> Fault | None:
        """Why no worker of this run could run this; None when one could, or none was here to say.

        A worker that is away counts: it may come back, and its jobs wait for it.
        """
        if not self._seen:
            return None
        capable = {sight.capability for sight in self._seen.values() if requirement.action in sight.capability.actions}
        if not capable:
            return Fault(ErrorCode.NO_CAPABLE_WORKER, "No worker offers this action.")
        model_id = requirement.model_id
        if model_id is not None and not any(cap.models is None or model_id in cap.models for cap in capable):
            known = sorted({name for cap in capable for name in cap.models or ()})[:20]
            return Fault(ErrorCode.MODEL_NOT_FOUND, "No worker has this model.", {"known": known})
        if not any(self._pins_fit(name, sight, requirement) for name, sight in self._seen.items()):
            return Fault(ErrorCode.NO_CAPABLE_WORKER, "The worker or device it is pinned to cannot run it.")
        return None

    @staticmethod
    def _pins_fit(worker_id: str, sighting: Sighting, requirement: Requirement) -> bool:
        return (
            requirement.worker_pin in (None, worker_id)
            and requirement.device_pin in (None, sighting.device_id)
            and suits(sighting.capability, requirement)
        )
