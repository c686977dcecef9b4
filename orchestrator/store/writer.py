"""The writer thread: everything queued goes to the disk in one transaction, kind of row by kind of row."""

import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError

from orchestrator.store.rows import (
    ArtifactRow,
    ChangeRow,
    Duplicate,
    EventRow,
    Expire,
    JobRow,
    JobUpdate,
    Outcome,
    Row,
)
from orchestrator.store.statements import Statements, expire, find_duplicates

WRITE_BEHIND_S = 0.05  # how long rows gather company, unless somebody waits for them
GROUP_WRITES_MAX = 2048  # bounds the time one transaction takes, and so how long its first write waits
UNSAVED_ROWS_MAX = 100_000  # kept for retry while the disk fails
RETRY_S, RETRY_MAX_S = 0.05, 1.0

log = structlog.get_logger()


class Completion(NamedTuple):
    """A write or read is done: with a value, or with the error that kept it from the disk."""

    token: Hashable
    value: Any = None
    error: Exception | None = None


class Write(NamedTuple):
    """Rows that are committed together; `token` is None where nobody waits for them."""

    rows: Sequence[Row]
    token: Hashable | None


class Writer:
    """Owns the writing connection. `put`, `flush`, `queued` and `close` are for the one thread that uses the store."""

    def __init__(self, engine: Engine, completions: deque[Completion], wake: Callable[[], None]) -> None:
        self._engine = engine
        self._statements = Statements(engine.dialect)
        self._completions = completions
        self._wake = wake
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._unsaved: list[Write] = []  # older than anything in the queue
        self._connection: Connection | None = None
        self._put_count = self._done_count = 0  # each is written by one thread alone
        self._closing = False
        self._give_up = threading.Event()
        self._awaited = threading.Event()  # somebody waits for a write in the queue
        self._hurry = False  # so it is, but the writer has not been told
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Writes that are not on the disk yet."""
        return self._put_count - self._done_count

    def put(self, write: Write) -> None:
        self._put_count += 1
        self._queue.put(write)
        if write.token is not None:
            self._hurry = True

    def flush(self) -> None:
        """Write now what somebody waits for; it waits for company a while else."""
        if self._hurry:
            self._hurry = False
            self._awaited.set()

    def close(self, timeout_s: float) -> None:
        """Commit all that is queued, giving up after `timeout_s`, and end the thread."""
        self._queue.put(None)
        self._awaited.set()
        self._thread.join(timeout_s)
        self._give_up.set()
        self._thread.join(RETRY_MAX_S)  # an attempt that hangs in the disk is left to the daemon flag
        if self.queued:
            log.error("the store closed with writes not on disk", writes=self.queued)

    def _run(self) -> None:
        retry_s = RETRY_S
        while not (self._closing and not self._unsaved and self._queue.empty()):
            if self._commit(self._next_group()):
                retry_s = RETRY_S
            elif self._give_up.wait(retry_s):
                break
            else:
                retry_s = min(2 * retry_s, RETRY_MAX_S)
        self._disconnect()

    def _next_group(self) -> list[Write]:
        group, self._unsaved = self._unsaved, []
        writes_max = len(group) + GROUP_WRITES_MAX
        idle = not group and not self._closing
        try:
            while len(group) < writes_max:
                write = self._queue.get(block=idle)
                if idle:  # a sleep here, not a wait at the queue: each put would wake this thread and cost the GIL
                    idle = False
                    self._awaited.wait(WRITE_BEHIND_S)
                    self._awaited.clear()
                if write is None:
                    self._closing = True
                else:
                    group.append(write)
            self._awaited.set()  # the group is full: what is left may be awaited
        except queue.Empty:
            pass
        return group

    def _commit(self, group: list[Write]) -> bool:
        """Commit the group; False where the disk fails."""
        if not group:
            return True
        try:
            values = self._transact(group)
        except Exception as error:  # whatever it is, the thread goes on: every later job depends on it
            self._disconnect()
            if not _is_bad_row(error):
                self._failed(group, error)
                return False
            if len(group) > 1:  # one bad row does not take its neighbours with it
                return sum([self._commit([write]) for write in group]) == len(group)
            kinds = [type(row).__name__ for row in group[0].rows]
            log.error("a write was refused by the database", error=_reason(error), rows=kinds)
            self._complete([Completion(group[0].token, error=error)], group)
        else:
            told = zip(group, values, strict=True)
            self._complete([Completion(write.token, value) for write, value in told if write.token is not None], group)
        return True

    def _transact(self, group: list[Write]) -> list[Any]:
        """Write the group's rows in one transaction; returns each write's value."""
        kinds: defaultdict[type, list[Any]] = defaultdict(list)
        for rows, _ in group:
            for row in rows:
                kinds[type(row)].append(row)
        if self._connection is None:
            self._connection = self._engine.connect()
        with self._connection.begin():
            duplicates = self._write_rows(self._connection, kinds)
            if not duplicates and Expire not in kinds:
                return [None] * len(group)
            return [self._value(self._connection, write, duplicates) for write in group]

    def _write_rows(self, connection: Connection, kinds: dict[type, list[Any]]) -> dict[str, str]:
        """Write all but Expire; returns the duplicates among the new jobs (job_id -> existing job_id)."""
        statements, duplicates = self._statements, {}
        if (new := kinds.get(JobRow)) and statements.new_job.run(connection, new) != len(new):
            duplicates = find_duplicates(connection, new)
        if updates := kinds.get(JobUpdate):  # only a job's latest state counts
            statements.job_update.run(connection, {(row.tenant, row.job_id): row for row in updates}.values())
        if outcomes := kinds.get(Outcome):
            statements.outcome.run(connection, outcomes)
        for kind, (statement, key) in statements.states.items():
            if rows := kinds.get(kind):
                statement.run(connection, {key(row): row for row in rows}.values())
        if changes := kinds.get(ChangeRow):
            statements.change.run(connection, changes)
        for kind, statement in ((EventRow, statements.event), (ArtifactRow, statements.artifact)):
            # What came along with a skipped job is skipped with it.
            if rows := [row for row in kinds.get(kind, ()) if not duplicates or row.job_id not in duplicates]:
                statement.run(connection, rows)
        return duplicates

    def _value(self, connection: Connection, write: Write, duplicates: dict[str, str]) -> Any:
        for row in write.rows:
            if type(row) is Expire:
                return expire(connection, row.before_ms)
            if type(row) is JobRow and row.job_id in duplicates:
                return Duplicate(duplicates[row.job_id])
        return None

    def _failed(self, group: list[Write], error: Exception) -> None:
        """The disk fails: who waits is told, what nobody waits for is kept, the newest dropped beyond the bound."""
        told = [write for write in group if write.token is not None]
        room = UNSAVED_ROWS_MAX - sum(len(write.rows) for write in self._unsaved)
        dropped: list[Write] = []
        for write in group:
            if write.token is None:
                room -= len(write.rows)
                (self._unsaved if room >= 0 else dropped).append(write)
        kept = len(self._unsaved)
        log.error("the database cannot be written", error=_reason(error), retried=kept, dropped=len(dropped))
        self._complete([Completion(write.token, error=error) for write in told], told + dropped)

    def _complete(self, completions: list[Completion], done: list[Write]) -> None:
        self._done_count += len(done)
        awaited = [completion for completion in completions if completion.token is not None]
        if awaited:
            self._completions.extend(awaited)
            self._wake()

    def _disconnect(self) -> None:
        """Forget a connection that may be broken; the next transaction opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception:
                log.warning("the database connection did not close cleanly", exc_info=True)


def _is_bad_row(error: Exception) -> bool:
    """Whether the rows are at fault (a value the database cannot take) rather than the disk."""
    if isinstance(error, DBAPIError):
        bad = isinstance(error, (IntegrityError, DataError, InterfaceError, ProgrammingError))
        return bad and not error.connection_invalidated
    return isinstance(error, (ArithmeticError, AttributeError, TypeError, ValueError))


def _reason(error: Exception) -> str:
    """For the log: without the statement, which says little, and the rows, which are the users' own."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(cause).__name__}: {cause}"
