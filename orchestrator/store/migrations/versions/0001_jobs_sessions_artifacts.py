"""The first schema: jobs, their events, sessions, artifacts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("tenant", sa.String, primary_key=True),
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("session_id", sa.String),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("durable", sa.Boolean, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("queue_timeout_ms", sa.BigInteger),
        sa.Column("run_timeout_ms", sa.BigInteger),
        sa.Column("deadline_ms", sa.BigInteger),
        sa.Column("worker_pin", sa.String),
        sa.Column("device_pin", sa.String),
        sa.Column("worker_id", sa.String),
        sa.Column("traceparent", sa.String),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("attachments", sa.LargeBinary, nullable=False),
        sa.Column("finished_ms", sa.BigInteger),
        sa.Column("result", sa.LargeBinary),
        sa.Column("result_attachments", sa.LargeBinary),
    )
    in_session = sa.text("session_id IS NOT NULL")
    op.create_index(
        "jobs_request",
        "jobs",
        ["tenant", "request_id"],
        unique=True,
        sqlite_where=sa.text("durable = 1"),
        postgresql_where=sa.text("durable"),
    )
    op.create_index(
        "jobs_session",
        "jobs",
        ["tenant", "session_id", "job_id"],
        sqlite_where=in_session,
        postgresql_where=in_session,
    )
    op.create_index("jobs_status", "jobs", ["tenant", "status", "job_id"])
    op.create_index("jobs_finished", "jobs", ["finished_ms"])
    op.create_table(
        "job_events",
        sa.Column("tenant", sa.String, primary_key=True),
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sessions",
        sa.Column("tenant", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("defaults", sa.LargeBinary, nullable=False),
        sa.Column("priority", sa.Integer),
        sa.Column("idle_timeout_ms", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("touched_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "artifacts",
        sa.Column("artifact_id", sa.String, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("media_type", sa.String, nullable=False),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.String),
        sqlite_with_rowid=False,
    )
    op.create_index("artifacts_created", "artifacts", ["created_ms"])
