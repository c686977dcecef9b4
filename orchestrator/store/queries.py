"""Questions to the store. Each function makes a query to hand to `Store.read`.

Those that answer a client are bound to its tenant; the last two serve the orchestrator itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, case, func, select, tuple_

from orchestrator.store.rows import (
    AliasRow,
    ArtifactRow,
    BenchmarkRow,
    ChangeRow,
    EventRow,
    JobRecord,
    JobRow,
    JobStats,
    JobSummary,
    ModelRow,
    Recovered,
    RegistryRow,
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
from orchestrator.store.statements import LOOKUP_ROWS_MAX
from protocol.enums import Status

ENDED = [status.value for status in Status if status.terminal]
NO_JOBS = JobStats(dict.fromkeys(ENDED, 0), 0, 0, 0, 0, None, None, {}, {})
_job_columns = [jobs.c[name] for name in JobRow._fields]
_session_columns = [sessions.c[name] for name in SessionRow._fields]
_artifact_columns = [artifacts.c[name] for name in ArtifactRow._fields]
_event_columns = [job_events.c[name] for name in EventRow._fields]
_error = case((jobs.c.status == Status.FAILED.value, jobs.c.result), else_=None).label("result")
_summary_columns = [jobs.c[name] for name in JobSummary._fields if name != "result"] + [_error]


def job_by_id(tenant: str, job_id: str) -> Callable[[Connection], JobRecord | None]:
    return _one_job(jobs.c.tenant == tenant, jobs.c.job_id == job_id)


def job_by_request(tenant: str, request_id: str) -> Callable[[Connection], JobRecord | None]:
    """The durable job of a request."""
    return _one_job(jobs.c.tenant == tenant, jobs.c.request_id == request_id, jobs.c.durable)


def list_jobs(
    tenant: str,
    status: str | None = None,
    session_id: str | None = None,
    limit: int = 50,
    before: str | None = None,
) -> Callable[[Connection], list[JobSummary]]:
    """The newest jobs first (their ids rise with time), from below the job_id `before`."""
    query = select(*_summary_columns).where(jobs.c.tenant == tenant).order_by(jobs.c.job_id.desc()).limit(limit)
    if status is not None:
        query = query.where(jobs.c.status == status)
    if session_id is not None:
        query = query.where(jobs.c.session_id == session_id)
    if before is not None:
        query = query.where(jobs.c.job_id < before)
    return lambda connection: [JobSummary(*row) for row in connection.execute(query)]


def events_of(tenant: str, job_id: str, after_seq: int = 0) -> Callable[[Connection], list[EventRow]]:
    """The job's stored events with a greater seq, in order."""
    query = (
        select(*_event_columns)
        .where(job_events.c.tenant == tenant, job_events.c.job_id == job_id, job_events.c.seq > after_seq)
        .order_by(job_events.c.seq)
    )
    return lambda connection: [EventRow(*row) for row in connection.execute(query)]


def artifact_by_id(tenant: str, artifact_id: str) -> Callable[[Connection], ArtifactRow | None]:
    query = select(*_artifact_columns).where(artifacts.c.tenant == tenant, artifacts.c.artifact_id == artifact_id)
    return lambda connection: _first(ArtifactRow, connection.execute(query).first())


def session_by_id(tenant: str, session_id: str) -> Callable[[Connection], SessionRow | None]:
    query = select(*_session_columns).where(sessions.c.tenant == tenant, sessions.c.session_id == session_id)
    return lambda connection: _first(SessionRow, connection.execute(query).first())


def list_sessions(tenant: str, limit: int = 50) -> Callable[[Connection], list[SessionRow]]:
    """The newest sessions first, whatever their status."""
    query = select(*_session_columns).where(sessions.c.tenant == tenant)
    query = query.order_by(sessions.c.session_id.desc()).limit(limit)
    return lambda connection: [SessionRow(*row) for row in connection.execute(query)]


def model_changes_of(
    tenant: str, name: str, limit: int, before: str | None = None, subject: str | None = None
) -> Callable[[Connection], list[ChangeRow]]:
    """A model's history, the newest first, from below the change_id `before`; that of one alias with `subject`."""
    query = select(*[model_changes.c[field] for field in ChangeRow._fields])
    query = query.where(model_changes.c.tenant == tenant, model_changes.c.name == name)
    if before is not None:
        query = query.where(model_changes.c.change_id < before)
    if subject is not None:
        query = query.where(model_changes.c.subject == subject, model_changes.c.kind.in_(("alias", "rollback")))
    query = query.order_by(model_changes.c.change_id.desc()).limit(limit)
    return lambda connection: [ChangeRow(*row) for row in connection.execute(query)]


def benchmarks_of(
    tenant: str, model_id: str, limit: int, before: str | None = None
) -> Callable[[Connection], list[BenchmarkRow]]:
    """What was measured of a model, the newest first, from below the job_id `before`."""
    query = select(*[model_benchmarks.c[field] for field in BenchmarkRow._fields])
    query = query.where(model_benchmarks.c.tenant == tenant, model_benchmarks.c.model_id == model_id)
    if before is not None:
        query = query.where(model_benchmarks.c.job_id < before)
    query = query.order_by(model_benchmarks.c.job_id.desc()).limit(limit)
    return lambda connection: [BenchmarkRow(*row) for row in connection.execute(query)]


def job_stats(tenant: str, session_ids: Sequence[str]) -> Callable[[Connection], dict[str, JobStats]]:
    """What the ended jobs of each of these sessions come to."""

    def run(connection: Connection) -> dict[str, JobStats]:
        found: dict[str, JobStats] = {}
        for start in range(0, len(session_ids), LOOKUP_ROWS_MAX):
            found |= _job_stats(connection, tenant, session_ids[start : start + LOOKUP_ROWS_MAX])
        return found

    return run


