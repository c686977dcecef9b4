"""What workers say, and what becomes of their jobs: leases, fencing, adoption, loss.

Truth about who holds what comes from the workers' own lists (hello, heartbeat). An attempt counts only if it comes
from the worker it was given to and bears the job's present number; everything else is acknowledged and dropped.
"""

from typing import TYPE_CHECKING

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.fleet import Slot, Worker
from orchestrator.core.model import Cost, Fault, Job, Peer, Requirement
from orchestrator.core.states import RECLAIMABLE, JobState
from protocol.enums import ErrorCode, EventName
from protocol.limits import PRIORITY_DEFAULT

if TYPE_CHECKING:
    from orchestrator.core.core import Core

UNREAD_MS = 250  # in which a busy shell reads all that waits in its sockets
SLOW_BYTES_PER_MS = 2_000  # of a slow link: an assign with large attachments may travel for minutes
MISSED_HEARTBEATS = 2  # that do not list a job, before its assign counts as lost on the way


class Workers:
    def __init__(self, core: "Core") -> None:
        self._core = core

    # --- coming and going -------------------------------------------------------------------------------------

    def hello(self, event: e.WorkerHello) -> None:
        known = self._core.fleet.by_id.get(event.worker_id)
        if known is not None and known.instance_id != event.instance_id:
            message = "A worker of this name is connected; choose another --name, or wait for its lease to end."
            self._core.commands.append(c.RefuseWorker(event.peer, Fault(ErrorCode.UNAVAILABLE, message)))
            self._core.commands.append(c.Probe(known.peer))
            return
        other = self._core.fleet.by_peer.get(event.peer)
        if other is not None and other is not known:
            self._lose(other)  # one connection, one worker
        new = not self._core.fleet.seen(event.worker_id, event.instance_id)
        before = self._retire(known) if known is not None else {}
        worker = self._core.fleet.add(event, self._core.now_ms)
        self._core.commands.append(c.WelcomeWorker(worker.peer, worker.worker_id))
        self._renew(worker)
        for held in event.held:
            self._claim(worker, held, orphans=new and not self._core.draining)
        for job_id, slot in before.items():
            if job_id in worker.jobs:
                continue
            if known is not None and known.peer == worker.peer:  # said twice: an assign may have crossed it
                self._core.fleet.hold(worker, job_id, slot)
            else:  # a new connection, perhaps of a process that was started again
                self._attempt_lost(worker.worker_id, job_id, slot)
        if known is not None and known.draining and not event.draining:
            self._tell_drain(worker)  # it was told on the connection that broke
        self._core.placement.freed(worker)
        self._core.lifecycle.review_later()

    def model_came(self, event: e.ModelCame) -> None:
        worker = self._core.fleet.by_id.get(event.worker_id)
        if worker is not None and worker.profile.capability.models is not None:
            self._core.fleet.extend(worker, event.models)
            self._core.placement.freed(worker)

    def heartbeat(self, event: e.WorkerHeartbeat) -> None:
        worker = self._known(event.peer)
        if worker is None:
            return
        worker.memory_free, worker.quantum_age_ms = event.memory_free, event.quantum_age_ms
        self._core.commands.append(c.AckHeartbeat(worker.peer, event.models_upto))
        if worker.draining:
            self._tell_drain(worker)  # the first may have been lost
        if worker.stalled:
            worker.stalled = False
            self._core.fleet.refresh(worker)
            self._core.placement.freed(worker)
        if event.resident != worker.profile.resident:
            self._core.fleet.refresh(worker, event.resident)
        listed = set()
        for held in event.held:
            listed.add((held.job_id, held.attempt))
            self._claim(worker, held, orphans=False)
        for job_id, slot in list(worker.jobs.items()):
            if (job_id, slot.attempt) in listed:
                slot.missed = 0
            else:
                self._not_listed(worker, job_id, slot)

    def _not_listed(self, worker: Worker, job_id: str, slot: Slot) -> None:
        """A heartbeat lacks this job: it was told to stop and has, or its assign is on its way, or that was lost."""
        job = self._current(worker, job_id, slot.attempt)
        if job is None:
            self._vacate(worker, job_id)
            return
        grace_ms = self._core.settings.assign_grace_ms + job.payload_nbytes // SLOW_BYTES_PER_MS
        if self._core.now_ms - slot.since_ms > grace_ms:
            slot.missed += 1
        if slot.missed >= MISSED_HEARTBEATS:
            self._vacate(worker, job_id)
            self._core.lifecycle.give_back(job)

    def goodbye(self, event: e.WorkerGoodbye) -> None:
        worker = self._core.fleet.by_peer.get(event.peer)
        if worker is None:
            return
        for job_id, slot in self._retire(worker).items():
            job = self._core.jobs.get(job_id)
            if job is not None and self._holds(worker.worker_id, job, slot.attempt):
                self._core.lifecycle.give_back(job)

    def unreachable(self, event: e.WorkerUnreachable) -> None:
        worker = self._core.fleet.by_peer.get(event.peer)
        if worker is not None:
            self._lose(worker)

    def drain(self, event: e.DrainWorker) -> None:
        self._tell_drain(self._core.fleet.by_id[event.worker_id])

    def _tell_drain(self, worker: Worker) -> None:
        worker.draining = True
        self._core.fleet.refresh(worker)
        self._core.commands.append(c.TellDrain(worker.peer))

    def assign_failed(self, event: e.AssignFailed) -> None:
        """The connection took no more: it is full or closing, and the worker gets nothing until it is heard again."""
        worker = self._core.fleet.by_peer.get(event.peer)
        if worker is None:
            return
        worker.stalled = True
        self._core.fleet.refresh(worker)
        job = self._current(worker, event.job_id, event.attempt)
        if job is not None:
            self._vacate(worker, job.job_id)
            self._core.lifecycle.give_back(job)

    def _renew(self, worker: Worker) -> None:
        worker.last_seen_ms = self._core.now_ms
        if worker.lease is None:
            due_ms = self._core.now_ms + self._core.settings.lease_ms
            worker.lease = self._core.timers.add(due_ms, self._lease_due, worker)

    def _lease_due(self, worker: Worker, warned: bool = False) -> None:
        """Lose a worker that was silent for a lease, but not before what it may have said has been read.

        A process that was stopped for a while finds all leases over, and all the heartbeats in its sockets.
        """
        now_ms, ends_ms = self._core.now_ms, worker.last_seen_ms + self._core.settings.lease_ms
        if ends_ms > now_ms:  # it was renewed since; one timer a lease is enough
            worker.lease = self._core.timers.add(ends_ms, self._lease_due, worker)
        elif warned:
            self._lose(worker)
        else:
            worker.lease = self._core.timers.add(now_ms + UNREAD_MS, self._lease_due, worker, True)

    def _lose(self, worker: Worker) -> None:
        for job_id, slot in self._retire(worker).items():
            self._attempt_lost(worker.worker_id, job_id, slot)

    def _retire(self, worker: Worker) -> dict[str, Slot]:
        """Forget a worker; returns what it held."""
        self._core.timers.cancel(worker.lease)
        held = dict(worker.jobs)
        for job_id in held:
            self._core.fleet.vacate(worker, job_id)
        self._core.fleet.remove(worker)
        return held

    def _attempt_lost(self, worker_id: str, job_id: str, slot: Slot) -> None:
        job = self._core.jobs.get(job_id)
        if job is not None and self._holds(worker_id, job, slot.attempt):
            self._core.commands.append(c.AttemptLost(job, slot.attempt, worker_id))
            self._core.lifecycle.lost(job)

    # --- jobs -------------------------------------------------------------------------------------------------

    def event(self, event: e.WorkerEvent) -> None:
        worker = self._known(event.peer)
        if worker is None:
            return
        job = self._core.jobs.get(event.job_id)
        if job is not None and self._reclaimable(job, event.attempt):
            self._reclaim(worker, job, event.attempt)
        elif job is None or not self._holds(worker.worker_id, job, event.attempt):
            self._fence(worker, event.job_id, event.attempt)
            return
        if event.progress is not None:
            self._core.sessions.progressed(job, event.progress)
            job.progress = event.progress
        self._core.lifecycle.record(job, EventName(event.name), event.data, event.attachments, event.frames)

    def result(self, event: e.WorkerResult) -> None:
        worker = self._known(event.peer)
        if worker is None:
            return
        job = self._core.jobs.get(event.job_id)
        slot = worker.jobs.get(event.job_id)
        if slot is not None and slot.attempt == event.attempt:
            self._vacate(worker, event.job_id)
        if job is None or not self._counts(worker, job, event):
            if job is None or not self._settles(worker, job, event.attempt):
                self._core.commands.append(c.AckResult(worker.peer, event.job_id, event.attempt))
            return
        self._end_attempt(worker, job, event)

    def _end_attempt(self, worker: Worker, job: Job, event: e.WorkerResult) -> None:
        outcome, code = event.outcome, event.code
        if job.state in RECLAIMABLE:
            self._core.lifecycle.adopt(job, worker.worker_id, event.attempt)
        job.ended_attempt = event.attempt
        if code is not None and self._passing(job, code):
            job.failures += 1
            self._core.commands.append(c.AckResult(worker.peer, job.job_id, event.attempt))
            self._core.lifecycle.retry_later(job, job.failures)
            return
        if code is None:
            kind, model_id = worker.profile.device_kind, job.requirement.model_id
            self._core.estimates.learn(kind, job.cost, model_id, event.load_ms, event.running_ms)
        outcome.worker_id, outcome.device_id = worker.worker_id, worker.device_id
        self._core.lifecycle.finish(job, outcome, (worker.peer, event.attempt))

    def _passing(self, job: Job, code: ErrorCode) -> bool:
        """Is this failure one to try again after? So is a stop that nobody asked for: a cancel that came too late."""
        passing = code.retryable or code is ErrorCode.CANCELLED
        return passing and job.payload is not None and job.failures + 1 < self._core.settings.attempts_max

    def stop_attempt(self, job: Job) -> None:
        """The job ends otherwise: its worker is to stop. Its slot is free when the worker says so."""
        worker = self._core.fleet.by_id.get(job.worker_id) if job.worker_id else None
        slot = worker.jobs.get(job.job_id) if worker else None
        if worker and slot and slot.attempt == job.attempt and job.state is JobState.PROCESSING:
            self._core.commands.append(c.CancelAttempt(worker.peer, job.job_id, job.attempt))

    # --- fencing and adoption ---------------------------------------------------------------------------------

    def _claim(self, worker: Worker, held: e.Held, *, orphans: bool) -> None:
        """The worker says that it holds this attempt: agree, adopt, or have it dropped."""
        job = self._core.jobs.get(held.job_id)
        if job is None and orphans and not held.durable:
            job = self._take_in(worker, held)
        if job is None:
            self._fence(worker, held.job_id, held.attempt)
        elif self._holds(worker.worker_id, job, held.attempt):
            if held.job_id not in worker.jobs:  # it said hello anew
                self._core.fleet.occupy(worker, job, held.attempt, self._core.now_ms)
        elif self._reclaimable(job, held.attempt):
            self._reclaim(worker, job, held.attempt)
        elif self._settles(worker, job, held.attempt):
            job.result_from = (worker.peer, held.attempt)  # it will be acknowledged on this connection
        else:
            self._fence(worker, held.job_id, held.attempt)

    def _take_in(self, worker: Worker, held: e.Held) -> Job | None:
        """A held job of the run before, which lived in memory there. None: it is not wanted."""
        twin = self._core.jobs_by_request.get((held.tenant, held.request_id))
        if twin is None:
            return self._adopt_orphan(worker, held)
        if twin.durable or twin.state is not JobState.QUEUED or twin.fingerprint != held.fingerprint:
            return None
        self._core.lifecycle.rename(twin, held.job_id)  # its client was back first; the job here has not begun
        return twin

    def _adopt_orphan(self, worker: Worker, held: e.Held) -> Job:
        job = Job(
            job_id=held.job_id,
            tenant=held.tenant,
            request_id=held.request_id,
            fingerprint=held.fingerprint,
            requirement=Requirement(held.action, light=held.light),
            cost=Cost(held.action, 1.0),
            priority=PRIORITY_DEFAULT,
            durable=False,
            state=JobState.PROCESSING,
            created_ms=self._core.now_ms,
            attempt=held.attempt,
            worker_id=worker.worker_id,
            started_ms=self._core.now_ms,
            assigned_ms=self._core.now_ms,
            seq=self._core.now_ms,  # above whatever the run before sent: at most one event a millisecond
        )
        self._core.lifecycle.keep_orphan(job)
        return job

    def _fence(self, worker: Worker, job_id: str, attempt: int) -> None:
        self._core.commands.append(c.CancelAttempt(worker.peer, job_id, attempt))

    def _holds(self, worker_id: str, job: Job, attempt: int) -> bool:
        return job.state is JobState.PROCESSING and job.worker_id == worker_id and job.attempt == attempt

    def _current(self, worker: Worker, job_id: str, attempt: int) -> Job | None:
        job = self._core.jobs.get(job_id)
        return job if job is not None and self._holds(worker.worker_id, job, attempt) else None

    def _reclaimable(self, job: Job, attempt: int) -> bool:
        """Is this an attempt that was given up although it had not ended, and that nobody has begun again?"""
        return job.state in RECLAIMABLE and attempt >= job.attempt and attempt > job.ended_attempt

    def _reclaim(self, worker: Worker, job: Job, attempt: int) -> None:
        self._core.lifecycle.adopt(job, worker.worker_id, attempt)
        self._core.fleet.occupy(worker, job, attempt, self._core.now_ms)

    def _counts(self, worker: Worker, job: Job, event: e.WorkerResult) -> bool:
        """Is this result the job's? Also one of an attempt that was given up, unless it was stopped."""
        if self._holds(worker.worker_id, job, event.attempt):
            return True
        return event.code is not ErrorCode.CANCELLED and self._reclaimable(job, event.attempt)

    def _settles(self, worker: Worker, job: Job, attempt: int) -> bool:
        """Is this attempt's result being written? It is acknowledged when the disk has it."""
        mine = job.worker_id == worker.worker_id and job.attempt == attempt
        return mine and job.state is JobState.SETTLING and job.result_from is not None

    def _vacate(self, worker: Worker, job_id: str) -> None:
        self._core.fleet.vacate(worker, job_id)
        self._core.placement.freed(worker)

    def _known(self, peer: Peer) -> Worker | None:
        """The worker behind a connection; a stranger is asked to say hello. Any message renews the lease."""
        worker = self._core.fleet.by_peer.get(peer)
        if worker is None:
            self._core.commands.append(c.AskHello(peer))
            return None
        self._renew(worker)
        return worker
