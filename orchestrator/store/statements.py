"""The SQL of the writer: compiled once, then run with the rows themselves as parameters.

A row costs a fraction of a microsecond of Python this way; SQLAlchemy's own executemany costs ten times that,
and the writer's Python is time the broker thread cannot have.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, and_, bindparam, delete, exists, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.store.rows import (
    AliasRow,
    ArtifactRow,
    BenchmarkRow,
    ChangeRow,
    EventRow,
    Expired,
    JobRow,
    JobUpdate,
    ModelRow,
    Outcome,
    SessionRow,
    TrafficRow,
    VersionRow,
)
from orchestrator.store.schema import (
    ACTIVE,
    artifacts,
    job_events,
    jobs,
    model_aliases,
    model_benchmarks,
    model_changes,
    model_traffic,
    model_versions,
    models,
    sessions,
)

EXPIRE_ROWS_MAX = 1000  # per transaction: a day's worth at once would hold up every other write
BLOCK_ROWS = 32
LOOKUP_ROWS_MAX = 500  # parameters of one query are limited


@dataclass(frozen=True, slots=True)
class Statement:
    """One kind of row's SQL, and how its fields are put in the order of the parameters.

    `block_text`: for BLOCK_ROWS rows at once, where there is such an SQL. Each row that is written alone lets go of the
    GIL and asks the broker thread for it again.
    """

    text: str
    arrange: Callable[[Any], tuple[Any, ...]]
    block_text: str = ""

    def run(self, connection: Connection, rows: Iterable[NamedTuple]) -> int:
        """Write `rows`; returns how many the database took."""
        values = list(map(self.arrange, rows))
        in_blocks = len(values) // BLOCK_ROWS * BLOCK_ROWS if self.block_text else 0
        written = 0
        if in_blocks:
            starts = range(0, in_blocks, BLOCK_ROWS)
            blocks = [tuple(chain.from_iterable(values[start : start + BLOCK_ROWS])) for start in starts]
            written = connection.exec_driver_sql(self.block_text, blocks).rowcount
        if in_blocks < len(values):
            written += connection.exec_driver_sql(self.text, values[in_blocks:]).rowcount
        return written


class Statements:
    """The statements in one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect.name]

        def compiled(statement: Any, row: type[NamedTuple]) -> Statement:
            sql = statement.compile(dialect=dialect)
            fields: Sequence[str] = row._fields
            order = [fields.index(name.removeprefix("_")) for name in sql.positiontup]
            return Statement(str(sql), itemgetter(*order), _block(str(sql)))

        def new(table: Any, row: type[NamedTuple]) -> Statement:
            # A row may come twice: a commit can succeed and still be reported as failed.
            return compiled(insert(table).values(_values(row)).on_conflict_do_nothing(), row)

        def change(row: type[NamedTuple], **renamed: str) -> Statement:
            values = {renamed.get(name, name): value for name, value in _values(row).items()}
            key = and_(jobs.c.tenant == values.pop("tenant"), jobs.c.job_id == values.pop("job_id"))
            live = jobs.c.finished_ms.is_(None)  # the first end of a job wins
            return compiled(update(jobs).where(key, live).values(values), row)

        def put(table: Any, row: type[NamedTuple]) -> Statement:
            upsert = insert(table).values(_values(row))
            keys = [column.name for column in table.primary_key]
            changed = {name: upsert.excluded[name] for name in row._fields if name not in keys}
            return compiled(upsert.on_conflict_do_update(index_elements=keys, set_=changed), row)

        self.new_job = new(jobs, JobRow)
        self.job_update = change(JobUpdate)
        self.outcome = change(Outcome, attachments="result_attachments")
        self.event = new(job_events, EventRow)
        self.artifact = new(artifacts, ArtifactRow)
        self.change = new(model_changes, ChangeRow)
        # What is written over what is there, and by which fields a row is known.
        self.states: dict[type, tuple[Statement, Callable[[Any], Hashable]]] = {
            row: (put(table, row), itemgetter(*[row._fields.index(column.name) for column in table.primary_key]))
            for table, row in (
                (sessions, SessionRow),
                (models, ModelRow),
                (model_versions, VersionRow),
                (model_aliases, AliasRow),
                (model_traffic, TrafficRow),
                (model_benchmarks, BenchmarkRow),
            )
        }


def _block(text: str) -> str:
    """An INSERT of one row as one of BLOCK_ROWS rows; empty for another statement."""
    before, values, row = text.partition(" VALUES ")
    marks, conflict, then = row.partition(" ON CONFLICT ")
    if not (values and conflict):
        return ""
    return f"{before} VALUES {', '.join([marks] * BLOCK_ROWS)} ON CONFLICT {then}"


def _values(row: type[NamedTuple]) -> dict[str, Any]:
    return {name: bindparam(f"_{name}") for name in row._fields}


def find_duplicates(connection: Connection, rows: Sequence[JobRow]) -> dict[str, str]:
    """For those of `rows` whose (tenant, request_id) belongs to another durable job: job_id -> that job's id."""
    existing: dict[tuple[str, str], str] = {}
    for tenant in {row.tenant for row in rows}:
        request_ids = [row.request_id for row in rows if row.durable and row.tenant == tenant]
        for start in range(0, len(request_ids), LOOKUP_ROWS_MAX):
            query = select(jobs.c.request_id, jobs.c.job_id).where(
                jobs.c.tenant == tenant,
                jobs.c.request_id.in_(request_ids[start : start + LOOKUP_ROWS_MAX]),
                jobs.c.durable,
            )
            existing |= {(tenant, request_id): job_id for request_id, job_id in connection.execute(query)}
    owners = {row.job_id: existing.get((row.tenant, row.request_id)) for row in rows if row.durable}
    return {job_id: owner for job_id, owner in owners.items() if owner is not None and owner != job_id}


def expire(connection: Connection, before_ms: int) -> Expired:
    """Delete what ended before `before_ms`, the oldest jobs first, about EXPIRE_ROWS_MAX of each kind at a time."""
    last_ms = before_ms - 1
    oldest = select(jobs.c.finished_ms).where(jobs.c.finished_ms <= last_ms).order_by(jobs.c.finished_ms)
    chunk_last_ms = connection.scalar(oldest.offset(EXPIRE_ROWS_MAX).limit(1))
    more = chunk_last_ms is not None and chunk_last_ms < last_ms
    ended = jobs.c.finished_ms <= (last_ms if chunk_last_ms is None else chunk_last_ms)
    of_ended = tuple_(job_events.c.tenant, job_events.c.job_id).in_(select(jobs.c.tenant, jobs.c.job_id).where(ended))
    connection.execute(delete(job_events).where(of_ended))
    connection.execute(delete(jobs).where(ended))
    connection.execute(delete(sessions).where(sessions.c.status != ACTIVE, sessions.c.touched_ms < before_ms))
    # An artifact stays as long as its job; without one (an upload, a job that was never written) its own age counts.
    has_job = exists().where(jobs.c.tenant == artifacts.c.tenant, jobs.c.job_id == artifacts.c.job_id)
    aged = select(artifacts.c.artifact_id).where(artifacts.c.created_ms < before_ms, ~has_job).limit(EXPIRE_ROWS_MAX)
    artifact_ids = list(connection.scalars(aged))
    if artifact_ids:
        this = artifacts.c.artifact_id == bindparam("_id")
        connection.execute(delete(artifacts).where(this), [{"_id": artifact_id} for artifact_id in artifact_ids])
    return Expired(artifact_ids, more or len(artifact_ids) == EXPIRE_ROWS_MAX)