def _job_stats(connection: Connection, tenant: str, session_ids: Sequence[str]) -> dict[str, JobStats]:
    key = jobs.c.session_id
    ended = (jobs.c.tenant == tenant) & key.in_(session_ids) & jobs.c.finished_ms.is_not(None)

    def grouped(*values: Any) -> dict[str, dict[Any, int]]:
        """session_id -> what it is grouped by, where that is there -> how many."""
        groups: dict[str, dict[Any, int]] = {}
        query = select(key, *values, func.count()).where(ended, values[-1].is_not(None)).group_by(key, *values)
        for session_id, *what, count in connection.execute(query):
            groups.setdefault(session_id, {})[what[0] if len(what) == 1 else tuple(what)] = count
        return groups

    by_status = [case((jobs.c.status == status, 1), else_=0) for status in ENDED]
    retries = case((jobs.c.attempt > 1, jobs.c.attempt - 1), else_=0)
    sums = [func.coalesce(func.sum(of), 0) for of in (jobs.c.images, jobs.c.steps, retries, jobs.c.losses, *by_status)]
    totals = {row[0]: row[1:] for row in connection.execute(select(key, *sums).where(ended).group_by(key))}
    devices = grouped(jobs.c.worker_id, jobs.c.device_id)
    failures = grouped(jobs.c.error_code)
    queue_ms = _percentiles(connection, ended, jobs.c.started_ms - jobs.c.created_ms)
    run_ms = _percentiles(connection, ended, jobs.c.running_ms)
    found = {}
    for session_id in session_ids:
        images, steps, retried, losses, *counts = totals.get(session_id, [0] * len(sums))
        found[session_id] = JobStats(
            counts=dict(zip(ENDED, counts, strict=True)),
            images=images,
            steps=steps,
            retries=retried,
            losses=losses,
            queue_ms=queue_ms.get(session_id),
            run_ms=run_ms.get(session_id),
            devices=devices.get(session_id, {}),
            failures=failures.get(session_id, {}),
        )
    return found


def _percentiles(connection: Connection, ended: Any, value: Any) -> dict[str, tuple[int, int]]:
    """session_id -> (p50, p95) of its jobs that have a value; sorted by the database, however many there are."""
    key = jobs.c.session_id
    place = func.row_number().over(partition_by=key, order_by=value).label("place")
    count = func.count().over(partition_by=key).label("n")
    inner = select(key, value.label("value"), place, count).where(ended, value.is_not(None)).subquery()
    p50, p95 = ((inner.c.n * percent + 99) // 100 for percent in (50, 95))
    at = [func.max(case((inner.c.place == rank, inner.c.value))) for rank in (p50, p95)]
    query = select(inner.c.session_id, *at).group_by(inner.c.session_id)
    return {session_id: (max(0, low), max(0, high)) for session_id, low, high in connection.execute(query)}


def unknown_artifacts(artifact_ids: Sequence[str]) -> Callable[[Connection], list[str]]:
    """Those of the ids that have no record."""

    def run(connection: Connection) -> list[str]:
        known: set[str] = set()
        for start in range(0, len(artifact_ids), LOOKUP_ROWS_MAX):
            some = artifact_ids[start : start + LOOKUP_ROWS_MAX]
            known.update(connection.scalars(select(artifacts.c.artifact_id).where(artifacts.c.artifact_id.in_(some))))
        return [artifact_id for artifact_id in artifact_ids if artifact_id not in known]

    return run


def recovered(connection: Connection) -> Recovered:
    """All tenants' live durable jobs and active sessions."""
    live = jobs.c.finished_ms.is_(None) & jobs.c.durable
    rows = connection.execute(select(*_job_columns).where(live).order_by(jobs.c.created_ms, jobs.c.job_id))
    of_live = tuple_(job_events.c.tenant, job_events.c.job_id).in_(select(jobs.c.tenant, jobs.c.job_id).where(live))
    last = select(job_events.c.job_id, func.max(job_events.c.seq)).where(of_live).group_by(job_events.c.job_id)
    requests = select(jobs.c.tenant, jobs.c.request_id).where(jobs.c.durable)
    active = select(*_session_columns).where(sessions.c.status == ACTIVE)
    active = active.order_by(sessions.c.created_ms, sessions.c.session_id)
    return Recovered(
        jobs=[JobRow(*row) for row in rows],
        sessions=[SessionRow(*row) for row in connection.execute(active)],
        registry=_registry(connection),
        requests=[(tenant, request_id) for tenant, request_id in connection.execute(requests)],
        max_seq=dict(iter(connection.execute(last))),
    )


def _registry(connection: Connection) -> list[RegistryRow]:
    """Models first, then what points to them."""
    found: list[RegistryRow] = []
    kinds: list[tuple[Any, Any]] = [
        (models, ModelRow),
        (model_versions, VersionRow),
        (model_aliases, AliasRow),
        (model_traffic, TrafficRow),
    ]
    for table, row_type in kinds:
        query = select(*[table.c[field] for field in row_type._fields])
        found += [row_type(*row) for row in connection.execute(query)]
    return found


def _one_job(*conditions: Any) -> Callable[[Connection], JobRecord | None]:
    query = select(*_job_columns, jobs.c.result, jobs.c.result_attachments).where(*conditions)

    def run(connection: Connection) -> JobRecord | None:
        row = connection.execute(query).first()
        return None if row is None else JobRecord(JobRow(*row[:-2]), row[-2], row[-1])

    return run


def _first(row_type: Any, row: Any) -> Any:
    return None if row is None else row_type(*row)
