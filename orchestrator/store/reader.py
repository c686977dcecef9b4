"""The reader thread: queries that must not hold up the thread that asks."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from sqlalchemy import Connection, Engine

from orchestrator.store.writer import Completion

Query = Callable[[Connection], Any]


class Reader:
    """Owns the reading connection. Sees what was committed when a query begins."""

    def __init__(self, engine: Engine, completions: deque[Completion], wake: Callable[[], None]) -> None:
        self._engine = engine
        self._completions = completions
        self._wake = wake
        self._queue: queue.SimpleQueue[tuple[Query, Hashable] | None] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="store-reader", daemon=True)
        self._thread.start()

    def put(self, query: Query, token: Hashable) -> None:
        self._queue.put((query, token))

    def close(self, timeout_s: float) -> None:
        """End the thread after the queries that are queued, or leave it behind after `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            query, token = item
            self._completions.append(self._answer(query, token))
            self._wake()
        if self._connection is not None:
            self._connection.close()

    def _answer(self, query: Query, token: Hashable) -> Completion:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            with self._connection.begin():
                return Completion(token, query(self._connection))
        except Exception as error:  # the asker is told; the thread goes on with a fresh connection
            broken, self._connection = self._connection, None
            if broken is not None:
                broken.invalidate()
                broken.close()
            return Completion(token, error=error)
