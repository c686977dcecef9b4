"""What happens to a job between its acceptance and its one visible end."""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.forecast import rivals
from orchestrator.core.model import (
    EVENTS_KEPT,
    Asker,
    AskerKind,
    Connection,
    EventRecord,
    Fault,
    Job,
    Outcome,
)
from orchestrator.core.states import CLOSING, STATUS, TERMINAL, WORD, IllegalTransition, JobState, Trigger, next_state
from orchestrator.core.timers import Timer
from protocol.enums import ErrorCode, EventName, Status

if TYPE_CHECKING:
    from orchestrator.core.core import Core

DRAIN_RETRY_AFTER_MS = 5_000
RECORD_NBYTES = 2_048  # what an ended job costs in memory beside its result


class Lifecycle:
    def __init__(self, core: "Core") -> None:
        self._core = core
        self._kept: deque[tuple[int, Job]] = deque()  # until when, ended jobs with their results, in this order
        self._kept_nbytes = 0
        self._accepting = 0  # jobs on their way to the disk; they will join the queue
        self._kept_timer: Timer | None = None
        self._review_timer: Timer | None = None

    # --- acceptance -------------------------------------------------------------------------------------------

    def submit(self, event: e.Submit) -> None:
        job, core = event.job, self._core
        known = core.jobs_by_request.get(job.key)
        if known is not None:
            self._attach_again(known, event)
            return
        fault = self.refusal(job, event.connection)
        if fault is not None:
            core.commands.append(c.Reject(event.connection, job.request_id, fault))
            return
        job.state = JobState.ACCEPTING if job.durable else JobState.QUEUED
        job.created_ms, job.estimate_ms = core.now_ms, core.estimates.run_ms(job.cost)
        self._enter(job)
        core.askers.attach(job, self._asker(event))
        if job.durable:
            self._accepting += 1
            core.commands.append(c.SaveJob(job))
        else:
            self.record(job, EventName.STATE, self._state_data(job))
            self._core.placement.place(job)

    def _attach_again(self, job: Job, event: e.Submit) -> None:
        """The same request once more: the same job, an answer of its own."""
        asked = event.job
        if job.fingerprint != asked.fingerprint:
            fault = Fault(ErrorCode.REQUEST_CONFLICT, details={"job_id": job.job_id})
            self._core.commands.append(c.Reject(event.connection, job.request_id, fault, job.job_id))
            return
        if asked.durable and not job.durable:
            fault = Fault(ErrorCode.REQUEST_CONFLICT, "This request_id runs with wait: true.", {"job_id": job.job_id})
            self._core.commands.append(c.Reject(event.connection, job.request_id, fault, job.job_id))
            return
        if job.payload is None and job.state not in TERMINAL:
            self._complete_orphan(job, asked)
        on_disk = asked.durable and job.state is not JobState.ACCEPTING
        listens = job.state not in TERMINAL and (bool(event.events) or not on_disk)
        if listens and not self._core.askers.room(event.connection):
            self._core.askers.refuse(event.connection, job.request_id)
            return
        if on_disk:
            self._accept(job, event.connection, job.request_id)
        elif not listens:
            self._core.commands.append(c.Answer(event.connection, job.request_id, job))
        if listens:
            asker = self._asker(event)
            asker.kind = AskerKind.STREAM if on_disk else asker.kind
            self._core.askers.attach(job, asker)

    def _complete_orphan(self, job: Job, asked: Job) -> None:
        """The job came from a worker's list; now its asker brings what it needs to run again elsewhere."""
        job.payload, job.payload_nbytes = asked.payload, asked.payload_nbytes
        self._core.payload_nbytes += asked.payload_nbytes
        job.requirement, job.cost, job.priority = asked.requirement, asked.cost, asked.priority
        job.run_timeout_ms, job.deadline_ms = asked.run_timeout_ms, asked.deadline_ms
        if self._core.sessions.refusal(job.tenant, asked.session_id) is None:
            job.session_id = asked.session_id
            self._core.sessions.job_added(job)
        self._watch_deadline(job)
        self._watch_run(job)

    def refusal(self, job: Job, connection: Connection) -> Fault | None:
        """Why a new job is not taken in; None when it is. Changes nothing."""
        core = self._core
        if core.draining:
            return Fault(ErrorCode.DRAINING, retry_after_ms=DRAIN_RETRY_AFTER_MS)
        if core.queue.size + self._accepting >= core.settings.queue_jobs_max:
            limit = core.settings.queue_jobs_max
            return Fault(ErrorCode.QUEUE_FULL, f"The queue holds {limit} jobs.", {"limit": limit}, 1000)
        if not core.askers.room(connection):
            return core.askers.no_room()
        fault = core.sessions.refusal(job.tenant, job.session_id)
        if fault is None and core.now_ms >= core.trust_fleet_from_ms:
            fault = core.fleet.check(job.requirement)
        return fault

    def _asker(self, event: e.Submit) -> Asker:
        kind = AskerKind.ACCEPT if event.job.durable else AskerKind.REPLY
        return Asker(event.connection, event.job.request_id, kind, event.events, event.probed)

    def _enter(self, job: Job) -> None:
        core = self._core
        core.jobs[job.job_id] = job
        core.jobs_by_request[job.key] = job
        core.payload_nbytes += job.payload_nbytes
        core.sessions.job_added(job)
        core.unsettled[job.job_id] = None
        self._watch_deadline(job)
        if job.queue_timeout_ms is not None and job.attempt == 0:
            fault = Fault(ErrorCode.TIMEOUT_QUEUE)
            due_ms = job.created_ms + job.queue_timeout_ms
            job.queue_timer = core.timers.add(due_ms, self.end_failed, job, fault)

    def _watch_deadline(self, job: Job) -> None:
        if job.deadline_ms is not None:
            due_ms = job.created_ms + job.deadline_ms
            fault = Fault(ErrorCode.DEADLINE_EXCEEDED)
            job.deadline_timer = self._core.timers.add(due_ms, self.end_failed, job, fault)

    def _watch_run(self, job: Job) -> None:
        if job.run_timeout_ms is not None:
            due_ms = self._core.now_ms + job.run_timeout_ms
            job.run_timer = self._core.timers.add(due_ms, self.end_failed, job, Fault(ErrorCode.TIMEOUT_RUN))

    def saved(self, event: e.Saved) -> None:
        job = self._core.jobs[event.job_id]
        self._change(job, Trigger.SAVED)
        self._accepting -= 1
        for asker in list(job.askers):
            if asker.kind is AskerKind.ACCEPT:
                self._accept(job, asker.connection, asker.request_id)
                asker.kind = AskerKind.STREAM
                if not asker.events:
                    self._core.askers.detach(job, asker)
        self.record(job, EventName.STATE, self._state_data(job))
        if job.ends_when_saved is not None:
            self._end(job, job.ends_when_saved)
        else:
            self._core.placement.place(job)

    def save_failed(self, event: e.SaveFailed) -> None:
        job = self._core.jobs[event.job_id]
        self._core.sessions.job_removed(job)
        for asker in list(job.askers):
            self._core.askers.detach(job, asker)
            if asker.kind is AskerKind.STREAM:
                continue  # it has its answer
            if event.answer is None:
                self._core.commands.append(c.Reject(asker.connection, asker.request_id, event.fault))
            else:
                self._core.commands.append(c.Reply(asker.connection, asker.request_id, event.answer))
        for timer in (job.deadline_timer, job.queue_timer):
            self._core.timers.cancel(timer)
        self._change(job, Trigger.SAVE_FAILED)
        self._accepting -= 1
        self._release(job)
        self._forget(job)

    def _accept(self, job: Job, connection: Any, request_id: str) -> None:
        start_ms = 0
        if job.state in (JobState.QUEUED, JobState.BACKOFF):
            waiting_ms, places = rivals(self._core, job)
            waiting_ms -= job.estimate_ms if job.ticket else 0
            start_ms = (waiting_ms + places.running_ms // 2) // max(1, places.count)
        measured = self._core.estimates.measured(job.cost)
        ends_ms = 0 if job.state in TERMINAL else start_ms + job.estimate_ms
        self._core.commands.append(c.Accepted(connection, request_id, job, start_ms, ends_ms, measured))

    def restore(self, event: e.Restore) -> None:
        """Go on where the last run ended: the queue in order; what was processing waits for its worker to say so.

        Until the workers had time to come back, no request is refused for want of one.
        """
        self._core.trust_fleet_from_ms = self._core.now_ms + self._core.settings.adoption_ms
        self.review_later()
        for session in event.sessions:
            self._core.sessions.restore(session)
        for job in event.jobs:
            job.estimate_ms = self._core.estimates.run_ms(job.cost)
            self._isolate(job)
            self._enter(job)
            if job.state is JobState.ADOPTING:
                due_ms = self._core.now_ms + self._core.settings.adoption_ms
                job.retry_timer = self._core.timers.add(due_ms, self.requeue, job)
            else:
                self._core.placement.queue(job)

    def rename(self, job: Job, job_id: str) -> None:
        """Let a job that has not begun go on under the id by which a worker knows it."""
        core = self._core
        del core.jobs[job.job_id]
        core.unsettled.pop(job.job_id, None)
        core.sessions.job_renamed(job, job_id)
        job.job_id = job_id
        core.jobs[job_id] = job
        core.unsettled[job_id] = None

    def keep_orphan(self, job: Job) -> None:
        """A worker holds a job this run never saw: keep it for the grace, so that its asker can find it."""
        self._enter(job)
        self._core.askers.start_grace(job)

    def review_later(self) -> None:
        """Look through the waiting jobs when the workers had time to come."""
        if self._review_timer is None:
            due_ms = self._core.now_ms + self._core.settings.adoption_ms
            self._review_timer = self._core.timers.add(due_ms, self._review_waiting)

    def _review_waiting(self) -> None:
        """End waiting jobs that no worker of this run could run; they came before a worker was here to say."""
        self._review_timer = None
        for requirement in self._core.queue.all_requirements():
            fault = self._core.fleet.check(requirement)
            if fault is not None:
                for job in self._core.queue.jobs_of(requirement):
                    self.end_failed(job, fault)

    # --- ends -------------------------------------------------------------------------------------------------

    def cancel(self, event: e.CancelJob) -> None:
        job = self._core.jobs[event.job_id]
        self.end_cancelled(job, "")
        self._core.askers.ask_cancelled(job, event.connection, event.request_id)

    def abandon(self, job: Job) -> None:
        job.grace_timer = None
        self.end_cancelled(job, "Its client went away.")

    def payload_lost(self, event: e.PayloadLost) -> None:
        self.end_failed(self._core.jobs[event.job_id], event.fault)

    def end_cancelled(self, job: Job, message: str) -> None:
        error = Fault(ErrorCode.CANCELLED, message).to_wire()
        self.end(job, Outcome(Status.CANCELLED, error=error))

    def end_failed(self, job: Job, fault: Fault) -> None:
        self.end(job, Outcome(Status.FAILED, error=fault.to_wire()))

    def end(self, job: Job, outcome: Outcome) -> None:
        """End a job unless it has ended: the first end wins. A running attempt is told to stop."""
        if job.state is JobState.ACCEPTING:
            job.ends_when_saved = job.ends_when_saved or outcome
        elif job.state is not JobState.SETTLING and job.state not in TERMINAL:
            self._core.workers.stop_attempt(job)
            self._end(job, outcome)

    def _end(self, job: Job, outcome: Outcome) -> None:
        self._core.queue.remove(job)
        for timer in (job.deadline_timer, job.queue_timer, job.run_timer, job.retry_timer, job.grace_timer):
            if timer is not None:
                self._core.timers.cancel(timer)
        outcome.worker_id = outcome.worker_id or job.worker_id
        job.outcome, job.finished_ms = outcome, self._core.now_ms
        if job.durable:
            self._change(job, Trigger.SETTLE)
            self._core.commands.append(c.SaveOutcome(job, self._terminal_record(job)))
        else:
            self._terminal_record(job)
            self._publish(job)
            self._core.commands.append(c.Audit(job))

    def _terminal_record(self, job: Job) -> EventRecord:
        assert job.outcome is not None
        data: dict[str, Any] = {
            "status": job.outcome.status.value,
            "attempt": job.attempt,
            "worker_id": job.outcome.worker_id,
        }
        if job.outcome.error:
            data["error"] = job.outcome.error
        return self._keep(job, EventName.STATE, data)

    def finish(self, job: Job, outcome: Outcome, result_from: tuple[Any, int]) -> None:
        """A worker's result is the job's outcome; it is acknowledged when it is safe."""
        job.result_from = result_from
        self._end(job, outcome)

    def settled(self, event: e.Settled) -> None:
        job = self._core.jobs[event.job_id]
        if job.state is not JobState.SETTLING:
            raise IllegalTransition(f"settled in state {job.state}")
        self._publish(job)

    def settle_failed(self, event: e.SettleFailed) -> None:
        """The disk refused the outcome: try again. Until then nobody is told, and the worker keeps the result."""
        job = self._core.jobs[event.job_id]
        due_ms = self._core.now_ms + self._core.settings.retry_backoff_ms
        job.retry_timer = self._core.timers.add(due_ms, self._save_outcome_again, job)

    def _save_outcome_again(self, job: Job) -> None:
        self._core.commands.append(c.SaveOutcome(job, job.events[-1]))

    def _publish(self, job: Job) -> None:
        """The outcome is safe: tell everybody, let the worker forget it, keep the answer for late askers."""
        assert job.outcome is not None
        self._change(job, CLOSING[job.outcome.status])
        self._core.askers.emit(job, job.events[-1])
        self._core.askers.answer_all(job)
        if job.result_from is not None:
            self._core.commands.append(c.AckResult(job.result_from[0], job.job_id, job.result_from[1]))
            job.result_from = None
        self._release(job)
        self._keep_result(job)

    def _release(self, job: Job) -> None:
        self._core.payload_nbytes -= job.payload_nbytes
        job.payload, job.payload_nbytes = None, 0
        self._core.unsettled.pop(job.job_id, None)

    def _keep_result(self, job: Job) -> None:
        assert job.outcome is not None
        for record in job.history():
            if record.frames:
                record.attachments, record.frames = (), ()  # replays carry no pictures once the job has ended
        self._kept.append((self._core.now_ms + self._core.settings.result_keep_ms, job))
        self._kept_nbytes += job.outcome.nbytes + RECORD_NBYTES
        while self._kept_nbytes > self._core.settings.result_keep_bytes_max and len(self._kept) > 1:
            self._forget_oldest()
        if self._kept_timer is None:
            self._kept_timer = self._core.timers.add(self._kept[0][0], self._forget_due)

    def _forget_due(self) -> None:
        while self._kept and self._kept[0][0] <= self._core.now_ms:
            self._forget_oldest()
        self._kept_timer = self._core.timers.add(self._kept[0][0], self._forget_due) if self._kept else None

    def _forget_oldest(self) -> None:
        _, job = self._kept.popleft()
        assert job.outcome is not None
        self._kept_nbytes -= job.outcome.nbytes + RECORD_NBYTES
        self._forget(job)

    def _forget(self, job: Job) -> None:
        del self._core.jobs[job.job_id]
        del self._core.jobs_by_request[job.key]

    def drain_waiting(self) -> None:
        """Jobs in memory that have not begun are answered `draining`; durable ones stay on disk for the next run."""
        for job_id in list(self._core.unsettled):
            job = self._core.jobs[job_id]
            if job.state in (JobState.QUEUED, JobState.BACKOFF, JobState.ADOPTING):
                self.set_aside(job)

    def set_aside(self, job: Job) -> None:
        """The orchestrator drains and this job does not run."""
        if job.durable:
            self._core.queue.remove(job)
            self._core.timers.cancel(job.retry_timer)
            self._core.unsettled.pop(job.job_id, None)
        else:
            self.end_failed(job, Fault(ErrorCode.DRAINING, retry_after_ms=DRAIN_RETRY_AFTER_MS))

    # --- between the two --------------------------------------------------------------------------------------

    def begin_attempt(self, job: Job, worker_id: str) -> None:
        """A worker gets the job for one more attempt."""
        self._change(job, Trigger.ASSIGN)
        job.attempt += 1
        self._run(job, worker_id)

    def adopt(self, job: Job, worker_id: str, attempt: int) -> None:
        """A worker holds this attempt already and goes on with it."""
        self._core.queue.remove(job)
        self._core.timers.cancel(job.retry_timer)
        self._change(job, Trigger.ADOPT)
        job.attempt = attempt
        self._run(job, worker_id)

    def _run(self, job: Job, worker_id: str) -> None:
        core = self._core
        job.worker_id, job.assigned_ms = worker_id, core.now_ms
        job.started_ms = job.started_ms or core.now_ms
        core.timers.cancel(job.queue_timer)
        self._watch_run(job)
        self.record(job, EventName.STATE, self._state_data(job))

    def give_back(self, job: Job) -> None:
        """The attempt did not take place, or ended for a reason that is not the job's: back to the front."""
        self._core.timers.cancel(job.run_timer)
        if job.payload is None:
            self.end_failed(job, Fault(ErrorCode.WORKER_LOST))
        else:
            self._to_queue(job, Trigger.RETURN)

    def lost(self, job: Job) -> None:
        """The worker vanished with it. Twice: alone on its worker from now on. Three times: poisoned."""
        job.losses += 1
        if job.losses >= self._core.settings.losses_max or job.payload is None:
            code = ErrorCode.WORKER_LOST if job.payload is None else ErrorCode.POISONED
            self.end_failed(job, Fault(code))
            return
        self._isolate(job)
        self.retry_later(job, job.losses)

    def _isolate(self, job: Job) -> None:
        if job.losses >= self._core.settings.losses_before_exclusive:
            job.requirement = job.requirement._replace(exclusive=True)

    def retry_later(self, job: Job, times: int) -> None:
        """Queue it again after a back-off that doubles."""
        settings = self._core.settings
        backoff_ms = min(settings.retry_backoff_ms_max, settings.retry_backoff_ms * 2 ** (times - 1))
        self._core.timers.cancel(job.run_timer)
        self._change(job, Trigger.LOSE)
        self.record(job, EventName.STATE, self._state_data(job))
        job.retry_timer = self._core.timers.add(self._core.now_ms + backoff_ms, self.requeue, job)
        if self._core.draining:
            self.set_aside(job)

    def requeue(self, job: Job) -> None:
        """The back-off is over, or nobody adopted it."""
        self._to_queue(job, Trigger.RETRY if job.state is JobState.BACKOFF else Trigger.RETURN)

    def _to_queue(self, job: Job, trigger: Trigger) -> None:
        self._change(job, trigger)
        self.record(job, EventName.STATE, self._state_data(job))
        self._core.placement.queue(job, first=True)

    def record(
        self, job: Job, name: EventName, data: dict[str, Any], attachments: Sequence[Any] = (), frames: Any = ()
    ) -> None:
        """Number an event, keep it, and send it to whom it may concern."""
        record = self._keep(job, name, data, attachments, frames)
        self._core.askers.emit(job, record)
        if job.durable and name in (EventName.STATE, EventName.ITEM):
            self._core.commands.append(c.Record(job, record))

    def _keep(
        self, job: Job, name: EventName, data: dict[str, Any], attachments: Sequence[Any] = (), frames: Any = ()
    ) -> EventRecord:
        job.seq += 1
        record = EventRecord(job.seq, self._core.now_ms, name, data, attachments, frames)
        if name is EventName.PROGRESS:
            job.last_progress = record
        elif name is EventName.PREVIEW:
            job.last_preview = record
        else:
            job.events.append(record)
            if len(job.events) > EVENTS_KEPT:
                del job.events[0]
        return record

    def _change(self, job: Job, trigger: Trigger) -> None:
        before = job.state
        job.state = next_state(before, trigger)
        if job.session_id is not None:
            self._core.sessions.job_changed(job, STATUS[before])

    @staticmethod
    def _state_data(job: Job) -> dict[str, Any]:
        return {"status": WORD[job.state], "attempt": job.attempt, "worker_id": job.worker_id}
