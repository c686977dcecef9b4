"""The reader thread: queries that must not hold up the thread that asks."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from sqlalchemy import Connection, Engine

from orchestrator.store.writer import Completion
from protocol.errors import QueueFull

Query = Callable[[Connection], Any]
QUEUE_MAX = 10_000  # queries; a client that floods the server with questions is told to wait


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
        if self._queue.qsize() >= QUEUE_MAX:
            error = QueueFull("Too many questions wait for the database.", retry_after_ms=1000)
            self._complete(Completion(token, error=error))
        else:
            self._queue.put((query, token))

    def close(self, timeout_s: float) -> None:
        """End the thread after the queries that are queued, or leave it behind after `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            query, token = item
            self._complete(self._answer(query, token))
        if self._connection is not None:
            self._connection.close()

    def _complete(self, completion: Completion) -> None:
        self._completions.append(completion)
        self._wake()

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
