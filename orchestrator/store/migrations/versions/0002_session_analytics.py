"""What sessions tell of their jobs: when they began, how long they ran, where, what they made and why they failed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("started_ms", sa.BigInteger))
    op.add_column("jobs", sa.Column("running_ms", sa.BigInteger))
    op.add_column("jobs", sa.Column("device_id", sa.String))
    op.add_column("jobs", sa.Column("images", sa.Integer))
    op.add_column("jobs", sa.Column("steps", sa.BigInteger))
    op.add_column("jobs", sa.Column("error_code", sa.String))
    ended = sa.text("session_id IS NOT NULL AND finished_ms IS NOT NULL")
    columns = ["tenant", "session_id", "finished_ms", "status", "created_ms", "started_ms", "running_ms"]
    columns += ["worker_id", "device_id", "attempt", "losses", "images", "steps", "error_code"]
    op.create_index("jobs_ended", "jobs", columns, sqlite_where=ended, postgresql_where=ended)
