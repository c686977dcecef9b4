"""Between the core's records and the store's rows, both ways."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from orchestrator.core.model import EventRecord, Job, Session, SessionStatus
from orchestrator.core.states import JobState
from orchestrator.payload import Payload, cost_of, requirement_of
from orchestrator.replies import timing
from orchestrator.store import ArtifactRow, EventRow, JobRow, JobUpdate, Outcome, Recovered, Row, SessionRow
from protocol.codec import pack, unpack
from protocol.enums import EventName, Status
from protocol.limits import INT_MAX

SEQ_GAP = 10_000  # above the highest stored seq: events that never reached the disk have been sent under these


AUDITED = (EventName.STATE, EventName.ITEM)
NO_DATA, NO_ATTACHMENTS = pack({}), pack([])


def stored_attachments(attachments: Sequence[dict[str, Any]], artifact_ids: Sequence[str]) -> bytes:
    return pack([{**entry, "artifact_id": name} for entry, name in zip(attachments, artifact_ids, strict=True)])


def job_rows(job: Job) -> list[Row]:
    """A durable job at its acceptance, and its attachments."""
    payload: Payload = job.payload
    return [_job_row(job, payload), *_artifact_rows(job, payload.attachments, payload.artifact_ids, payload.digests)]


def _job_row(job: Job, payload: Payload | None) -> JobRow:
    data, attachments = NO_DATA, NO_ATTACHMENTS
    if payload is not None:
        data, attachments = pack(payload.data), stored_attachments(payload.attachments, payload.artifact_ids)
    need = job.requirement
    return JobRow(  # without names, which would cost more than the row
        job.job_id,
        job.tenant,
        job.request_id,
        job.fingerprint,
        need.action,
        job.session_id,
        job.priority,
        job.durable,
        job.status.value,
        job.attempt,
        job.losses,
        job.created_ms,
        job.queue_timeout_ms,
        job.run_timeout_ms,
        job.deadline_ms,
        need.worker_pin,
        need.device_pin,
        job.worker_id,
        job.traceparent,
        data,
        attachments,
        job.finished_ms,
        *(() if job.finished_ms is None else _facts(job)),
    )


def _facts(job: Job) -> tuple[int | None, int | None, str | None, int, int, str | None]:
    """The last fields of an ended job's row: started_ms, running_ms, device_id, images, steps, error_code."""
    outcome = job.outcome
    assert outcome is not None
    assert job.finished_ms is not None
    running_ms = None if job.assigned_ms is None else max(0, job.finished_ms - job.assigned_ms)
    pictures = outcome.data.get("images")
    images = len(pictures) if isinstance(pictures, list) else 0
    code = outcome.error["code"] if outcome.error and outcome.status is Status.FAILED else None
    return job.started_ms, running_ms, outcome.device_id, images, steps_of(job), code


def steps_of(job: Job) -> int:
    """Denoising steps of all its pictures, as its last progress event tells."""
    told = job.last_progress.data if job.last_progress is not None else {}
    steps, images = told.get("steps"), told.get("images", 1)
    if not isinstance(steps, int) or not isinstance(images, int):
        return 0
    completed = job.outcome is not None and job.outcome.status is Status.COMPLETED
    done = round((1.0 if completed else job.progress) * steps * images)
    return min(max(0, done), INT_MAX)  # what the database can take, whatever a worker said


def _artifact_rows(
    job: Job, attachments: Sequence[dict[str, Any]], artifact_ids: Sequence[str], digests: Sequence[bytes]
) -> list[ArtifactRow]:
    return [
        ArtifactRow(
            name,
            job.tenant,
            entry["media_type"],
            entry["nbytes"],
            digest,
            job.finished_ms or job.created_ms,
            job.job_id,
        )
        for name, entry, digest in zip(artifact_ids, attachments, digests, strict=True)
    ]


def event_row(job: Job, record: EventRecord) -> EventRow:
    data = record.data
    if record.name is EventName.STATE and "error" not in data:
        packed = _packed_state(data["status"], data["attempt"], data["worker_id"])
        return EventRow(job.tenant, job.job_id, record.seq, record.at_ms, "state", packed)
    return EventRow(job.tenant, job.job_id, record.seq, record.at_ms, record.name.value, pack(data))


