"""The tables as they are now. How they came to be stands in `migrations/`; a test holds the two together.

SQLite's own are only hints: `sqlite_with_rowid=False` keeps a table in the order of its key.
"""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, text

ACTIVE = "active"  # the status of a session that takes jobs

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("job_id", String, primary_key=True),
    Column("request_id", String, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("action", String, nullable=False),
    Column("session_id", String),
    Column("priority", Integer, nullable=False),
    Column("durable", Boolean, nullable=False),
    Column("status", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("queue_timeout_ms", BigInteger),
    Column("run_timeout_ms", BigInteger),
    Column("deadline_ms", BigInteger),
    Column("worker_pin", String),
    Column("device_pin", String),
    Column("worker_id", String),
    Column("traceparent", String),
    Column("data", LargeBinary, nullable=False),
    Column("attachments", LargeBinary, nullable=False),
    Column("finished_ms", BigInteger),
    Column("result", LargeBinary),
    Column("result_attachments", LargeBinary),
    Column("started_ms", BigInteger),
    Column("running_ms", BigInteger),
    Column("device_id", String),
    Column("images", Integer),
    Column("steps", BigInteger),
    Column("error_code", String),
)
# The idempotency key. Jobs that were not durable leave only a summary, which must not stand in a later one's way.
Index(
    "jobs_request",
    jobs.c.tenant,
    jobs.c.request_id,
    unique=True,
    sqlite_where=text("durable = 1"),  # word for word what queries say there, or they would not use the index
    postgresql_where=jobs.c.durable,
)
Index(
    "jobs_session",
    jobs.c.tenant,
    jobs.c.session_id,
    jobs.c.job_id,
    sqlite_where=jobs.c.session_id.is_not(None),
    postgresql_where=jobs.c.session_id.is_not(None),
)
Index("jobs_status", jobs.c.tenant, jobs.c.status, jobs.c.job_id)  # else a list of running jobs reads a day's jobs
Index("jobs_finished", jobs.c.finished_ms)  # null: live
_of_session = jobs.c.session_id.is_not(None) & jobs.c.finished_ms.is_not(None)
Index(  # all that a session's analytics need, so that no job's data and result are read for them
    "jobs_ended",
    jobs.c.tenant,
    jobs.c.session_id,
    jobs.c.finished_ms,
    jobs.c.status,
    jobs.c.created_ms,
    jobs.c.started_ms,
    jobs.c.running_ms,
    jobs.c.worker_id,
    jobs.c.device_id,
    jobs.c.attempt,
    jobs.c.losses,
    jobs.c.images,
    jobs.c.steps,
    jobs.c.error_code,
    sqlite_where=_of_session,
    postgresql_where=_of_session,
)

job_events = Table(
    "job_events",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("job_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("event", String, nullable=False),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

sessions = Table(
    "sessions",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("session_id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("status", String, nullable=False),
    Column("defaults", LargeBinary, nullable=False),
    Column("priority", Integer),
    Column("idle_timeout_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("touched_ms", BigInteger, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("artifact_id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("media_type", String, nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("job_id", String),
    sqlite_with_rowid=False,
)
Index("artifacts_created", artifacts.c.created_ms)

models = Table(
    "models",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("version", String, primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("source", LargeBinary, nullable=False),
    Column("content_hash", String),
    Column("nbytes", BigInteger),
    Column("run_id", String),
    Column("metrics", LargeBinary, nullable=False),
    Column("tags", LargeBinary, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("deleted_ms", BigInteger),  # null: it is there
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("alias", String, primary_key=True),
    Column("version", String),  # null: the alias is gone
    sqlite_with_rowid=False,
)

model_traffic = Table(
    "model_traffic",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("traffic", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

model_benchmarks = Table(
    "model_benchmarks",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("model_id", String, primary_key=True),
    Column("job_id", String, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("worker_id", String),
    Column("content_hash", String, nullable=False),
    Column("device_kind", String, nullable=False),
    Column("result", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

model_changes = Table(  # rows are added, and never changed
    "model_changes",
    metadata,
    Column("tenant", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("change_id", String, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("subject", String),
    Column("author", String),
    Column("before", LargeBinary, nullable=False),
    Column("after", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
