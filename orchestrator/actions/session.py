"""`session.*`"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from orchestrator.actions.ask import Ask
from orchestrator.clock import rfc3339
from orchestrator.core import events as e
from orchestrator.core.model import Session
from orchestrator.core.states import JobState
from orchestrator.persistence import session_of, steps_of
from orchestrator.store import JobStats, SessionRow, queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error
from protocol.enums import Status
from protocol.errors import InvalidRequest, NotFound, QueueFull
from protocol.ids import new_id
from protocol.schemas import ACTIONS, nearest

if TYPE_CHECKING:
    from orchestrator.broker import Broker
    from orchestrator.core.core import Core

T = TypeVar("T")
NO_SESSION = "There is no session of this id."


def create(broker: "Broker", ask: Ask) -> None:
    """Answered when the session is on disk."""
    _check_defaults(ask.data.defaults)
    if broker.core.sessions.full():
        raise QueueFull("The server holds as many sessions as it may.", retry_after_ms=60_000)
    now_ms = broker.clock.now_ms()
    session = Session(
        session_id=new_id(),
        tenant=ask.tenant,
        name=ask.data.name,
        defaults=ask.data.defaults,
        priority=ask.data.priority,
        idle_timeout_ms=ask.data.idle_timeout_ms,
        created_ms=now_ms,
        touched_ms=now_ms,
    )

    def saved(completion: Completion) -> None:
        if completion.error is None:
            broker.answer(ask, _info(broker, session, queries.NO_JOBS))
        else:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))

    broker.feed(e.OpenSession(session))
    broker.store.write([], broker.expect(saved))  # its rows commit with or after those of the session


def get(broker: "Broker", ask: Ask) -> None:
    session_id = ask.data.session_id
    row_of, stats_of = queries.session_by_id(ask.tenant, session_id), queries.job_stats(ask.tenant, [session_id])

    def told(found: tuple[SessionRow | None, dict[str, JobStats]]) -> None:
        row, stats = found
        session = broker.core.session(ask.tenant, session_id) or (session_of(row) if row is not None else None)
        if session is None:
            broker.reject(ask.connection, ask.request_id, NotFound(NO_SESSION))
        else:
            broker.answer(ask, _info(broker, session, stats[session_id]))

    _read(broker, ask, lambda connection: (row_of(connection), stats_of(connection)), told)


def list_sessions(broker: "Broker", ask: Ask) -> None:
    rows_of = queries.list_sessions(ask.tenant, ask.data.limit)
    known = [session.session_id for session in broker.core.sessions.by_id.values() if session.tenant == ask.tenant]

    def read(connection: Connection) -> tuple[list[SessionRow], dict[str, JobStats]]:
        rows = rows_of(connection)
        newest = sorted({*known, *(row.session_id for row in rows)}, reverse=True)[: ask.data.limit]
        return rows, queries.job_stats(ask.tenant, newest)(connection)

    def told(found: tuple[list[SessionRow], dict[str, JobStats]]) -> None:
        rows, stats = found
        sessions = {row.session_id: session_of(row) for row in rows} | broker.core.sessions.by_id
        newest = [_info(broker, sessions[key], stats[key]) for key in stats if key in sessions]
        broker.answer(ask, {"sessions": newest})

    _read(broker, ask, read, told)


def _read(broker: "Broker", ask: Ask, query: Callable[[Connection], T], told: Callable[[T], None]) -> None:
    """Ask the disk, which knows all jobs that have ended, as soon as it knows those that have ended by now."""

    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
        else:
            told(completion.value)

    broker.store.write([], broker.expect(lambda _: broker.store.read(query, broker.expect(read))))


def cancel(broker: "Broker", ask: Ask) -> None:
    if broker.core.session(ask.tenant, ask.data.session_id) is None:
        raise NotFound(NO_SESSION)
    broker.feed(e.CancelSession(ask.data.session_id, ask.connection, ask.request_id))


def _check_defaults(defaults: dict[str, Any]) -> None:
    """Each default must be a field of some action that workers run; its value is checked with each job."""
    known = {name for action in ACTIONS.values() if action.answered_by == "worker" for name in action.data.model_fields}
    unknown = [name for name in defaults if name not in known]
    if unknown:
        fields = [
            {"field": f"defaults.{name}"[:200], "problem": "unknown field", "nearest": nearest(name, known)}
            for name in unknown[:16]
        ]
        raise InvalidRequest("The session's defaults name unknown fields.", details={"fields": fields})


def _info(broker: "Broker", session: Session, stats: JobStats) -> dict[str, Any]:
    """The session with its counts: those of this run, or of the disk where it knows more ended jobs."""
    counts = {status.value: max(session.counts[status], stats.counts.get(status.value, 0)) for status in Status}
    total = sum(counts.values())
    ended = total - len(session.live_jobs)
    return {
        "session_id": session.session_id,
        "name": session.name,
        "status": session.status.value,
        "defaults": session.defaults,
        "priority": session.priority,
        "idle_timeout_ms": session.idle_timeout_ms,
        "created_at": rfc3339(session.created_ms),
        "jobs": counts,
        "progress": (ended + session.progress_sum) / total if total else None,
        "analytics": _analytics(broker.core, session, stats),
    }


def _analytics(core: "Core", session: Session, stats: JobStats) -> dict[str, Any]:
    """What the disk knows of the ended jobs, and the core of the others."""
    live = [job for job in (core.jobs[job_id] for job_id in session.live_jobs) if job.outcome is None]
    devices = Counter(stats.devices)
    for job in live:
        worker = core.fleet.by_id.get(job.worker_id or "") if job.state is JobState.PROCESSING else None
        if worker is not None:
            devices[worker.worker_id, worker.device_id] += 1
    return {
        "images": stats.images,
        "steps": stats.steps + sum(steps_of(job) for job in live),
        "queue_ms": _spans(stats.queue_ms),
        "run_ms": _spans(stats.run_ms),
        "devices": [
            {"worker_id": worker_id, "device_id": device_id, "jobs": jobs}
            for (worker_id, device_id), jobs in sorted(devices.items())
        ],
        "retries": stats.retries + sum(max(0, job.attempt - 1) for job in live),
        "losses": stats.losses + sum(job.losses for job in live),
        "failures": stats.failures,
    }


def _spans(found: tuple[int, int] | None) -> dict[str, int] | None:
    return None if found is None else {"p50": found[0], "p95": found[1]}


HANDLERS = {
    "session.create": create,
    "session.get": get,
    "session.list": list_sessions,
    "session.cancel": cancel,
}
