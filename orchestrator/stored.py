"""Answers from the disk: results of jobs that the core has forgotten."""

from typing import TYPE_CHECKING, Any

from orchestrator import replies
from orchestrator.ports import Connection
from orchestrator.store import JobRecord
from orchestrator.store.writer import Completion
from protocol.codec import unpack
from protocol.enums import Status
from protocol.errors import AtelierError, NotFound, Unavailable

if TYPE_CHECKING:
    from orchestrator.broker import Broker


def send_result(broker: "Broker", connection: Connection, request_id: str, record: JobRecord) -> None:
    """The response the job had, from disk. A job that lived in memory left its summary only."""
    if record.result is None:
        broker.reject(connection, request_id, NotFound("The result of this job is no longer kept."))
        return
    header, artifact_ids = _stored_response(request_id, record)
    if not artifact_ids:
        broker.send_client(connection, header)
        return

    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(connection, request_id, disk_error(completion.error))
        else:
            broker.send_client(connection, header, completion.value)

    broker.artifacts.get(artifact_ids, broker.expect(read))


def _stored_response(request_id: str, record: JobRecord) -> tuple[dict[str, Any], list[str]]:
    result, stored = unpack(record.result or b""), unpack(record.result_attachments or b"\x90")
    header = replies.response(
        request_id,
        success=record.row.status == Status.COMPLETED.value,
        job_id=record.row.job_id,
        status=record.row.status,
        data=result["data"],
        error=result["error"],
        timing=result["timing"],
        worker_id=result["worker_id"],
        device_id=result["device_id"],
        attachments=[{"media_type": entry["media_type"], "nbytes": entry["nbytes"]} for entry in stored],
    )
    header["session_id"], header["attempt"] = record.row.session_id, result["attempt"]
    return header, [entry["artifact_id"] for entry in stored]


def disk_error(error: Exception) -> AtelierError:
    """What a client hears of a failing disk: a code, never the cause."""
    return error if isinstance(error, AtelierError) else Unavailable("The server's disk fails at present.")