@lru_cache(maxsize=4096)
def _packed_state(status: str, attempt: int, worker_id: str | None) -> bytes:
    """The data of most events: a few different ones for very many jobs."""
    return pack({"status": status, "attempt": attempt, "worker_id": worker_id})


def record_rows(job: Job, record: EventRecord) -> list[Row]:
    """Written behind: an event of a durable job, and where the job now is."""
    status = job.status.value
    update = JobUpdate(job.job_id, job.tenant, status, job.attempt, job.losses, job.worker_id, job.started_ms)
    return [event_row(job, record), update]


def outcome_rows(job: Job, record: EventRecord, artifact_ids: Sequence[str], digests: Sequence[bytes]) -> list[Row]:
    """A durable job's end, its terminal event and the attachments of its result."""
    outcome = job.outcome
    assert outcome is not None
    assert job.finished_ms is not None
    result = {
        "data": outcome.data,
        "error": outcome.error,
        "timing": timing(job, job.finished_ms),
        "worker_id": outcome.worker_id,
        "device_id": outcome.device_id,
        "attempt": job.attempt,
    }
    row = Outcome(
        job.job_id,
        job.tenant,
        outcome.status.value,
        job.attempt,
        job.losses,
        job.finished_ms,
        outcome.worker_id,
        pack(result),
        stored_attachments(outcome.attachments, artifact_ids),
        *_facts(job),
    )
    return [row, event_row(job, record), *_artifact_rows(job, outcome.attachments, artifact_ids, digests)]


def audit_rows(job: Job) -> list[Row]:
    """Written behind: the summary and events of a job that lived in memory. Its prompt and result are not kept."""
    told = [event_row(job, record) for record in job.events if record.name in AUDITED]
    return [_job_row(job, None), *told]


def session_row(session: Session) -> SessionRow:
    return SessionRow(
        session_id=session.session_id,
        tenant=session.tenant,
        name=session.name,
        status=session.status.value,
        defaults=pack(session.defaults),
        priority=session.priority,
        idle_timeout_ms=session.idle_timeout_ms,
        created_ms=session.created_ms,
        touched_ms=session.touched_ms,
    )


def session_of(row: SessionRow) -> Session:
    return Session(
        session_id=row.session_id,
        tenant=row.tenant,
        name=row.name,
        defaults=unpack(row.defaults),
        priority=row.priority,
        idle_timeout_ms=row.idle_timeout_ms,
        created_ms=row.created_ms,
        touched_ms=row.touched_ms,
        status=SessionStatus(row.status),
    )


def jobs_of(recovered: Recovered) -> list[Job]:
    """The jobs a restarted orchestrator goes on with."""
    return [_job_of(row, recovered.max_seq.get(row.job_id, 0)) for row in recovered.jobs]


def _job_of(row: JobRow, max_seq: int) -> Job:
    data, stored = unpack(row.data), unpack(row.attachments)
    attachments = [{"media_type": entry["media_type"], "nbytes": entry["nbytes"]} for entry in stored]
    names = [entry["artifact_id"] for entry in stored]
    processing = row.status == Status.PROCESSING.value
    return Job(
        job_id=row.job_id,
        tenant=row.tenant,
        request_id=row.request_id,
        fingerprint=row.fingerprint,
        requirement=requirement_of(row.action, data, row.worker_pin, row.device_pin),
        cost=cost_of(row.action, data),
        priority=row.priority,
        durable=True,
        state=JobState.ADOPTING if processing else JobState.QUEUED,
        created_ms=row.created_ms,
        session_id=row.session_id,
        queue_timeout_ms=row.queue_timeout_ms,
        run_timeout_ms=row.run_timeout_ms,
        deadline_ms=row.deadline_ms,
        payload=Payload(row.action, data, attachments, None if names else (), names),
        traceparent=row.traceparent,
        attempt=row.attempt,
        losses=row.losses,
        worker_id=row.worker_id,
        started_ms=row.started_ms,
        seq=max_seq + SEQ_GAP,
    )
