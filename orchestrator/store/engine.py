"""Opening a database and bringing it to the newest schema. All that only SQLite needs stands here."""

import fcntl
import os
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 5  # another process (a backup, the sqlite3 shell) may hold the file for a moment
WAL_BYTES_KEPT = 64 * 1024 * 1024


class StoreInUse(RuntimeError):
    """Another orchestrator has this database open."""


class StoreTooNew(RuntimeError):
    """The database was made by a newer version of this program."""


def open_engine(url: str) -> Engine:
    """An engine for `url`, whose connections are made and closed by the threads that use them.

    Raises ValueError for a database that is not an SQLite file.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise ValueError("The database must be an SQLite file: sqlite:///<path>.")
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _set_pragmas(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver's own idea of BEGIN leaves migrations out of the transaction
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk before it is answered
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")


def lock(engine: Engine) -> int:
    """Keep other orchestrators from the database: two would run its jobs twice. Ends with the process.

    Returns the lock's file descriptor; raises StoreInUse.
    """
    descriptor = os.open(f"{engine.url.database}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreInUse("Another orchestrator has this database open; stop it, or give this one its own.") from None
    return descriptor


def migrate(connection: Connection) -> None:
    """Bring the schema to the newest version, in one transaction. Raises StoreTooNew."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    revision = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise StoreTooNew("The database was made by a newer version; use that one, or an older copy of the data.")
    command.upgrade(config, "head")
