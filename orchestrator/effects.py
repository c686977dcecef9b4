"""Carries the core's commands out: messages to clients and workers, writes to the store."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from orchestrator import benchmarks, replies
from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.model import Asker, EventRecord, Fault, Job, Peer
from orchestrator.core.states import TERMINAL, JobState
from orchestrator.payload import Payload
from orchestrator.persistence import audit_rows, job_rows, outcome_rows, record_rows, session_row
from orchestrator.ports import Sent
from orchestrator.store import Duplicate, Row, queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error
from protocol import PROTOCOL_VERSION
from protocol.codec import unpack
from protocol.enums import ErrorCode, EventName, Status
from protocol.ids import new_id

if TYPE_CHECKING:
    from orchestrator.broker import Broker

UNAUDITED_MAX = 50_000  # groups on their way to the disk, before the audit of jobs in memory is left out
ACKS_MAX = 1024  # in one message
DROPPABLE = (EventName.PROGRESS, EventName.PREVIEW)

log = structlog.get_logger("orchestrator")


class Effects:
    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._acks: dict[Peer, list[dict[str, Any]]] = {}
        self._audits: list[Job] = []  # jobs in memory that have ended
        self._told: list[Row] = []  # events of durable jobs
        self._moved: dict[str, Row] = {}  # what became of durable jobs, by job_id
        self._carriers: dict[type, Callable[[Any], None]] = {
            c.Answer: self._answer,
            c.Accepted: self._accepted,
            c.Reply: self._reply,
            c.Reject: self._reject,
            c.Emit: self._emit,
            c.SaveJob: self._save_job,
            c.SaveOutcome: self._save_outcome,
            c.Record: self._record,
            c.Audit: self._audit,
            c.SaveSession: self._save_session,
            c.Assign: self._assign,
            c.CancelAttempt: self._cancel_attempt,
            c.AckResult: self._ack_result,
            c.WelcomeWorker: self._welcome,
            c.RefuseWorker: self._refuse,
            c.AskHello: self._ask_hello,
            c.AckHeartbeat: self._ack_heartbeat,
            c.TellDrain: self._tell_drain,
            c.Probe: self._probe,
            c.AttemptLost: self._attempt_lost,
            c.Drained: lambda _: broker.all_drained(),
        }

    def carry_out(self, command: c.Command) -> None:
        self._carriers[type(command)](command)

    def flush_acks(self) -> None:
        """At the end of a turn: one message a worker for all its results that are safe."""
        while self._acks:
            peer, results = self._acks.popitem()
            for start in range(0, len(results), ACKS_MAX):
                self._tell(peer, {"kind": "result_ack", "results": results[start : start + ACKS_MAX]})

    def write_behind(self) -> None:
        """At the end of a turn, when all is sent: nobody waits for these."""
        if self._told:
            self._broker.store.write([*self._told, *self._moved.values()])
            self._told, self._moved = [], {}
        for job in self._audits:
            if self._broker.store.queued_writes < UNAUDITED_MAX:
                self._broker.store.write(audit_rows(job))
        self._audits.clear()

    # --- to clients -------------------------------------------------------------------------------------------

    def _answer(self, command: c.Answer) -> None:
        job = command.job
        header = replies.of_job(command.request_id, job, self._broker.clock.now_ms())
        frames = job.outcome.frames if job.outcome is not None and job.state in TERMINAL else ()
        self._broker.send_client(command.connection, header, frames)

    def _accepted(self, command: c.Accepted) -> None:
        data = {
            "job_id": command.job.job_id,
            "estimated_start_ms": command.start_ms,
            "estimated_completion_ms": command.completion_ms,
            "estimate_measured": command.measured,
        }
        status = command.job.status if command.job.status.terminal else Status.PENDING
        header = replies.response(command.request_id, success=True, job=command.job, status=status, data=data)
        self._broker.send_client(command.connection, header)

    def _reply(self, command: c.Reply) -> None:
        job = command.job
        if job is not None:
            status: Status | None = job.status
        else:  # an answer from the disk to a request that was accepted before is `accepted` once more
            status = Status.PENDING if "job_id" in command.data else None
        header = replies.response(
            command.request_id,
            success=True,
            job=job,
            job_id=command.data.get("job_id"),
            status=status,
            data=command.data,
        )
        self._broker.send_client(command.connection, header)

    def _reject(self, command: c.Reject) -> None:
        if self._broker.traces:
            log.debug("rejected", request_id=command.request_id, code=command.fault.code.value)
        header = replies.failure(command.request_id, command.fault.to_wire(), command.job_id)
        self._broker.send_client(command.connection, header)

    def _emit(self, command: c.Emit) -> None:
        record = command.record
        header = replies.event(command.request_id, command.job_id, record)
        self._broker.send_client(command.connection, header, record.frames, droppable=record.name in DROPPABLE)

    # --- to the store -----------------------------------------------------------------------------------------

    def _save_job(self, command: c.SaveJob) -> None:
        job = command.job

        def saved(completion: Completion) -> None:
            if isinstance(completion.value, Duplicate):
                self._same_request(job)
            elif completion.error is not None:
                log.error("an accepted job could not be written", job_id=job.job_id, error=str(completion.error))
                self._not_saved(job, _disk_fault())
            else:
                self._broker.intake.remember(job.key)
                self._broker.feed(e.Saved(job.job_id))

        self._broker.store.write(job_rows(job), self._broker.expect(saved))

    def _not_saved(self, job: Job, fault: Fault, answer: dict[str, Any] | None = None) -> None:
        artifact_ids = job.payload.artifact_ids
        self._broker.feed(e.SaveFailed(job.job_id, fault, answer))
        self._broker.artifacts.delete(artifact_ids)

    def _same_request(self, job: Job) -> None:
        """The request_id belongs to a job on disk that the core has forgotten: answer with that one."""

        def found(completion: Completion) -> None:
            record = completion.value
            if record is None:
                self._not_saved(job, _disk_fault())
            elif record.row.fingerprint != job.fingerprint:
                details = {"job_id": record.row.job_id}
                self._not_saved(job, Fault(ErrorCode.REQUEST_CONFLICT, details=details))
            else:
                data = {
                    "job_id": record.row.job_id,
                    "estimated_start_ms": 0,
                    "estimated_completion_ms": 0,
                    "estimate_measured": True,
                }
                listeners = [asker for asker in job.askers if asker.events]
                self._not_saved(job, _disk_fault(), data)
                for asker in listeners:
                    self._replay(asker, job.tenant, record.row.job_id)

        query = queries.job_by_request(job.tenant, job.request_id)
        self._broker.store.read(query, self._broker.expect(found))

    def _replay(self, asker: Asker, tenant: str, job_id: str) -> None:
        """To one who asked for events of a job that has ended: those that the disk has, the last one among them."""

        def read(completion: Completion) -> None:
            for row in completion.value or ():
                if row.event in asker.events:
                    record = EventRecord(row.seq, row.at_ms, EventName(row.event), unpack(row.data))
                    self._broker.send_client(asker.connection, replies.event(asker.request_id, job_id, record))

        self._broker.store.read(queries.events_of(tenant, job_id), self._broker.expect(read))

    def _save_outcome(self, command: c.SaveOutcome) -> None:
        """First the result's attachments, then the rows that name them."""
        _log_failure(command.job)
        benchmarks.keep(self._broker, command.job)
        job, outcome = command.job, command.job.outcome
        assert outcome is not None
        if not outcome.frames:
            self._write_outcome(job, command.record, [], [])
            return
        artifact_ids = [new_id() for _ in outcome.frames]

        def stored(completion: Completion) -> None:
            if completion.error is None:
                self._write_outcome(job, command.record, artifact_ids, completion.value)
            else:
                self._not_settled(job, completion.error)

        items = [(name, memoryview(frame)) for name, frame in zip(artifact_ids, outcome.frames, strict=True)]
        self._broker.artifacts.put(items, self._broker.expect(stored))

    def _write_outcome(
        self, job: Job, record: EventRecord, artifact_ids: Sequence[str], digests: Sequence[bytes]
    ) -> None:
        def settled(completion: Completion) -> None:
            if completion.error is None:
                self._broker.feed(e.Settled(job.job_id))
            else:
                self._broker.artifacts.delete(artifact_ids)
                self._not_settled(job, completion.error)

        rows = outcome_rows(job, record, artifact_ids, digests)
        self._broker.store.write(rows, self._broker.expect(settled))

    def _not_settled(self, job: Job, error: Exception) -> None:
        log.error("a result could not be written; it will be tried again", job_id=job.job_id, error=str(error))
        self._broker.feed(e.SettleFailed(job.job_id))

    def _record(self, command: c.Record) -> None:
        event, update = record_rows(command.job, command.record)
        self._told.append(event)
        self._moved[command.job.job_id] = update

    def _audit(self, command: c.Audit) -> None:
        _log_failure(command.job)
        benchmarks.keep(self._broker, command.job)
        self._audits.append(command.job)

    def _save_session(self, command: c.SaveSession) -> None:
        self._broker.store.write([session_row(command.session)])

    # --- to workers -------------------------------------------------------------------------------------------

    def _assign(self, command: c.Assign) -> None:
        payload = command.job.payload
        if payload.frames is not None:
            self._send_assign(command, payload, payload.frames)
        else:
            self._fetch_and_assign(command, payload)

    def _fetch_and_assign(self, command: c.Assign, payload: Payload) -> None:
        job = command.job

        def fetched(completion: Completion) -> None:
            current = job.state is JobState.PROCESSING and job.attempt == command.attempt
            if completion.error is not None and current:
                error = disk_error(completion.error)
                log.error("a job's attachments are gone", job_id=job.job_id, error=str(completion.error))
                self._broker.feed(e.PayloadLost(job.job_id, Fault(error.code, error.message)))
            elif current:
                self._send_assign(command, payload, completion.value)

        self._broker.artifacts.get(payload.artifact_ids, self._broker.expect(fetched))

    def _send_assign(self, command: c.Assign, payload: Payload, frames: Sequence[Any]) -> None:
        job = command.job
        header = {
            "kind": "assign",
            "job_id": job.job_id,
            "attempt": command.attempt,
            "action": payload.action,
            "data": payload.data,
            "tenant": job.tenant,
            "request_id": job.request_id,
            "fingerprint": job.fingerprint,
            "durable": job.durable,
            "priority": job.priority,
            "exclusive": job.requirement.exclusive,
            "traceparent": job.traceparent,
            "attachments": payload.attachments,
        }
        if self._broker.traces:
            log.debug("assigned", request_id=job.request_id, job_id=job.job_id, attempt=command.attempt)

        def failed(_: Sent) -> None:
            self._broker.feed(e.AssignFailed(command.peer, job.job_id, command.attempt))

        self._broker.workers.post(command.peer, header, frames, False, failed)

    def _cancel_attempt(self, command: c.CancelAttempt) -> None:
        self._tell(command.peer, {"kind": "cancel", "job_id": command.job_id, "attempt": command.attempt})

    def _ack_result(self, command: c.AckResult) -> None:
        self._acks.setdefault(command.peer, []).append({"job_id": command.job_id, "attempt": command.attempt})

    def _welcome(self, command: c.WelcomeWorker) -> None:
        log.info("worker connected", worker_id=command.worker_id)
        settings = self._broker.settings
        header = {
            "kind": "welcome",
            "protocol": PROTOCOL_VERSION,
            "worker_id": command.worker_id,
            "orchestrator_epoch": self._broker.epoch,
            "heartbeat_ms": settings.heartbeat_ms,
            "lease_ms": settings.lease_ms,
        }
        self._tell(command.peer, header)

    def _refuse(self, command: c.RefuseWorker) -> None:
        self._tell(command.peer, {"kind": "refused", "error": command.fault.to_wire()})

    def _ask_hello(self, command: c.AskHello) -> None:
        self._tell(command.peer, {"kind": "rehello", "orchestrator_epoch": self._broker.epoch})

    def _ack_heartbeat(self, command: c.AckHeartbeat) -> None:
        epoch, upto = self._broker.epoch, command.models_upto
        self._tell(command.peer, {"kind": "heartbeat_ack", "orchestrator_epoch": epoch, "models_upto": upto})

    def _tell_drain(self, command: c.TellDrain) -> None:
        self._tell(command.peer, {"kind": "drain"})

    def _probe(self, command: c.Probe) -> None:
        header = {"kind": "heartbeat_ack", "orchestrator_epoch": self._broker.epoch}

        def failed(sent: Sent) -> None:
            if sent is Sent.GONE:
                self._broker.feed(e.WorkerUnreachable(command.peer))

        self._broker.workers.post(command.peer, header, failed=failed)

    def _attempt_lost(self, command: c.AttemptLost) -> None:
        job, worker_id = command.job, command.worker_id
        log.warning(
            "attempt lost", request_id=job.request_id, job_id=job.job_id, attempt=command.attempt, worker_id=worker_id
        )

    def _tell(self, peer: Any, header: dict[str, Any]) -> None:
        """To a worker that may be gone: its lease, and what it says next, set things right."""
        self._broker.workers.post(peer, header)


def _log_failure(job: Job) -> None:
    if job.outcome is not None and job.outcome.status is Status.FAILED and job.outcome.error is not None:
        code, worker_id = job.outcome.error["code"], job.outcome.worker_id
        log.warning(
            "job failed",
            request_id=job.request_id,
            job_id=job.job_id,
            attempt=job.attempt,
            code=code,
            worker_id=worker_id,
        )


def _disk_fault() -> Fault:
    return Fault(ErrorCode.UNAVAILABLE, "The server's disk fails at present; the job was not accepted.", None, 1000)
