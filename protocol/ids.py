"""Ids of requests, jobs, sessions and artifacts."""

import os
import threading
import time

COUNT_MAX = 0xFFF
NOISE_MASK, VARIANT = (1 << 62) - 1, 0b10 << 62


class _Stamps:
    """Milliseconds, and a count within each: never the same twice, and never back, whatever the clock does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ms = self._count = 0

    def next(self) -> tuple[int, int]:
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            if now_ms > self._ms:
                self._ms, self._count = now_ms, 0
            elif self._count < COUNT_MAX:
                self._count += 1
            else:
                self._ms, self._count = self._ms + 1, 0
            return self._ms, self._count


_stamps = _Stamps()


def new_id() -> str:
    """A UUIDv7: unique, and sorted by the order in which this process made it."""
    # Written out rather than through uuid.UUID, which takes longer, for an id is made for every job.
    ms, count = _stamps.next()
    noise = int.from_bytes(os.urandom(8)) & NOISE_MASK | VARIANT
    digits = f"{ms << 80 | 7 << 76 | count << 64 | noise:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
