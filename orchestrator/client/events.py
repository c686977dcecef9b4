"""Events of jobs, and the bounded buffer between the connection's thread and their one reader."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.client.results import Blob, Image
from protocol.enums import EventName
from protocol.limits import MIB
from protocol.messages import Event

UNREAD_MAX = 1024
UNREAD_BYTES_MAX = 64 * MIB
SHED_FIRST = (EventName.PREVIEW, EventName.PROGRESS, EventName.LOG)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; `data` by kind: state {status}, progress {step, steps, eta_ms}, …"""

    kind: EventName
    data: dict[str, Any]
    job_id: str
    seq: int
    attachments: list[Blob]

    @classmethod
    def of(cls, event: Event, blobs: list[bytes]) -> "JobEvent":
        return cls(event.event, event.data, event.job_id, event.seq, Blob.of(event.attachments, blobs))

    @property
    def image(self) -> Image | None:
        """The picture of a `preview` or `item` event that carries one."""
        return Image.of(self.data, self.attachments[0]) if self.attachments else None

    @property
    def nbytes(self) -> int:
        return sum(len(blob.content) for blob in self.attachments)


class EventStream:
    """Keeps events until they are read. When the reader is slow, old previews and progress go first, then logs."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[JobEvent] = deque()
        self._nbytes = 0
        self._ended = False
        self._error: Exception | None = None
        self._waker: Callable[[], None] | None = None

    def put(self, event: JobEvent) -> None:
        with self._changed:
            self._events.append(event)
            self._nbytes += event.nbytes
            while len(self._events) > UNREAD_MAX or (self._nbytes > UNREAD_BYTES_MAX and len(self._events) > 1):
                self._shed()
            self._wake()

    def end(self, error: Exception | None = None) -> None:
        """No more events; the reader gets those that are left, then `error` or the end. The first end counts."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
                self._wake()

    def get(self, timeout_s: float | None = None) -> JobEvent | None:
        """The next event, or None at the end. Raises TimeoutError when none came in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._ready():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"No event came within {timeout_s} s.")
                self._changed.wait(left)
            return self._take()

    def get_or_wake(self, waker: Callable[[], None]) -> tuple[bool, JobEvent | None]:
        """(True, what `get` returns), or (False, None): then `waker` is called once when there is something."""
        with self._changed:
            if self._ready():
                return True, self._take()
            self._waker = waker
            return False, None

    def _ready(self) -> bool:
        return bool(self._events) or self._ended

    def _take(self) -> JobEvent | None:
        if self._events:
            event = self._events.popleft()
            self._nbytes -= event.nbytes
            return event
        if self._error is not None:
            raise self._error
        return None

    def _shed(self) -> None:
        for kinds in (SHED_FIRST[:2], SHED_FIRST[2:]):
            for index, event in enumerate(self._events):
                if event.kind in kinds:
                    del self._events[index]
                    self._nbytes -= event.nbytes
                    return
        self._nbytes -= self._events.popleft().nbytes

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waker is not None:
            self._waker()
            self._waker = None
