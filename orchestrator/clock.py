"""The orchestrator's time: epoch milliseconds that never go back, whatever becomes of the machine's clock."""

import time
from datetime import UTC, datetime


class Clock:
    def __init__(self) -> None:
        self._started_ms = time.time_ns() // 1_000_000
        self._started = time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        return self._started_ms + time.monotonic_ns() // 1_000_000 - self._started


def rfc3339(epoch_ms: int) -> str:
    """The wire's form of a time."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
