"""`job.*`: from the core where it remembers the job, else from the store."""

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator import replies
from orchestrator.actions.ask import Ask
from orchestrator.clock import rfc3339
from orchestrator.core import events as e
from orchestrator.core.model import EventRecord, Job
from orchestrator.store import JobRecord, JobSummary, queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error, send_result
from protocol.codec import unpack
from protocol.enums import EventName, Status
from protocol.errors import NotFound

if TYPE_CHECKING:
    from orchestrator.broker import Broker


def get(broker: "Broker", ask: Ask) -> dict[str, Any] | None:
    job = broker.core.job(ask.tenant, ask.data.job_id)
    if job is not None:
        return _live_info(job)
    _from_store(broker, ask, lambda record: broker.answer(ask, _stored_info(record)))
    return None


def list_jobs(broker: "Broker", ask: Ask) -> None:
    """The disk knows all but the newest; the core knows the live ones best."""
    data = ask.data

    def wanted(job: Job) -> bool:
        return (
            job.tenant == ask.tenant
            and data.status in (None, job.status)
            and data.session_id in (None, job.session_id)
            and (data.before is None or job.job_id < data.before)
        )

    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
            return
        stored = {row.job_id: _summary_info(row) for row in completion.value if row.job_id not in broker.core.jobs}
        newest_live = heapq.nlargest(data.limit, (job.job_id for job in broker.core.jobs.values() if wanted(job)))
        live = {job_id: _live_info(broker.core.jobs[job_id]) for job_id in newest_live}
        newest = sorted((stored | live).items(), reverse=True)[: data.limit]
        broker.answer(ask, {"jobs": [info for _, info in newest]})

    status = data.status.value if data.status is not None else None
    query = queries.list_jobs(ask.tenant, status, data.session_id, data.limit, data.before)
    broker.store.read(query, broker.expect(read))


def cancel(broker: "Broker", ask: Ask) -> None:
    if broker.core.job(ask.tenant, ask.data.job_id) is not None:
        broker.feed(e.CancelJob(ask.data.job_id, ask.connection, ask.request_id))
        return

    def found(record: JobRecord) -> None:
        broker.answer(ask, {"job_id": record.row.job_id, "status": record.row.status})

    _from_store(broker, ask, found)


def result(broker: "Broker", ask: Ask) -> None:
    if broker.core.job(ask.tenant, ask.data.job_id) is not None:
        broker.feed(e.AskResult(ask.data.job_id, ask.connection, ask.request_id, ask.data.wait_ms))
        return
    _from_store(broker, ask, lambda record: send_result(broker, ask.connection, ask.request_id, record))


def events(broker: "Broker", ask: Ask) -> None:
    if broker.core.job(ask.tenant, ask.data.job_id) is not None:
        broker.feed(e.FollowEvents(ask.data.job_id, ask.connection, ask.request_id, ask.data.after_seq))
        return
    _from_store(broker, ask, lambda record: _replay(broker, ask, record))


def _from_store(broker: "Broker", ask: Ask, found: Callable[[JobRecord], None]) -> None:
    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
        elif completion.value is None:
            broker.reject(ask.connection, ask.request_id, NotFound("There is no job of this id."))
        else:
            found(completion.value)

    broker.store.read(queries.job_by_id(ask.tenant, ask.data.job_id), broker.expect(read))


def _replay(broker: "Broker", ask: Ask, record: JobRecord) -> None:
    """The events on disk of a job that has ended."""

    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
            return
        rows = completion.value
        broker.answer(ask, {"oldest_seq": rows[0].seq if rows else 1, "status": record.row.status})
        for row in rows:
            if row.seq > ask.data.after_seq or row is rows[-1]:  # the end is always told
                event = EventRecord(row.seq, row.at_ms, EventName(row.event), unpack(row.data))
                broker.send_client(ask.connection, replies.event(ask.request_id, row.job_id, event))

    broker.store.read(queries.events_of(ask.tenant, record.row.job_id), broker.expect(read))


def _live_info(job: Job) -> dict[str, Any]:
    ended = job.status.terminal
    return {
        "job_id": job.job_id,
        "request_id": job.request_id,
        "action": job.requirement.action,
        "status": job.status.value,
        "session_id": job.session_id,
        "priority": job.priority,
        "attempt": job.attempt,
        "worker_id": job.worker_id,
        "progress": 1.0 if job.status is Status.COMPLETED else job.progress,
        "created_at": rfc3339(job.created_ms),
        "finished_at": rfc3339(job.finished_ms) if ended and job.finished_ms else None,
        "error": job.outcome.error if ended and job.outcome else None,
    }


def _stored_info(record: JobRecord) -> dict[str, Any]:
    row = record.row
    fields = {name: getattr(row, name) for name in JobSummary._fields if name != "result"}
    return _summary_info(JobSummary(**fields, result=record.result))


def _summary_info(row: JobSummary) -> dict[str, Any]:
    return {
        "job_id": row.job_id,
        "request_id": row.request_id,
        "action": row.action,
        "status": row.status,
        "session_id": row.session_id,
        "priority": row.priority,
        "attempt": row.attempt,
        "worker_id": row.worker_id,
        "progress": 1.0 if row.status == Status.COMPLETED.value else None,
        "created_at": rfc3339(row.created_ms),
        "finished_at": rfc3339(row.finished_ms) if row.finished_ms else None,
        "error": unpack(row.result)["error"] if row.result else None,
    }


HANDLERS = {
    "job.get": get,
    "job.list": list_jobs,
    "job.cancel": cancel,
    "job.result": result,
    "job.events": events,
}
