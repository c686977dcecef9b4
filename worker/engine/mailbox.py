"""What reaches the device thread from outside: jobs, calls to be made there, and what arrives at watched sources."""

import os
import queue
import selectors
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from instructors.task import Source

QUIET_S = 1.0  # how often quiet sources are looked at, too: one may have been stopped

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """`put` and `wake` may be called from any thread, the rest on the one that owns it."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._waiting = False
        self._watched: dict[Source, Callable[[], None]] = {}
        self._look_at = 0.0
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def put(self, item: Item) -> None:
        self._items.put(item)
        self.wake()

    def wake(self) -> None:
        """End a `wait`. One that is about to begin sees what was put before: it looks once more after it said so."""
        if self._waiting:
            with suppress(BlockingIOError):  # there are enough of them
                os.write(self._waker, b"\0")

    def take(self) -> list[Item]:
        """All that was put so far."""
        return [self._items.get() for _ in range(self._items.qsize())]

    @property
    def empty(self) -> bool:
        return self._items.empty()

    def watch(self, source: Source, arrived: Callable[[], None]) -> None:
        """Have `arrived` called by `wait` while there is something to read at `source`, and now and then without."""
        self._selector.register(source, selectors.EVENT_READ, source)
        self._watched[source] = arrived
        self._look_at = time.monotonic() + QUIET_S

    def unwatch(self, source: Source) -> None:
        """Before the source is closed."""
        self._selector.unregister(source)
        del self._watched[source]

    def wait(self, timeout_s: float) -> None:
        """Until something was put or has arrived; with 0, only what has arrived is looked for."""
        if timeout_s <= 0 and not self._watched:
            return
        self._waiting = True
        try:
            found = self._selector.select(timeout_s if self._items.empty() else 0)
        finally:
            self._waiting = False
        sources: list[Source | None] = [key.data for key, _ in found]
        if None in sources:
            os.read(self._woken, 4096)
        if (now := time.monotonic()) >= self._look_at:
            self._look_at, sources = now + QUIET_S, list(self._watched)
        for source in sources:
            if source in self._watched:  # another's call may have ended it
                self._watched[source]()
