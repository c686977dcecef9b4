"""What is on the disk stays there, and a disk that fails is told and survived."""

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import DatabaseError, OperationalError

from orchestrator.store import Expire, JobUpdate, Store, queries, writer
from tests.store.support import Harness, event, job

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def full_disk(harness: Harness) -> Iterator[None]:
    """SQLite's own 'database or disk is full' on every connection that is opened from now on."""

    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite raises it to the size the file has

    sqlalchemy_event.listen(harness.store._engine, "connect", limit)
    harness.store._writer._disconnect()  # nothing is being written: the next write connects anew
    yield
    sqlalchemy_event.remove(harness.store._engine, "connect", limit)


BIG = b"x" * 100_000  # does not fit the pages there are


@pytest.mark.parametrize("turn", range(3))
def test_what_completed_is_there_after_kill_9(tmp_path: Path, turn: int) -> None:
    url = f"sqlite:///{tmp_path}/atelier.db"
    pause = random.Random(turn)
    promised: set[str] = set()
    for life in range(3):
        command = [sys.executable, "-m", "tests.store.writes_until_killed", url, f"life{life}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            promised.add(process.stdout.readline().decode().strip())
            time.sleep(pause.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            promised |= {line.decode().strip() for line in process.stdout if line.endswith(b"\n")}
        assert process.returncode == -signal.SIGKILL
    assert len(promised) > 100
    store = Store(url, lambda: None)
    recovered = store.load()
    store.close(5)
    assert promised <= {row.job_id for row in recovered.jobs}
    assert set(recovered.max_seq) == {row.job_id for row in recovered.jobs}, "a job and its event commit together"
    connection = sqlite3.connect(tmp_path / "atelier.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_full_disk_is_told_and_survived(harness: Harness) -> None:
    harness.write(job("before"))
    with full_disk(harness):
        harness.store.write([event("before", 1, data=BIG)])  # nobody waits for it: kept until it fits
        harness.store.write([job("asked", data=BIG)], "asked")
        completion = harness.wait("asked")
        assert isinstance(completion.error, OperationalError)
        assert "full" in str(completion.error)
        assert harness.read(queries.job_by_id("default", "before")) is not None  # reading goes on
        harness.store.write([job("again", data=BIG)], "again")
        assert isinstance(harness.wait("again").error, OperationalError)
        assert harness.store.queued_writes == 1
    assert harness.write(job("after", data=BIG)) is None
    assert [row.job_id for row in harness.store.load().jobs] == ["after", "before"]
    assert harness.read(queries.events_of("default", "before")) == [event("before", 1, data=BIG)]
    assert harness.store.queued_writes == 0


def test_unawaited_rows_keep_their_order_through_a_failing_disk(harness: Harness) -> None:
    harness.write(job("j1"))
    with full_disk(harness):
        harness.store.write([JobUpdate("j1", "default", "processing", 1, 0, "a", 2000), event("j1", 1, data=BIG)])
        harness.store.write([job("asked")], "asked")
        assert harness.wait("asked").error is not None
        harness.store.write([JobUpdate("j1", "default", "processing", 2, 1, "b", 2000)])
    harness.write(event("j1", 2))
    row = harness.read(queries.job_by_id("default", "j1")).row
    assert (row.attempt, row.worker_id) == (2, "b")
    assert [row.seq for row in harness.read(queries.events_of("default", "j1"))] == [1, 2]


def test_the_newest_unawaited_rows_are_dropped_beyond_the_bound(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writer, "UNSAVED_ROWS_MAX", 3)
    with full_disk(harness):
        for seq in range(1, 6):
            harness.store.write([event("j1", seq, data=BIG)])
        harness.store.write([job("asked", data=BIG)], "asked")
        assert harness.wait("asked").error is not None
        assert harness.store.queued_writes <= 3
    harness.write(job("after"))
    assert [row.seq for row in harness.read(queries.events_of("default", "j1"))] == [1, 2, 3]
    assert "the database cannot be written" in capsys.readouterr().out


def test_closing_on_a_failing_disk_ends(harness: Harness) -> None:
    with full_disk(harness):
        harness.store.write([event("j1", 1, data=BIG)])
        started = time.monotonic()
        harness.store.close(0.5)
        assert time.monotonic() - started < 3
    assert not harness.store._writer._thread.is_alive()
    assert harness.store.queued_writes == 1


def test_a_broken_connection_is_opened_again(harness: Harness) -> None:
    harness.write(job("j1"))
    harness.store._writer._connection.connection.driver_connection.close()
    harness.store.write([job("j2")], "j2")
    assert "closed" in str(harness.wait("j2").error)
    harness.write(job("j3"))
    assert [row.job_id for row in harness.store.load().jobs] == ["j1", "j3"]


def test_a_bad_row_does_not_take_its_neighbours_along(harness: Harness) -> None:
    harness.write(job("warm"))
    blocker = sqlite3.connect(harness.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    harness.store.write([job("j1")], "good")
    harness.store.write([job("j2", priority=2**70)], "overflow")
    harness.store.write([job("j3", action=None)], "null")
    harness.store.write([job("j4", data=object())], "object")
    harness.store.write([job("j5", request_id="\ud800")], "surrogate")
    harness.store.write([event("j1", 1, data=object())])  # nobody waits: logged, not tried for ever
    harness.store.write([job("j6")], "good too")
    blocker.execute("ROLLBACK")
    blocker.close()
    for token in ("overflow", "null", "object", "surrogate"):
        assert harness.wait(token).error is not None, token
    for token in ("good", "good too"):
        assert harness.wait(token).error is None, token
    assert [row.job_id for row in harness.store.load().jobs] == ["j1", "j6", "warm"]
    harness.write(Expire(0))
    assert harness.store.queued_writes == 0


def test_a_query_that_fails_is_told_and_the_next_one_runs(harness: Harness) -> None:
    harness.store.read(lambda connection: connection.exec_driver_sql("SELECT nothing"), "bad")
    assert isinstance(harness.wait("bad").error, OperationalError)
    assert harness.read(queries.list_jobs("default")) == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "atelier.db").write_bytes(b"not a database, " * 1000)
    with pytest.raises((DatabaseError, sqlite3.DatabaseError)):
        Store(f"sqlite:///{tmp_path}/atelier.db", lambda: None)


def test_reading_sees_what_completed(open_store: Callable[[], Harness]) -> None:
    harness = open_store()
    for number in range(200):
        harness.write(job(f"j{number}"))
        assert harness.read(queries.job_by_id("default", f"j{number}")) is not None
