"""Deadlines in a heap. Cancelled ones are dropped lazily and swept when they outnumber the living."""

import heapq
from typing import Any

SWEEP_MIN = 1024


class Timer:
    """One deadline: at `due_ms` the core calls `callback(*args)`."""

    __slots__ = ("args", "callback", "due_ms", "order")

    def __init__(self, due_ms: int, order: int, callback: Any, args: tuple[Any, ...]) -> None:
        self.due_ms = due_ms
        self.order = order
        self.callback = callback
        self.args = args

    def __lt__(self, other: "Timer") -> bool:
        return (self.due_ms, self.order) < (other.due_ms, other.order)


class Timers:
    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._order = 0
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def add(self, due_ms: int, callback: Any, *args: Any) -> Timer:
        self._order += 1
        timer = Timer(due_ms, self._order, callback, args)
        heapq.heappush(self._heap, timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        if timer is None or timer.callback is None:
            return
        timer.callback, timer.args = None, ()
        self._cancelled += 1
        if self._cancelled > SWEEP_MIN and self._cancelled * 2 > len(self._heap):
            self._heap = [live for live in self._heap if live.callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_due(self) -> int | None:
        self._drop_cancelled()
        return self._heap[0].due_ms if self._heap else None

    def pop_due(self, now_ms: int) -> Timer | None:
        """The earliest timer that is due, removed; None when none is."""
        if not self._heap or self._heap[0].due_ms > now_ms:
            return None
        self._drop_cancelled()
        if self._heap and self._heap[0].due_ms <= now_ms:
            timer = heapq.heappop(self._heap)
            fired = Timer(timer.due_ms, timer.order, timer.callback, timer.args)
            timer.callback, timer.args = None, ()  # a later cancel of the handle must not count it
            return fired
        return None

    def _drop_cancelled(self) -> None:
        while self._heap and self._heap[0].callback is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
