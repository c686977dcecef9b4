"""The workers as the core knows them, and where a job would end soonest.

Workers with room stand in pools (same kind of room, same kind of device, same device id, same capability). Within a
pool a job ends equally soon on every worker that has its model loaded, and equally soon on every other, so a job looks
at pools, not at workers.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import IntEnum
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


class Room(IntEnum):
    """The kinds of room that a worker can have for one more job, in the order in which a job looks for them."""

    LIGHT = 0  # a light slot, for light jobs alone
    SLOT = 1
    URGENT = 2  # beyond the slots, all of which are taken: for jobs of the highest priority


ROOMS = tuple(Room)


def rooms(requirement: Requirement, urgent: bool) -> tuple[Room, ...]:
    """Where such a job may go."""
    return ROOMS[not requirement.light : 3 if urgent else 2]


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
    light: bool = False  # it takes a light slot
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
    light_slots: int
    profile: Profile
    site: Site
    draining: bool
    last_seen_ms: int
    model_nbytes: dict[str, int]  # what a model's weights take there, where it is known
    stalled: bool = False  # its connection took no more; until the next heartbeat
    quantum_age_ms: int = 0
    jobs: dict[str, Slot] = field(default_factory=dict)
    light: int = 0  # jobs it holds that take light slots
    exclusive: int = 0  # jobs it holds that are to run alone
    reserved: bool = False  # emptied for an exclusive job
    turn: int = 0  # when it was last given a job, in the order of all such gifts
    pools: "dict[Room, Pool]" = field(default_factory=dict)  # that list it: one for each kind of room it has
    lease: Timer | None = None

    def has(self, room: Room) -> bool:
        """Whether there is such room now. With one slot it runs one job at a time, also of the most urgent."""
        if self.draining or self.stalled or self.exclusive or self.reserved:
            return False
        if room is Room.LIGHT:
            return self.light < self.light_slots
        taken = len(self.jobs) - self.light
        return taken < self.slots if room is Room.SLOT else 1 < self.slots <= taken < self.slots + URGENT_SLOTS

    @property
    def free(self) -> bool:
        """Whether a slot is free."""
        return self.has(Room.SLOT)

    @property
    def status(self) -> str:
        return "draining" if self.draining else "ready" if self.free else "busy"

    def can_run(self, requirement: Requirement) -> bool:
        """Whether it could run such a job, were it free."""
        return requirement.worker_pin in (None, self.worker_id) and self.site.suits(requirement)

    def has_room_for(self, requirement: Requirement, urgent: bool = False) -> bool:
        """Whether it can run such a job now, or as soon as it is empty if the job is to run alone."""
        return self.can_run(requirement) and any(self.has(room) for room in rooms(requirement, urgent))

    def takes(self, requirement: Requirement, urgent: bool = False) -> bool:
        """Whether it can run such a job now."""
        return not (requirement.exclusive and self.jobs) and self.has_room_for(requirement, urgent)


class Pool:
    """Workers of one device kind and site with one kind of room, the one served longest ago first."""

    __slots__ = ("_all", "_warm")

    def __init__(self) -> None:
        self._all: OrderedDict[str, Worker] = OrderedDict()
        self._warm: dict[str, OrderedDict[str, Worker]] = {}  # by loaded model

    def __len__(self) -> int:
        return len(self._all)

    def add(self, worker: Worker) -> None:
        self._all[worker.worker_id] = worker
        for model_id in worker.profile.resident:
            self._warm.setdefault(model_id, OrderedDict())[worker.worker_id] = worker

    def let_others_first(self, worker: Worker) -> None:
        self._all.move_to_end(worker.worker_id)
        for model_id in worker.profile.resident:
            self._warm[model_id].move_to_end(worker.worker_id)

    def discard(self, worker: Worker) -> None:
        del self._all[worker.worker_id]
        for model_id in worker.profile.resident:
            warm = self._warm[model_id]
            del warm[worker.worker_id]
            if not warm:
                del self._warm[model_id]

    def candidate(self, requirement: Requirement) -> tuple[Worker, bool] | None:
        """The worker of this pool that would take such a job, and whether it would have to load the model first."""
        model_id = requirement.model_id
        warm = self._all if model_id is None else self._warm.get(model_id, OrderedDict[str, Worker]())
        if requirement.exclusive:
            for workers, cold in ((warm, False), (self._all, True)):
                idle = next((worker for worker in workers.values() if not worker.jobs), None)
                if idle is not None:
                    return idle, cold
            return None
        if warm:
            return next(iter(warm.values())), False
        return max(islice(self._all.values(), COLD_CANDIDATES), key=lambda worker: worker.memory_free), True


Pools = dict[tuple[str, Site], Pool]


@dataclass(slots=True)
class Places:
    """All slots of the fleet, or all its light slots."""

    count: int = 0
    running_ms: int = 0  # predicted run time of the jobs that take them now


class Fleet:
    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._pools: dict[Room, Pools] = {room: {} for room in Room}
        self._seen: dict[str, Sighting] = {}  # every worker of this run, the latest last
        self._sites: Counter[Site] = Counter()  # of those
        self._turn = 0
        self.by_id: dict[str, Worker] = {}
        self.by_peer: dict[Peer, Worker] = {}
        self.slots, self.light_slots = Places(), Places()

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
            light_slots=hello.light_slots,
            profile=Profile(hello.device_kind, capability, hello.resident),
            site=Site(hello.device_id, capability),
            draining=hello.draining,
            last_seen_ms=now_ms,
            model_nbytes=hello.model_nbytes,
        )
        self.by_id[worker.worker_id] = self.by_peer[worker.peer] = worker
        self._see(worker)
        self.slots.count += worker.slots
        self.light_slots.count += worker.light_slots
        self.refresh(worker)
        return worker

    def remove(self, worker: Worker) -> None:
        self._unlist(worker, *worker.pools)
        del self.by_id[worker.worker_id], self.by_peer[worker.peer]
        self.slots.count -= worker.slots
        self.light_slots.count -= worker.light_slots

    def refresh(self, worker: Worker, resident: frozenset[str] | None = None) -> None:
        """List the worker under what it is now: its loaded models, and which room it has."""
        if resident is not None and resident != worker.profile.resident:
            self._unlist(worker, *worker.pools)
            worker.profile = worker.profile._replace(resident=resident)
        for room, pools in self._pools.items():
            if not worker.has(room):
                if room in worker.pools:
                    self._unlist(worker, room)
            elif room not in worker.pools:
                pool = worker.pools[room] = pools.setdefault((worker.profile.device_kind, worker.site), Pool())
                pool.add(worker)

    def extend(self, worker: Worker, models: frozenset[str]) -> None:
        """It can run these, too."""
        capability = worker.profile.capability
        capability = capability._replace(models=(capability.models or frozenset()) | models)
        self._unlist(worker, *worker.pools)
        worker.profile = worker.profile._replace(capability=capability)
        worker.site = worker.site._replace(capability=capability)
        self._see(worker)
        self.refresh(worker)

    def _unlist(self, worker: Worker, *kinds: Room) -> None:
        for room in kinds:
            pool = worker.pools.pop(room)
            pool.discard(worker)
            if not pool:
                del self._pools[room][worker.profile.device_kind, worker.site]

    def occupy(self, worker: Worker, job: Job, attempt: int, now_ms: int) -> None:
        """The worker has one more job, and lets others of its pools go first with the next."""
        self._turn += 1
        worker.turn = self._turn
        light = job.requirement.light and worker.light < worker.light_slots
        self.hold(worker, job.job_id, Slot(attempt, now_ms, job.requirement.exclusive, job.estimate_ms, light))

    def hold(self, worker: Worker, job_id: str, slot: Slot) -> None:
        worker.jobs[job_id] = slot
        worker.light += slot.light
        worker.exclusive += slot.exclusive
        self._places(slot).running_ms += slot.estimate_ms
        self.refresh(worker)
        for pool in worker.pools.values():
            pool.let_others_first(worker)

    def vacate(self, worker: Worker, job_id: str) -> None:
        """Free the place of a job."""
        slot = worker.jobs.pop(job_id)
        worker.light -= slot.light
        worker.exclusive -= slot.exclusive
        self._places(slot).running_ms -= slot.estimate_ms
        self.refresh(worker)

    def _places(self, slot: Slot) -> Places:
        return self.light_slots if slot.light else self.slots

    def best_worker(self, requirement: Requirement, cost: Cost, urgent: bool = False) -> Worker | None:
        """The worker with room that would end this job soonest; of equals, the one served longest ago."""
        if requirement.worker_pin is not None:
            pinned = self.by_id.get(requirement.worker_pin)
            return pinned if pinned is not None and pinned.takes(requirement, urgent) else None
        for room in rooms(requirement, urgent):
            worker = self._best_of(self._pools[room], requirement, cost)
            if worker is not None:
                return worker
        return None

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
