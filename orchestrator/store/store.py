"""The store: what must survive a restart. The threads behind it keep the caller from ever waiting for the disk."""

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from orchestrator.store import queries
from orchestrator.store.engine import lock, migrate, open_engine
from orchestrator.store.reader import Reader
from orchestrator.store.rows import Recovered, Row
from orchestrator.store.writer import Completion, Write, Writer

T = TypeVar("T")


class Store:
    """Jobs, their events, sessions and artifact records in one database.

    `write`, `flush`, `read` and `close` are for one thread; `completions` is filled by the store's own threads, which
    call `wake` (from those threads) after every append. `wake` must not raise.
    """

    def __init__(self, url: str, wake: Callable[[], None]) -> None:
        """Open and migrate the database at `url` (sqlite:///<path>); its folder must exist.

        Raises ValueError for another kind of database, StoreInUse while another process has it open, StoreTooNew
        where a newer version made it, OSError and the database's own errors where it cannot be opened.
        """
        self._engine = open_engine(url)
        self._lock = lock(self._engine)
        self.completions: deque[Completion] = deque()
        try:
            with self._engine.begin() as connection:
                migrate(connection)
        except BaseException:
            os.close(self._lock)
            raise
        self._writer = Writer(self._engine, self.completions, wake)
        self._reader = Reader(self._engine, self.completions, wake)
        self._closed = False

    @property
    def queued_writes(self) -> int:
        """Calls of `write` whose rows are not on the disk yet; the caller bounds it."""
        return self._writer.queued

    def write(self, rows: Sequence[Row], token: Hashable | None = None) -> None:
        """Queue rows that commit together, after all that was queued before.

        With a token, a Completion tells that they are on the disk (its value a Duplicate or Expired where there is
        one), or the error: then nothing of this call was written. Without one, they are retried until they are.
        """
        if self._closed:
            raise RuntimeError("The store is closed.")
        self._writer.put(Write(rows, token))

    def flush(self) -> None:
        """Have the rows written that came with a token, and all before them. Call it when no more come for now."""
        self._writer.flush()

    def read(self, query: Callable[[Connection], object], token: Hashable) -> None:
        """Queue a query (see queries.py); its Completion carries what it returns. It sees what is committed by then.

        The Completion's error is QueueFull where too many queries wait, else the database's own.
        """
        self._reader.put(query, token)

    def load(self) -> Recovered:
        """What to go on with after a restart. Blocks; for use before the first write."""
        with self._engine.connect() as connection:
            return queries.recovered(connection)

    def close(self, timeout_s: float) -> None:
        """Write all that is queued, giving up after `timeout_s`, and let go of the database."""
        if self._closed:
            return
        self._closed = True
        end = time.monotonic() + timeout_s
        self._writer.close(timeout_s)
        self._reader.close(max(end - time.monotonic(), 0.1))
        os.close(self._lock)
