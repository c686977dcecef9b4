"""The rows that go into the store, and the records that come out. All times are epoch milliseconds."""

from typing import NamedTuple


class JobRow(NamedTuple):
    """A new job. Among durable rows (tenant, request_id) is unique.

    `data` is the msgpack of the request's data map, `attachments` that of a list of {media_type, nbytes, artifact_id}.
    A job that is written only when it has ended carries a terminal `status`, `finished_ms` and what follows it, as in
    Outcome.
    """

    job_id: str
    tenant: str
    request_id: str
    fingerprint: bytes
    action: str
    session_id: str | None
    priority: int
    durable: bool
    status: str
    attempt: int
    losses: int
    created_ms: int
    queue_timeout_ms: int | None
    run_timeout_ms: int | None
    deadline_ms: int | None
    worker_pin: str | None
    device_pin: str | None
    worker_id: str | None
    traceparent: str | None
    data: bytes
    attachments: bytes
    finished_ms: int | None = None
    started_ms: int | None = None
    running_ms: int | None = None
    device_id: str | None = None
    images: int | None = None
    steps: int | None = None
    error_code: str | None = None


class JobUpdate(NamedTuple):
    """A live job's new state; without effect on a job that has ended."""

    job_id: str
    tenant: str
    status: str
    attempt: int
    losses: int
    worker_id: str | None
    started_ms: int | None  # of the first attempt


class Outcome(NamedTuple):
    """How a job ended; without effect on a job that has ended before.

    `result` is the msgpack of {data, error, timing, worker_id, device_id, attempt}; `attachments` as in JobRow.
    """

    job_id: str
    tenant: str
    status: str
    attempt: int
    losses: int
    finished_ms: int
    worker_id: str | None
    result: bytes
    attachments: bytes
    started_ms: int | None  # of the first attempt; None: none was begun
    running_ms: int | None  # of the last attempt
    device_id: str | None  # where a worker ended it
    images: int  # pictures in the result
    steps: int  # denoising steps that were told
    error_code: str | None  # of a failed job


class EventRow(NamedTuple):
    """One line of a job's history (`event` is "state" or "item"); `data` is msgpack."""

    tenant: str
    job_id: str
    seq: int
    at_ms: int
    event: str
    data: bytes


class SessionRow(NamedTuple):
    """A session as it now is: inserted, or written over the one with its id. `defaults` is msgpack."""

    session_id: str
    tenant: str
    name: str
    status: str
    defaults: bytes
    priority: int | None
    idle_timeout_ms: int
    created_ms: int
    touched_ms: int


class ArtifactRow(NamedTuple):
    """A stored file; `job_id` is the job it belongs to, None for an upload."""

    artifact_id: str
    tenant: str
    media_type: str
    nbytes: int
    sha256: bytes
    created_ms: int
    job_id: str | None


class ModelRow(NamedTuple):
    """What holds for all versions of a model; inserted, or written over the one there is. `metadata` is msgpack."""

    tenant: str
    name: str
    created_ms: int
    revision: int
    metadata: bytes


class VersionRow(NamedTuple):
    """A registered version, likewise. `source`, `metrics`, `tags` and `metadata` are msgpack."""

    tenant: str
    name: str
    version: str
    created_ms: int
    source: bytes
    content_hash: str | None
    nbytes: int | None
    run_id: str | None
    metrics: bytes
    tags: bytes
    revision: int
    metadata: bytes
    deleted_ms: int | None = None  # None: it is there


class AliasRow(NamedTuple):
    """Where an alias points, likewise; `version` None: it is gone."""

    tenant: str
    name: str
    alias: str
    version: str | None


class TrafficRow(NamedTuple):
    """A name's traffic, likewise; `traffic` is msgpack."""

    tenant: str
    name: str
    traffic: bytes


class ChangeRow(NamedTuple):
    """One line of a model's history; `before` and `after` are msgpack. Their ids rise with time."""

    tenant: str
    name: str
    change_id: str
    at_ms: int
    kind: str
    subject: str | None
    author: str | None
    before: bytes
    after: bytes


class BenchmarkRow(NamedTuple):
    """What a job measured of a model; `result` is msgpack."""

    tenant: str
    model_id: str
    job_id: str
    at_ms: int
    worker_id: str | None
    content_hash: str
    device_kind: str
    result: bytes


class Expire(NamedTuple):
    """Delete what ended before `before_ms`: jobs, their events and artifacts, uploads, closed sessions.

    One row deletes a bounded number; its completion's value is an `Expired`.
    """

    before_ms: int


RegistryRow = ModelRow | VersionRow | AliasRow | TrafficRow | ChangeRow
Row = JobRow | JobUpdate | Outcome | EventRow | SessionRow | ArtifactRow | RegistryRow | BenchmarkRow | Expire


class Duplicate(NamedTuple):
    """The value of a completion whose JobRow was skipped: its (tenant, request_id) belongs to this job."""

    existing_job_id: str


class Expired(NamedTuple):
    """The value of an Expire's completion: the files to delete now, and whether another Expire would find more."""

    artifact_ids: list[str]
    more: bool


class JobRecord(NamedTuple):
    """A stored job: the fields of its JobRow, and of its Outcome where it has one."""

    row: JobRow
    result: bytes | None
    result_attachments: bytes | None


class JobSummary(NamedTuple):
    """A line of a list of jobs. `result` is there for failed jobs only: it holds the error."""

    job_id: str
    request_id: str
    action: str
    session_id: str | None
    priority: int
    durable: bool
    status: str
    attempt: int
    worker_id: str | None
    created_ms: int
    finished_ms: int | None
    result: bytes | None


class JobStats(NamedTuple):
    """What the ended jobs of a session come to. Percentiles are (p50, p95) by nearest rank, None without any value."""

    counts: dict[str, int]  # by status
    images: int
    steps: int
    retries: int  # attempts beyond the first of each job
    losses: int
    queue_ms: tuple[int, int] | None  # from receipt to the first attempt
    run_ms: tuple[int, int] | None  # of the last attempt
    devices: dict[tuple[str, str], int]  # (worker_id, device_id) -> jobs
    failures: dict[str, int]  # error code -> jobs


class Recovered(NamedTuple):
    """What a restarted orchestrator goes on with."""

    jobs: list[JobRow]  # durable and not ended, oldest first
    sessions: list[SessionRow]  # active ones, oldest first
    requests: list[tuple[str, str]]  # (tenant, request_id) of all durable jobs
    registry: list[RegistryRow]  # all but the history
    max_seq: dict[str, int]  # job_id -> the highest seq on disk, for the jobs above that have events
