"""Two numbers in memory that a worker's parent and child share: how the parent sees that the device thread lives.

Shared memory, because a hung child can send nothing; CLOCK_MONOTONIC, because it is the same in both processes.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SLOTS = 2
_BUSY_SINCE, _LOADING = range(_SLOTS)


class Pulse:
    """`busy_since_ns`: when the device thread last reached its mailbox, 0 while it is idle. `loading`: not 0 while
    it loads or compiles. The child writes, the parent reads; each number is one aligned 8-byte store."""

    def __init__(self, fd: int) -> None:
        """`fd`: of the file behind the memory, to be handed to a child."""
        self.fd = fd
        self._values = memoryview(mmap.mmap(fd, _SLOTS * 8)).cast("q")

    @staticmethod
    def create() -> "Pulse":
        with tempfile.TemporaryFile(buffering=0) as file:
            file.truncate(_SLOTS * 8)
            return Pulse(os.dup(file.fileno()))

    def beat(self) -> None:
        """A quantum begins."""
        self._values[_BUSY_SINCE] = time.monotonic_ns()

    def idle(self) -> None:
        self._values[_BUSY_SINCE] = 0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """One long quantum, judged by the longer limit."""
        self._values[_LOADING] += 1
        self.beat()
        try:
            yield
        finally:
            self._values[_LOADING] -= 1
            self.beat()

    def reset(self) -> None:
        """A new child starts: until it says otherwise it is loading its libraries."""
        self._values[_LOADING] = 1
        self.beat()

    def ready(self) -> None:
        """The new child's device thread has begun."""
        self._values[_LOADING] = 0
        self.idle()

    @property
    def busy_since_ns(self) -> int:
        return self._values[_BUSY_SINCE]

    @property
    def is_loading(self) -> bool:
        return self._values[_LOADING] > 0

    @property
    def age_ms(self) -> int:
        """How long the present quantum has lasted; 0 while idle."""
        since = self._values[_BUSY_SINCE]
        return (time.monotonic_ns() - since) // 1_000_000 if since else 0
