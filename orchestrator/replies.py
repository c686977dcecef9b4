"""The headers of answers and events, as the wire wants them. Plain maps: they are made for every job."""

from collections.abc import Sequence
from typing import Any

from orchestrator.core.model import EventRecord, Job
from orchestrator.core.states import TERMINAL
from protocol import PROTOCOL_VERSION
from protocol.enums import Status


def success(request_id: str | None, data: dict[str, Any], attachments: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """An answer of the orchestrator itself."""
    return response(request_id, success=True, data=data, attachments=attachments)


def failure(request_id: str | None, error: dict[str, Any], job_id: str | None = None) -> dict[str, Any]:
    return response(request_id, success=False, error=error, job_id=job_id)


def of_job(request_id: str, job: Job, now_ms: int) -> dict[str, Any]:
    """A job's final response; before its end, what is known of it."""
    outcome = job.outcome if job.state in TERMINAL else None
    if outcome is None:
        return response(request_id, success=True, job=job, status=job.status, timing=timing(job, now_ms))
    return {
        "protocol": PROTOCOL_VERSION,
        "kind": "response",
        "request_id": request_id,
        "job_id": job.job_id,
        "session_id": job.session_id,
        "success": outcome.status is Status.COMPLETED,
        "status": outcome.status,
        "data": outcome.data,
        "error": outcome.error,
        "timing": timing(job, now_ms),
        "worker_id": outcome.worker_id,
        "device_id": outcome.device_id,
        "attempt": job.attempt,
        "attachments": outcome.attachments,
    }


def timing(job: Job, now_ms: int) -> dict[str, int]:
    """Spans of a job: until its first attempt, of its last attempt, and in all."""
    ended_ms = job.finished_ms or now_ms
    started_ms = job.started_ms or ended_ms
    return {  # a job of the run before may have come later than it ends, if the machine's clock was set back
        "queued_ms": max(0, started_ms - job.created_ms),
        "running_ms": ended_ms - (job.assigned_ms or ended_ms),
        "total_ms": max(0, ended_ms - job.created_ms),
    }


def response(
    request_id: str | None,
    *,
    success: bool,
    job: Job | None = None,
    job_id: str | None = None,
    status: str | None = None,
    data: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
    timing: dict[str, int] | None = None,
    worker_id: str | None = None,
    device_id: str | None = None,
    attachments: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL_VERSION,
        "kind": "response",
        "request_id": request_id,
        "job_id": job.job_id if job else job_id,
        "session_id": job.session_id if job else None,
        "success": success,
        "status": status,
        "data": data or {},
        "error": error,
        "timing": timing,
        "worker_id": worker_id,
        "device_id": device_id,
        "attempt": job.attempt if job else None,
        "attachments": attachments,
    }


def event(request_id: str, job_id: str, record: EventRecord) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL_VERSION,
        "kind": "event",
        "request_id": request_id,
        "job_id": job_id,
        "seq": record.seq,
        "event": record.name,
        "data": record.data,
        "attachments": record.attachments if record.frames else (),
    }


def alive() -> dict[str, Any]:
    return {"protocol": PROTOCOL_VERSION, "kind": "alive"}
