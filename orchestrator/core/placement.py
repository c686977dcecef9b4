"""Brings jobs and free workers together. Runs after every event, and looks only at what the event changed."""

from typing import TYPE_CHECKING

from orchestrator.core import commands as c
from orchestrator.core.fleet import Worker
from orchestrator.core.model import Job

if TYPE_CHECKING:
    from orchestrator.core.core import Core


class Placement:
    """Between events no free worker matches a waiting job, so only new jobs and newly free workers matter."""

    def __init__(self, core: "Core") -> None:
        self._core = core
        self._new_jobs: list[Job] = []
        self._freed: dict[str, Worker] = {}

    def queue(self, job: Job, *, first: bool = False) -> None:
        """Put a job into the queue."""
        if self._core.draining:
            self._core.lifecycle.set_aside(job)
        elif self._core.queue.push(job, self._core.now_ms, first=first):
            self._new_jobs.append(job)  # else the jobs before it found no worker, and neither does it

    def freed(self, worker: Worker) -> None:
        """A slot of this worker is free, or it can run more than before."""
        self._freed[worker.worker_id] = worker

    def run(self) -> None:
        while self._new_jobs:
            job = self._new_jobs.pop()
            if job.ticket:
                self._place(job)
        while self._freed:
            _, worker = self._freed.popitem()
            if self._core.fleet.by_id.get(worker.worker_id) is worker:
                self._fill(worker)

    def _place(self, job: Job) -> None:
        """A job that came to an empty line goes to the worker that would end it soonest."""
        worker = self._core.fleet.best_worker(job.requirement, job.cost)
        if worker is not None:
            self._assign(worker, job)
        elif job.requirement.exclusive:
            suited = [worker for worker in self._core.fleet.by_id.values() if worker.can_run(job.requirement)]
            if suited:
                self.freed(min(suited, key=lambda worker: len(worker.jobs)))

    def _fill(self, worker: Worker) -> None:
        """Give a worker jobs until its slots are taken or nothing suits it.

        If an exclusive job is next, the worker takes nothing else until it is empty: with many slots it would
        otherwise never be.
        """
        if worker.reserved and worker.jobs:
            return
        worker.reserved = False
        queue = self._core.queue
        while worker.free:
            suited = [need for need in queue.requirements(worker.worker_id) if worker.can_run(need)]
            job = queue.best(suited, worker.profile.resident, self._core.now_ms)
            if job is None:
                break
            if job.requirement.exclusive and worker.jobs:
                worker.reserved = True
                break
            self._assign(worker, job)
        self._core.fleet.refresh(worker)

    def _assign(self, worker: Worker, job: Job) -> None:
        self._core.queue.serve(job)
        self._core.lifecycle.begin_attempt(job, worker.worker_id)
        self._core.fleet.occupy(worker, job, job.attempt, self._core.now_ms)
        self._core.commands.append(c.Assign(worker.peer, job, job.attempt))
