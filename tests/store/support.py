"""A store on a real SQLite file, and rows to put into it."""

import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from orchestrator.store import Completion, EventRow, JobRow, Store


class Harness:
    """A Store whose completions can be awaited by their token."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wakes = 0
        self._woken = threading.Condition()
        self._seen: dict[Hashable, Completion] = {}
        self.store = Store(f"sqlite:///{path}", self._wake)

    def _wake(self) -> None:
        with self._woken:
            self.wakes += 1
            self._woken.notify_all()

    def wait(self, token: Hashable, timeout_s: float = 20) -> Completion:
        end = time.monotonic() + timeout_s
        with self._woken:
            while True:
                while self.store.completions:
                    completion = self.store.completions.popleft()
                    assert completion.token not in self._seen, "a token completes once"
                    self._seen[completion.token] = completion
                if token in self._seen:
                    return self._seen.pop(token)
                assert self._woken.wait(end - time.monotonic()), f"no completion for {token!r}"

    def write(self, *rows: Any) -> Any:
        """Write, wait, and return the completion's value."""
        self.store.write(rows, "write")
        self.store.flush()
        completion = self.wait("write")
        assert completion.error is None
        return completion.value

    def read(self, query: Callable[[Any], Any]) -> Any:
        self.store.read(query, "read")
        completion = self.wait("read")
        assert completion.error is None
        return completion.value


def job(job_id: str, **fields: Any) -> JobRow:
    row = JobRow(
        job_id=job_id,
        tenant="default",
        request_id=f"request-{job_id}",
        fingerprint=b"\x00\xff" * 16,
        action="system.noop",
        session_id=None,
        priority=4,
        durable=True,
        status="pending",
        attempt=0,
        losses=0,
        created_ms=1000,
        queue_timeout_ms=None,
        run_timeout_ms=60_000,
        deadline_ms=1_760_000_000_000,
        worker_pin=None,
        device_pin=None,
        worker_id=None,
        traceparent=None,
        data=b"\x80",
        attachments=b"\x90",
    )
    return row._replace(**fields)


def event(job_id: str, seq: int, **fields: Any) -> EventRow:
    return EventRow("default", job_id, seq, 1000 + seq, "state", b"\x80")._replace(**fields)
