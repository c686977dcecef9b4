"""Ids of requests, jobs, sessions and artifacts."""

import os
import threading
import time

VARIANTS = "89ab"
COUNT_MAX = 0xFFF


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
    stamp, noise = f"{ms:012x}", os.urandom(8).hex()
    variant = VARIANTS[int(noise[0], 16) % 4]
    return f"{stamp[:8]}-{stamp[8:]}-7{count:03x}-{variant}{noise[1:4]}-{noise[4:]}"
