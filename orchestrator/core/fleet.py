"""The workers as the core knows them, and where a job would end soonest.

Workers with a free slot stand in pools (same kind of device, same device id, same capability). Within a pool a job
ends equally soon on every worker that has its model loaded, and equally soon on every other, so a job looks at
pools, not at workers.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from orchestrator.core.estimates import Estimates
from orchestrator.core.events import WorkerHello
from orchestrator.core.model import Cost, Fault, Job, Peer, Requirement
from orchestrator.core.timers import Timer
from protocol.enums import ErrorCode

SIGHTINGS_MAX = 10_000
URGENT_SLOTS = 2  # beyond a worker's own, for jobs of the highest priority: they take effect between two steps
COLD_CANDIDATES = 8  # workers of a pool that are compared by free memory before a model is loaded


class Capability(NamedTuple):
    """What a worker can run; `models` None: any name, the worker will judge."""

    actions: frozenset[str]
    models: frozenset[str] | None


class Profile(NamedTuple):
    device_kind: str
    capability: Capability
    resident: frozenset[str]


class Site(NamedTuple):
    """What decides whether a job that is not pinned to a worker may run there."""

    device_id: str
    capability: Capability

    def suits(self, requirement: Requirement) -> bool:
        if requirement.device_pin not in (None, self.device_id):
            return False
        model_id, (actions, models) = requirement.model_id, self.capability
        return requirement.action in actions and (model_id is None or models is None or model_id in models)


class Sighting(NamedTuple):
    """What a worker was when it last said hello."""

    instance_id: str
    site: Site


@dataclass(slots=True)
class Slot:
    """One job that occupies a worker, by what the core knows."""

    attempt: int
    since_ms: int
    exclusive: bool
    estimate_ms: int
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
    site: Site
    draining: bool
    last_seen_ms: int
    model_nbytes: dict[str, int]  # what a model's weights take there, where it is known
    stalled: bool = False  # its connection took no more; until the next heartbeat
    quantum_age_ms: int = 0
    jobs: dict[str, Slot] = field(default_factory=dict)
    exclusive: int = 0  # jobs it holds that are to run alone
    reserved: bool = False  # emptied for an exclusive job
    turn: int = 0  # when it was last given a job, in the order of all such gifts
    pool: "Pool | None" = None  # that lists it; None while it has no room
    pools: "Pools | None" = None  # which of the fleet's it stands in
    lease: Timer | None = None

    @property
    def free(self) -> bool:
        barred = self.draining or self.stalled or self.exclusive or self.reserved
        return not barred and len(self.jobs) < self.slots

    @property
    def has_urgent_room(self) -> bool:
        """Whether it would take one more job of the highest priority. With one slot it runs one job at a time."""
        barred = self.draining or self.stalled or self.exclusive or self.reserved
        return not barred and self.slots > 1 and len(self.jobs) < self.slots + URGENT_SLOTS

    @property
    def status(self) -> str:
        return "draining" if self.draining else "ready" if self.free else "busy"

    def can_run(self, requirement: Requirement) -> bool:
        """Whether it could run such a job, were it free."""
        return requirement.worker_pin in (None, self.worker_id) and self.site.suits(requirement)

    def takes(self, requirement: Requirement, urgent: bool = False) -> bool:
        """Whether it can run such a job now."""
        if not self.can_run(requirement) or (requirement.exclusive and self.jobs):
            return False
        return self.free or (urgent and self.has_urgent_room)


class Pool:
    """Free workers of one device kind and site, the one served longest ago first."""

    __slots__ = ("_free", "_warm")

    def __init__(self) -> None:
        self._free: OrderedDict[str, Worker] = OrderedDict()
        self._warm: dict[str, OrderedDict[str, Worker]] = {}  # by loaded model

    def __len__(self) -> int:
        return len(self._free)

    def add(self, worker: Worker) -> None:
        self._free[worker.worker_id] = worker
        for model_id in worker.profile.resident:
            self._warm.setdefault(model_id, OrderedDict())[worker.worker_id] = worker

    def let_others_first(self, worker: Worker) -> None:
        self._free.move_to_end(worker.worker_id)
        for model_id in worker.profile.resident:
            self._warm[model_id].move_to_end(worker.worker_id)

    def discard(self, worker: Worker) -> None:
        del self._free[worker.worker_id]
        for model_id in worker.profile.resident:
            warm = self._warm[model_id]
            del warm[worker.worker_id]
            if not warm:
                del self._warm[model_id]

    def candidate(self, requirement: Requirement) -> tuple[Worker, bool] | None:
        """The worker of this pool that would take such a job, and whether it would have to load the model first."""
        model_id = requirement.model_id
        warm = self._free if model_id is None else self._warm.get(model_id, OrderedDict[str, Worker]())
        if requirement.exclusive:
            for workers, cold in ((warm, False), (self._free, True)):
                idle = next((worker for worker in workers.values() if not worker.jobs), None)
                if idle is not None:
                    return idle, cold
            return None
        if warm:
            return next(iter(warm.values())), False
        return max(islice(self._free.values(), COLD_CANDIDATES), key=lambda worker: worker.memory_free), True


Pools = dict[tuple[str, Site], Pool]


class Fleet:
    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._pools: Pools = {}
        self._full: Pools = {}  # of workers without a free slot that have urgent room
        self._seen: dict[str, Sighting] = {}  # every worker of this run, the latest last
        self._sites: Counter[Site] = Counter()  # of those
        self._turn = 0
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
            site=Site(hello.device_id, capability),
            draining=hello.draining,
            last_seen_ms=now_ms,
            model_nbytes=hello.model_nbytes,
        )
        self.by_id[worker.worker_id] = self.by_peer[worker.peer] = worker
        self._see(worker)
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
        pools = self._pools if worker.free else self._full if worker.has_urgent_room else None
        if pools is not worker.pools:
            self._unlist(worker)
        if pools is not None and worker.pool is None:
            worker.pools = pools
            worker.pool = pools.setdefault((worker.profile.device_kind, worker.site), Pool())
            worker.pool.add(worker)

    def _unlist(self, worker: Worker) -> None:
        pool, pools = worker.pool, worker.pools
        worker.pool = worker.pools = None
        if pool is not None and pools is not None:
            pool.discard(worker)
            if not pool:
                del pools[worker.profile.device_kind, worker.site]

    def occupy(self, worker: Worker, job: Job, attempt: int, now_ms: int) -> None:
        """The worker has one more job, and lets others of its pool go first with the next."""
        self._turn += 1
        worker.turn = self._turn
        self.hold(worker, job.job_id, Slot(attempt, now_ms, job.requirement.exclusive, job.estimate_ms))

    def hold(self, worker: Worker, job_id: str, slot: Slot) -> None:
        worker.jobs[job_id] = slot
        worker.exclusive += slot.exclusive
        self.running_ms += slot.estimate_ms
        if worker.pool is not None and worker.free:
            worker.pool.let_others_first(worker)
        else:
            self.refresh(worker)

    def vacate(self, worker: Worker, job_id: str) -> None:
        """Free the slot of a job."""
        slot = worker.jobs.pop(job_id)
        worker.exclusive -= slot.exclusive
        self.running_ms -= slot.estimate_ms
        if worker.pools is not self._pools:
            self.refresh(worker)

    def best_worker(self, requirement: Requirement, cost: Cost, urgent: bool = False) -> Worker | None:
        """The free worker that would end this job soonest; of equals, the one served longest ago. Where none is free,
        an urgent job goes to one that has room for such."""
        if requirement.worker_pin is not None:
            pinned = self.by_id.get(requirement.worker_pin)
            return pinned if pinned is not None and pinned.takes(requirement, urgent) else None
        worker = self._best_of(self._pools, requirement, cost)
        return self._best_of(self._full, requirement, cost) if worker is None and urgent else worker

    def _best_of(self, pools: Pools, requirement: Requirement, cost: Cost) -> Worker | None:
        candidates = [
            (device_kind, *candidate)
            for (device_kind, site), pool in pools.items()
            if site.suits(requirement) and (candidate := pool.candidate(requirement)) is not None
        ]
        if len(candidates) < 2:  # as in most fleets
            return candidates[0][1] if candidates else None
        return min(candidates, key=lambda candidate: self._rank(requirement, cost, *candidate))[1]

    def _rank(
        self, requirement: Requirement, cost: Cost, device_kind: str, worker: Worker, cold: bool
    ) -> tuple[int, int, int]:
        """When it would end the job; of equals the one with more free memory, if it is to load the model."""
        load_ms = self._estimates.load_ms(device_kind, requirement.model_id) if cold and requirement.model_id else 0
        ends_ms = load_ms + self._estimates.run_ms(cost, device_kind)
        return ends_ms, -worker.memory_free if load_ms else 0, worker.turn

    def _see(self, worker: Worker) -> None:
        self._forget_sighting(worker.worker_id)
        self._seen[worker.worker_id] = Sighting(worker.instance_id, worker.site)
        self._sites[worker.site] += 1
        if len(self._seen) > SIGHTINGS_MAX:
            self._forget_sighting(next(iter(self._seen)))

    def _forget_sighting(self, worker_id: str) -> None:
        sighting = self._seen.pop(worker_id, None)
        if sighting is not None:
            self._sites[sighting.site] -= 1
            if not self._sites[sighting.site]:
                del self._sites[sighting.site]

    def seen(self, worker_id: str, instance_id: str) -> bool:
        """Has this process said hello in this run before?"""
        sighting = self._seen.get(worker_id)
        return sighting is not None and sighting.instance_id == instance_id

    def check(self, requirement: Requirement) -> Fault | None:
        """Why no worker of this run could run this; None when one could, or none was here to say.

        A worker that is away counts: it may come back, and its jobs wait for it.
        """
        if not self._seen or self._somebody_suits(requirement):
            return None
        capable = {site.capability for site in self._sites if requirement.action in site.capability.actions}
        if not capable:
            return Fault(ErrorCode.NO_CAPABLE_WORKER, "No worker offers this action.")
        model_id = requirement.model_id
        if model_id is not None and not any(cap.models is None or model_id in cap.models for cap in capable):
            known = sorted({name for cap in capable for name in cap.models or ()})[:20]
            return Fault(ErrorCode.MODEL_NOT_FOUND, "No worker has this model.", {"known": known})
        return Fault(ErrorCode.NO_CAPABLE_WORKER, "The worker or device it is pinned to cannot run it.")

    def _somebody_suits(self, requirement: Requirement) -> bool:
        if requirement.worker_pin is not None:
            sighting = self._seen.get(requirement.worker_pin)
            return sighting is not None and sighting.site.suits(requirement)
        return any(site.suits(requirement) for site in self._sites)
