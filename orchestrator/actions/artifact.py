"""`artifact.*`"""

from typing import TYPE_CHECKING, Any

from orchestrator import replies
from orchestrator.actions.ask import Ask
from orchestrator.clock import rfc3339
from orchestrator.store import ArtifactRow, queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error
from protocol.errors import InvalidRequest, NotFound
from protocol.ids import new_id

if TYPE_CHECKING:
    from orchestrator.broker import Broker


def put(broker: "Broker", ask: Ask) -> None:
    """First the file, then the row that names it; the answer comes when both are on disk."""
    if len(ask.frames) != 1:
        raise InvalidRequest("artifact.put takes exactly one attachment.")
    entry = ask.request.attachments[0]
    broker.intake.hold(entry.nbytes)

    def stored(completion: Completion) -> None:
        broker.intake.let_go(entry.nbytes)
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
            return
        now_ms = broker.clock.now_ms()
        row = ArtifactRow(
            artifact_id, ask.tenant, entry.media_type, entry.nbytes, completion.value[0], now_ms, job_id=None
        )
        broker.store.write([row], broker.expect(lambda written: _written(broker, ask, row, written)))

    artifact_id = new_id()
    broker.artifacts.put([(artifact_id, memoryview(ask.frames[0]))], broker.expect(stored))


def _written(broker: "Broker", ask: Ask, row: ArtifactRow, completion: Completion) -> None:
    if completion.error is None:
        broker.answer(ask, _info(row))
    else:
        broker.artifacts.delete([row.artifact_id])
        broker.reject(ask.connection, ask.request_id, disk_error(completion.error))


def get(broker: "Broker", ask: Ask) -> None:
    def found(completion: Completion) -> None:
        row = completion.value
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
        elif row is None:
            broker.reject(ask.connection, ask.request_id, NotFound("There is no artifact of this id."))
        else:
            broker.artifacts.get([row.artifact_id], broker.expect(lambda read: _send(broker, ask, row, read)))

    broker.store.read(queries.artifact_by_id(ask.tenant, ask.data.artifact_id), broker.expect(found))


def _send(broker: "Broker", ask: Ask, row: ArtifactRow, completion: Completion) -> None:
    if completion.error is not None:
        broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
        return
    attachments = [{"media_type": row.media_type, "nbytes": row.nbytes}]
    header = replies.success(ask.request_id, _info(row), attachments)
    broker.send_client(ask.connection, header, completion.value)


def _info(row: ArtifactRow) -> dict[str, Any]:
    return {
        "artifact_id": row.artifact_id,
        "media_type": row.media_type,
        "nbytes": row.nbytes,
        "sha256": row.sha256.hex(),
        "created_at": rfc3339(row.created_ms),
    }


HANDLERS = {"artifact.put": put, "artifact.get": get}
