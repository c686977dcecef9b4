"""The schema: from nothing, again, in one piece, and the same as `schema.py` says."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from orchestrator.store import SessionRow, Store, StoreInUse, StoreTooNew, engine, queries
from orchestrator.store.schema import metadata
from orchestrator.store.statements import Statements
from tests.store.support import Harness, job


def test_the_migrations_make_what_the_schema_says(harness: Harness) -> None:
    with harness.store._engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() is not None


def test_partial_indexes_have_their_condition(harness: Harness) -> None:
    # The comparison above does not look at conditions.
    with sqlite3.connect(harness.path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        conditions = {name: sql.partition(" WHERE ")[2] for name, sql in rows}
    connection.close()
    dialect = harness.store._engine.dialect
    indexes = [index for table in metadata.tables.values() for index in table.indexes]
    made = {index.name: str(CreateIndex(index).compile(dialect=dialect)).partition(" WHERE ")[2] for index in indexes}
    assert conditions == made
    assert conditions["jobs_request"] == "durable = 1"


def test_opening_again_keeps_the_rows(open_store: Callable[[], Harness]) -> None:
    first = open_store()
    first.write(job("j1"))
    first.store.close(5)
    assert [row.job_id for row in open_store().store.load().jobs] == ["j1"]


def test_a_database_of_the_first_version_keeps_its_jobs(
    open_store: Callable[[], Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations = shutil.copytree(engine.MIGRATIONS, tmp_path / "migrations")
    for script in (migrations / "versions").glob("*.py"):
        if not script.name.startswith("0001"):
            script.unlink()
    with monkeypatch.context() as before:
        before.setattr(engine, "MIGRATIONS", migrations)
        first = open_store()
    row = job("j1", session_id="s1", status="completed", attempt=2, finished_ms=5000)
    with sqlite3.connect(first.path) as connection:
        old = {name: value for name, value in row._asdict().items() if value is not None}
        marks = ", ".join("?" * len(old))
        connection.execute(f"INSERT INTO jobs ({', '.join(old)}) VALUES ({marks})", list(old.values()))
    connection.close()
    first.store.close(5)
    now = open_store()
    assert now.read(queries.job_by_id("default", "j1")).row == row
    stats = now.read(queries.job_stats("default", ["s1"]))["s1"]
    assert (stats.counts["completed"], stats.retries, stats.images, stats.run_ms) == (1, 1, 0, None)


def test_every_table_carries_the_tenant() -> None:
    for table in metadata.tables.values():
        assert not table.c.tenant.nullable


def test_a_failing_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = ScriptDirectory(str(engine.MIGRATIONS)).get_current_head()
    migrations = shutil.copytree(engine.MIGRATIONS, tmp_path / "migrations")
    (migrations / "versions" / "9999_broken.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision = '9999', '{newest}'\n"
        "def upgrade():\n"
        "    op.execute('CREATE TABLE half (x)')\n"
        "    op.execute('CREATE TABLE half (x)')\n"
    )
    path = tmp_path / "atelier.db"
    with monkeypatch.context() as broken:
        broken.setattr(engine, "MIGRATIONS", migrations)
        with pytest.raises(DBAPIError, match="already exists"):
            Store(f"sqlite:///{path}", lambda: None)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    Store(f"sqlite:///{path}", lambda: None).close(5)  # the lock was let go, and the sound migrations run


def test_a_database_of_a_newer_version_is_left_alone(open_store: Callable[[], Harness]) -> None:
    first = open_store()
    first.store.close(5)
    connection = sqlite3.connect(first.path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreTooNew):
        open_store()


def test_one_orchestrator_at_a_time(open_store: Callable[[], Harness]) -> None:
    first = open_store()
    with pytest.raises(StoreInUse):
        open_store()
    first.store.close(5)
    open_store()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://localhost/atelier"])
def test_only_sqlite_files_are_taken(url: str) -> None:
    with pytest.raises(ValueError, match="SQLite file"):
        Store(url, lambda: None)


def test_a_commit_waits_for_the_disk(harness: Harness) -> None:
    with harness.store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_schema_and_statements_compile_for_postgresql() -> None:
    dialect = postgresql.dialect(paramstyle="format")
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE" in str(CreateIndex(index).compile(dialect=dialect))
    statements = Statements(dialect)
    assert statements.new_job.text.count("%s") == len(job("j1"))
    assert "ON CONFLICT (tenant, session_id) DO UPDATE" in statements.states[SessionRow][0].text
