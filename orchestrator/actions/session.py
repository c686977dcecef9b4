"""`session.*`"""

from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.clock import rfc3339
from orchestrator.core import events as e
from orchestrator.core.model import Session
from orchestrator.persistence import session_of
from orchestrator.store import queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error
from protocol.enums import Status
from protocol.errors import InvalidRequest, NotFound, QueueFull
from protocol.ids import new_id
from protocol.schemas import ACTIONS, nearest

if TYPE_CHECKING:
    from orchestrator.broker import Broker

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
            broker.answer(ask, _info(session))
        else:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))

    broker.feed(e.OpenSession(session))
    broker.store.write([], broker.expect(saved))  # its rows commit with or after those of the session


def get(broker: "Broker", ask: Ask) -> None:
    """Counts include jobs that only the disk remembers, so the answer comes from there."""
    session_id = ask.data.session_id

    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
            return
        row, counts = completion.value
        session = broker.core.session(ask.tenant, session_id) or (session_of(row) if row is not None else None)
        if session is None:
            broker.reject(ask.connection, ask.request_id, NotFound(NO_SESSION))
        else:
            broker.answer(ask, _info(session, counts))

    row_of, counts_of = queries.session_by_id(ask.tenant, session_id), queries.session_counts(ask.tenant, session_id)
    broker.store.read(lambda connection: (row_of(connection), counts_of(connection)), broker.expect(read))


def list_sessions(broker: "Broker", ask: Ask) -> None:
    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
            return
        stored = {row.session_id: session_of(row) for row in completion.value}
        live = {session.session_id: session for session in broker.core.sessions.by_id.values()}
        mine = {key: session for key, session in (stored | live).items() if session.tenant == ask.tenant}
        newest = sorted(mine.values(), key=lambda session: session.session_id, reverse=True)
        broker.answer(ask, {"sessions": [_info(session) for session in newest[: ask.data.limit]]})

    broker.store.read(queries.list_sessions(ask.tenant, ask.data.limit), broker.expect(read))


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


def _info(session: Session, stored: dict[str, int] | None = None) -> dict[str, Any]:
    """The session with its counts: those of this run, or of the disk where it knows more ended jobs."""
    counts = {status.value: session.counts[status] for status in Status}
    for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        counts[status.value] = max(counts[status.value], (stored or {}).get(status.value, 0))
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
    }


HANDLERS = {
    "session.create": create,
    "session.get": get,
    "session.list": list_sessions,
    "session.cancel": cancel,
}
