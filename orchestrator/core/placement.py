"""Brings jobs and free workers together. Runs after every event, and looks only at what the event changed."""

from typing import TYPE_CHECKING

from orchestrator.core import commands as c
from orchestrator.core.fleet import Room, Worker
from orchestrator.core.model import Job, Requirement
from protocol.limits import PRIORITY_MAX

if TYPE_CHECKING:
    from orchestrator.core.core import Core

NOTHING_LOADED: frozenset[str] = frozenset()


class Placement:
    """Between events no free worker matches a waiting job, so only grown lines and newly free workers matter.

    An exclusive job needs an empty worker. One with many slots would never be empty, so when such a job is next, one
    worker is reserved for its line: it takes nothing else until it is empty and that line had its turn.
    """

    def __init__(self, core: "Core") -> None:
        self._core = core
        self._grown: dict[Requirement, None] = {}  # lines that were empty before
        self._freed: dict[str, Worker] = {}
        self._reserved: dict[Requirement, Worker] = {}

    def place(self, job: Job) -> None:
        """A new job goes straight to a free worker if nothing else is to be placed: the queue costs time, too."""
        idle = not (self._grown or self._freed or self._reserved or self._core.draining)
        if idle and self._core.queue.line(job.requirement) is None:
            worker = self._core.fleet.best_worker(job.requirement, job.cost)
            if worker is not None:
                self._core.queue.pass_turn(job.tenant)
                self._give(worker, job)
                return
        self.queue(job)

    def queue(self, job: Job, *, first: bool = False) -> None:
        """Put a job into the queue."""
        if self._core.draining:
            self._core.lifecycle.set_aside(job)
        elif job.priority == PRIORITY_MAX and (worker := self._urgent_worker(job)) is not None:
            self._core.queue.pass_turn(job.tenant)
            self._give(worker, job)
        elif self._core.queue.push(job, self._core.now_ms, first=first):
            self._grown[job.requirement] = None  # else the jobs before it found no worker, and neither does it

    def _urgent_worker(self, job: Job) -> Worker | None:
        """Who takes a job of the highest priority beside those it has; earlier ones like it found none, or run."""
        return self._core.fleet.best_worker(job.requirement, job.cost, urgent=True)

    def freed(self, worker: Worker) -> None:
        """This worker has room that it had not, or can run more than before."""
        self._freed[worker.worker_id] = worker

    def run(self) -> None:
        while True:
            if self._reserved:
                self._drop_stale_reservations()
            if self._freed:
                _, worker = self._freed.popitem()
                if self._core.fleet.by_id.get(worker.worker_id) is worker:
                    self._fill(worker)
            elif self._grown:
                self._place_next()
            else:
                return

    def _place_next(self) -> None:
        """The most urgent job of the grown lines goes to the worker that would end it soonest."""
        queue = self._core.queue
        lines = [line for need in self._grown if (line := queue.line(need)) is not None]
        job = queue.best(lines, NOTHING_LOADED, self._core.now_ms)
        if job is None:
            self._grown.clear()
            return
        worker = self._core.fleet.best_worker(job.requirement, job.cost)
        if worker is not None:
            self._assign(worker, job)
            if queue.line(job.requirement) is None:
                del self._grown[job.requirement]  # it was the only one, as it is for most jobs of an idle fleet
            return
        del self._grown[job.requirement]
        if job.requirement.exclusive and job.requirement not in self._reserved:
            partly_free = [worker for worker in self._core.fleet.by_id.values() if worker.has_room_for(job.requirement)]
            if partly_free:
                self._reserve(min(partly_free, key=lambda worker: len(worker.jobs)), job.requirement)

    def _fill(self, worker: Worker) -> None:
        """Give a worker jobs until it has no more room or nothing suits it."""
        queue = self._core.queue
        if not queue.size:
            return
        if worker.reserved:
            if worker.jobs:
                return
            need = next(need for need, reserved in self._reserved.items() if reserved is worker)
            self._release(need)
            line = queue.line(need)
            assert line is not None  # or the reservation were stale
            head = queue.best([line], NOTHING_LOADED, self._core.now_ms)
            assert head is not None
            self._assign(worker, head)
        while (job := self._next_for(worker)) is not None:
            if job.requirement.exclusive and worker.jobs:
                self._reserve(worker, job.requirement)
            else:
                self._assign(worker, job)

    def _next_for(self, worker: Worker) -> Job | None:
        """The job to run next of those that it has room for."""
        queue, job = self._core.queue, None
        if worker.free or worker.has(Room.LIGHT):
            waiting = queue.lines(worker.worker_id, light_only=not worker.free)  # the others have no room
            lines = [line for line in waiting if self._open_to(line.requirement, worker)]
            job = queue.best(lines, worker.profile.resident, self._core.now_ms)
        if job is None and worker.has(Room.URGENT):  # not for what has only risen to the highest priority
            lines = [line for line in queue.lines(worker.worker_id) if worker.takes(line.requirement, urgent=True)]
            job = queue.urgent(lines, worker.profile.resident)
        return job

    def _open_to(self, requirement: Requirement, worker: Worker) -> bool:
        if requirement.exclusive and worker.jobs and requirement in self._reserved:
            return False  # another worker is being emptied for it
        return worker.can_run(requirement)

    def _reserve(self, worker: Worker, requirement: Requirement) -> None:
        self._reserved[requirement] = worker
        worker.reserved = True
        self._core.fleet.refresh(worker)

    def _release(self, requirement: Requirement) -> None:
        worker = self._reserved.pop(requirement)
        worker.reserved = False
        if self._core.fleet.by_id.get(worker.worker_id) is worker:
            self._core.fleet.refresh(worker)

    def _drop_stale_reservations(self) -> None:
        """The worker cannot take the job any more, or nothing waits there any more."""
        for requirement, worker in list(self._reserved.items()):
            gone = self._core.fleet.by_id.get(worker.worker_id) is not worker
            if gone or worker.draining or worker.stalled or self._core.queue.line(requirement) is None:
                self._release(requirement)
                if not gone:
                    self._freed[worker.worker_id] = worker
                self._grown[requirement] = None

    def _assign(self, worker: Worker, job: Job) -> None:
        self._core.queue.serve(job)
        self._give(worker, job)

    def _give(self, worker: Worker, job: Job) -> None:
        self._core.lifecycle.begin_attempt(job, worker.worker_id)
        self._core.fleet.occupy(worker, job, job.attempt, self._core.now_ms)
        self._core.commands.append(c.Assign(worker.peer, job, job.attempt))
