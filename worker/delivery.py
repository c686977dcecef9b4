"""From the device thread to the socket thread, by way of the encoder thread where bytes are to be made."""

import os
import queue
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from instructors.task import Blob
from protocol.codec import Buffer, pack
from protocol.enums import ErrorCode
from protocol.errors import error_map
from protocol.limits import DEFAULT_LIMITS
from protocol.messages import Attachment, WorkerEvent, WorkerResult
from worker.jobs import Job
from worker.logs import current_job

ENCODING_MAX = 8  # messages waiting for the encoder; then the device thread waits

log = structlog.get_logger("worker.delivery")


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message about a job, ready to be sent: the packed header and the attachments."""

    job: Job
    is_result: bool
    frames: list[Buffer]


class Outbox:
    """A queue into the socket thread, with a pipe that wakes its poller."""

    def __init__(self) -> None:
        self._items: deque[Outgoing] = deque()
        self.awake = False  # a byte is in the pipe, or about to be
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    @property
    def fd(self) -> int:
        """Readable when there is something to take."""
        return self._reader

    def put(self, item: Outgoing) -> None:
        self._items.append(item)
        if not self.awake:
            self.wake()

    def wake(self) -> None:
        self.awake = True
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Before `take`, when `fd` is readable or `awake`."""
        with suppress(BlockingIOError):  # the byte is still to come, and wakes for nothing
            os.read(self._reader, 4096)
        self.awake = False  # what is put from now on writes a new byte

    def take(self) -> list[Outgoing]:
        """All that is there, oldest first. Never blocks."""
        items: list[Outgoing] = []
        while self._items:
            items.append(self._items.popleft())
        return items


class Delivery(threading.Thread):
    """The encoder thread, and the way round it for messages whose bytes are at hand."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(name="encoder", daemon=True)
        self._outbox = outbox
        self._queue: queue.Queue[tuple[Job, WorkerEvent | WorkerResult, Sequence[Blob]]] = queue.Queue(ENCODING_MAX)

    def send(self, job: Job, message: WorkerEvent | WorkerResult, blobs: Sequence[Blob]) -> None:
        """Called on the device thread. A job's messages keep their order."""
        if job.encodes or any(callable(blob.data) for blob in blobs):
            job.encodes = True
            self._queue.put((job, message, blobs))
        else:
            self._put(job, message, blobs)

    def run(self) -> None:
        while True:
            job, message, blobs = self._queue.get()
            current_job.set((job.assign.request_id, job.assign.job_id))
            self._put(job, message, blobs)

    def _put(self, job: Job, message: WorkerEvent | WorkerResult, blobs: Sequence[Blob]) -> None:
        try:
            self._outbox.put(_outgoing(job, message, blobs))
        except Exception:  # a picture of no usual kind, a text that is none
            log.exception("encoding failed", kind=message.kind)
            if isinstance(message, WorkerResult):
                self._outbox.put(_outgoing(job, _failed(message, ErrorCode.INTERNAL), ()))


def cancelled_result(job: Job) -> list[Buffer]:
    """The frames of the result of a job that was stopped before it began."""
    job_id, attempt = job.key
    empty = WorkerResult(job_id=job_id, attempt=attempt, success=False)
    return _outgoing(job, _failed(empty, ErrorCode.CANCELLED), ()).frames


def _outgoing(job: Job, message: WorkerEvent | WorkerResult, blobs: Sequence[Blob]) -> Outgoing:
    """Pack a message; a result that breaks the wire's limits becomes the error that says so."""
    is_result = isinstance(message, WorkerResult)
    frames: list[Buffer] = [blob.data() if callable(blob.data) else blob.data for blob in blobs]
    if blobs:
        attachments = [
            Attachment(media_type=blob.media_type, nbytes=memoryview(frame).nbytes)
            for blob, frame in zip(blobs, frames, strict=True)
        ]
        message = message.model_copy(update={"attachments": attachments})
    header = pack(message.to_wire())
    if is_result and not _within_limits(header, frames):
        header, frames = pack(_failed(message, ErrorCode.PAYLOAD_TOO_LARGE).to_wire()), []
    return Outgoing(job, is_result, [header, *frames])


def _within_limits(header: bytes, frames: Sequence[Buffer]) -> bool:
    sizes = [memoryview(frame).nbytes for frame in frames]
    limits = DEFAULT_LIMITS
    return (
        len(header) <= limits.header_bytes_max
        and len(sizes) <= limits.attachments_max
        and sum(sizes) <= limits.attachment_bytes_max
        and max(sizes, default=0) <= limits.frame_bytes_max
    )


def _failed(result: WorkerResult | WorkerEvent, code: ErrorCode) -> WorkerResult:
    return WorkerResult(job_id=result.job_id, attempt=result.attempt, success=False, error=error_map(code))
