"""Writing and reading: order, groups, duplicates, expiry, recovery."""

import math
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.store import (
    ArtifactRow,
    Duplicate,
    Expire,
    Expired,
    JobRow,
    JobStats,
    JobUpdate,
    Outcome,
    SessionRow,
    queries,
    reader,
    statements,
)
from orchestrator.store.statements import BLOCK_ROWS
from protocol.errors import QueueFull
from tests.store.support import Harness, event, job

END_MS = 5000


def outcome(job_id: str, **fields: object) -> Outcome:
    row = Outcome(
        job_id, "default", "completed", 1, 0, END_MS, "worker-1", b"\x80", b"\x90", 2000, 500, "cpu", 0, 0, None
    )
    return row._replace(**fields)


def session(session_id: str, **fields: object) -> SessionRow:
    return SessionRow(session_id, "default", "", "active", b"\x80", None, 1000, 1000, 1000)._replace(**fields)


def artifact(artifact_id: str, job_id: str | None, **fields: object) -> ArtifactRow:
    return ArtifactRow(artifact_id, "default", "image/png", 3, b"\x01" * 32, 1000, job_id)._replace(**fields)


def test_a_job_comes_back_as_it_was_written(harness: Harness) -> None:
    row = job("j1", session_id="s1", worker_pin="w", device_pin="cuda:0", traceparent="00-1", queue_timeout_ms=5)
    harness.write(row)
    record = harness.read(queries.job_by_id("default", "j1"))
    assert record == (row, None, None)
    assert type(record.row.durable) is bool
    assert harness.read(queries.job_by_request("default", "request-j1")) == record
    assert harness.read(queries.job_by_id("other", "j1")) is None
    assert harness.read(queries.job_by_request("other", "request-j1")) is None


def test_a_job_through_its_life(harness: Harness) -> None:
    harness.write(job("j1"), event("j1", 1))
    harness.write(JobUpdate("j1", "default", "processing", 2, 1, "worker-1", 2000), event("j1", 2))
    record = harness.read(queries.job_by_id("default", "j1"))
    assert record.row == job("j1", status="processing", attempt=2, losses=1, worker_id="worker-1", started_ms=2000)
    harness.write(outcome("j1", attempt=2, result=b"result", attachments=b"files"), event("j1", 7))
    record = harness.read(queries.job_by_id("default", "j1"))
    assert (record.row.status, record.row.attempt, record.row.finished_ms) == ("completed", 2, END_MS)
    assert (record.row.attachments, record.result, record.result_attachments) == (b"\x90", b"result", b"files")
    assert harness.read(queries.events_of("default", "j1")) == [event("j1", seq) for seq in (1, 2, 7)]
    assert harness.read(queries.events_of("default", "j1", after_seq=2)) == [event("j1", 7)]
    assert harness.read(queries.events_of("other", "j1")) == []


def test_the_first_end_of_a_job_wins(harness: Harness) -> None:
    harness.write(job("j1"))
    harness.write(outcome("j1", status="cancelled"))
    harness.write(outcome("j1", status="completed"))
    harness.write(JobUpdate("j1", "default", "processing", 2, 0, "worker-1", 2000))
    assert harness.read(queries.job_by_id("default", "j1")).row.status == "cancelled"


def test_rows_of_one_group_take_effect_in_order(harness: Harness) -> None:
    harness.write(
        job("j1"),
        JobUpdate("j1", "default", "processing", 1, 0, "a", 2000),
        JobUpdate("j1", "default", "processing", 2, 1, "b", 2000),
        outcome("j1", attempt=2, losses=2),
        session("s1", status="active"),
        session("s1", status="cancelled", touched_ms=2000),
    )
    assert harness.read(queries.job_by_id("default", "j1")).row.losses == 2
    assert harness.read(queries.job_by_id("default", "j1")).row.status == "completed"
    assert harness.read(queries.session_by_id("default", "s1")) == session("s1", status="cancelled", touched_ms=2000)


def test_what_is_queued_commits_as_a_group_in_order(harness: Harness) -> None:
    harness.write(job("warm"))
    blocker = sqlite3.connect(harness.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # the writer waits for this lock while the rest queues up
    wakes = harness.wakes
    harness.store.write([job("j0")], 0)
    for number in range(1, 500):
        harness.store.write([job(f"j{number}"), event(f"j{number}", 1)], number)
    assert harness.store.queued_writes == 500
    blocker.execute("ROLLBACK")
    blocker.close()
    harness.wait(499)
    assert list(harness._seen) == list(range(499))
    assert harness.wakes - wakes <= 3
    assert harness.store.queued_writes == 0
    assert harness.read(lambda connection: connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar()) == 501


def test_a_duplicate_is_skipped_and_told(harness: Harness) -> None:
    harness.write(job("j1"))
    blocker = sqlite3.connect(harness.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    again = [job("j2", request_id="request-j1"), event("j2", 1), artifact("a2", "j2")]
    for token, rows in {"before": [job("j3")], "again": again, "after": [job("j4"), event("j4", 1)]}.items():
        harness.store.write(rows, token)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert harness.wait("again").value == Duplicate("j1")
    assert harness.wait("before") == ("before", None, None)
    assert harness.wait("after") == ("after", None, None)
    assert [row.job_id for row in harness.store.load().jobs] == ["j1", "j3", "j4"]
    assert harness.read(queries.events_of("default", "j2")) == []
    assert harness.read(queries.artifact_by_id("default", "a2")) is None


def test_duplicates_within_one_group(harness: Harness) -> None:
    value = harness.write(job("j1", request_id="r"), job("j2", request_id="r"), job("j3", request_id="r", tenant="t"))
    assert value == Duplicate("j1")
    assert [row.job_id for row in harness.store.load().jobs] == ["j1", "j3"]


def test_rows_of_many_statements_are_all_written_and_counted(harness: Harness) -> None:
    """Blocks of rows and what is left over, each with a row that is a duplicate."""
    count = 2 * BLOCK_ROWS + 5
    jobs = [job(f"j{number:03d}", request_id=f"r{number}", priority=number % 10) for number in range(count)]
    harness.write(*jobs, *[event(row.job_id, seq, data=b"%d" % seq) for row in jobs for seq in (1, 2, 3)])
    assert harness.store.load().jobs == jobs
    for row in (jobs[0], jobs[BLOCK_ROWS], jobs[-1]):
        assert harness.read(queries.job_by_id("default", row.job_id)).row == row
        found = harness.read(queries.events_of("default", row.job_id))
        assert found == [event(row.job_id, seq, data=b"%d" % seq) for seq in (1, 2, 3)]
    for doubled in (3, count - 1):
        more = [job(f"k{doubled}-{number}", request_id=f"k{doubled}-{number}") for number in range(count)]
        more[doubled] = more[doubled]._replace(request_id="r7")
        assert harness.write(*more) == Duplicate("j007")
    assert len(harness.store.load().jobs) == 3 * count - 2


def test_a_row_written_twice_is_no_duplicate(harness: Harness) -> None:
    rows = job("j1"), event("j1", 1), artifact("a1", "j1")
    assert harness.write(*rows) is None
    assert harness.write(*rows) is None  # as after a commit that succeeded and was reported as failed
    assert harness.read(queries.events_of("default", "j1")) == [event("j1", 1)]


def test_jobs_that_were_not_durable_stand_in_no_ones_way(harness: Harness) -> None:
    summary = {"request_id": "r", "durable": False, "status": "completed", "finished_ms": END_MS}
    assert harness.write(job("j1", **summary), job("j2", **summary)) is None
    assert harness.write(job("j3", request_id="r")) is None
    assert harness.read(queries.job_by_request("default", "r")).row.job_id == "j3"
    assert [row.job_id for row in harness.store.load().jobs] == ["j3"]
    assert harness.read(queries.job_by_id("default", "j1")).row.finished_ms == END_MS


def test_recovery_gives_live_jobs_in_order_with_their_last_seq(open_store: Callable[[], Harness]) -> None:
    first = open_store()
    first.write(job("c", created_ms=1), job("a", created_ms=3), job("b", created_ms=2), job("d", created_ms=2))
    first.write(event("a", 1), event("a", 9), event("b", 4), event("d", 2))
    first.write(JobUpdate("b", "default", "processing", 1, 0, "worker-1", 2000), outcome("d"))
    first.write(session("s2", created_ms=2), session("s1", created_ms=1), session("s0", status="cancelled"))
    first.store.close(5)
    recovered = open_store().store.load()
    assert recovered.jobs == [
        job("c", created_ms=1),
        job("b", created_ms=2, status="processing", attempt=1, worker_id="worker-1", started_ms=2000),
        job("a", created_ms=3),
    ]
    assert recovered.sessions == [session("s1", created_ms=1), session("s2", created_ms=2)]
    assert recovered.max_seq == {"a": 9, "b": 4}


def test_closing_writes_what_is_queued(open_store: Callable[[], Harness]) -> None:
    first = open_store()
    for number in range(5000):
        first.store.write([job(f"j{number}")])
    first.store.close(30)
    assert len(open_store().store.load().jobs) == 5000
    with pytest.raises(RuntimeError, match="closed"):
        first.store.write([job("late")])


def test_lists_page_newest_first(harness: Harness) -> None:
    harness.write(*[job(f"j{n}", session_id="s1" if n % 2 else None) for n in range(6)], job("x", tenant="other"))
    harness.write(outcome("j3", status="failed", result=b"why"), outcome("j4", result=b"much"))

    def listed(**kwargs: object) -> list[str]:
        return [row.job_id for row in harness.read(queries.list_jobs("default", **kwargs))]

    assert listed() == ["j5", "j4", "j3", "j2", "j1", "j0"]
    assert listed(limit=2) == ["j5", "j4"]
    assert listed(limit=2, before="j4") == ["j3", "j2"]
    assert listed(status="pending", before="j5") == ["j2", "j1", "j0"]
    assert listed(session_id="s1") == ["j5", "j3", "j1"]
    results = {row.job_id: row.result for row in harness.read(queries.list_jobs("default"))}
    assert results["j3"] == b"why"
    assert results["j4"] is None


def ended(job_id: str, **fields: Any) -> JobRow:
    """A job of session s1 that a worker ended: it waited 100 ms and ran 500 ms."""
    common = {"session_id": "s1", "status": "completed", "attempt": 1, "worker_id": "worker-1", "finished_ms": END_MS,
              "started_ms": 1100, "running_ms": 500, "device_id": "cpu", "images": 1, "steps": 20}  # fmt: skip
    return job(job_id, **{**common, **fields})


def test_the_stats_of_a_session(harness: Harness) -> None:
    harness.write(
        ended("j1"),
        ended("j2", attempt=3, losses=1, images=4, steps=80, started_ms=3000, running_ms=900),
        ended("j3", status="failed", error_code="out_of_memory", worker_id="worker-2", images=0, steps=7),
        ended("j4", status="failed", error_code="poisoned", attempt=3, losses=3, device_id=None, running_ms=10),
        ended("j5", status="cancelled", attempt=0, started_ms=None, running_ms=None, worker_id=None, device_id=None),
        job("j6", session_id="s1", status="processing", attempt=2, losses=1, started_ms=1200),  # lives
        ended("j7", session_id="s2"),
        ended("j8", tenant="other"),
        ended("j9", session_id=None),
    )
    found = harness.read(queries.job_stats("default", ["s1", "s2", "none"]))
    assert found["s1"] == JobStats(
        counts={"cancelled": 1, "completed": 2, "failed": 2},
        images=7,
        steps=147,
        retries=4,
        losses=4,
        queue_ms=(100, 2000),
        run_ms=(500, 900),
        devices={("worker-1", "cpu"): 2, ("worker-2", "cpu"): 1},
        failures={"out_of_memory": 1, "poisoned": 1},
    )
    assert (found["s2"].counts, found["s2"].queue_ms) == ({"completed": 1, "failed": 0, "cancelled": 0}, (100, 100))
    assert found["none"] == JobStats(
        dict.fromkeys(("completed", "failed", "cancelled"), 0), 0, 0, 0, 0, None, None, {}, {}
    )
    assert harness.read(queries.job_stats("other", ["s1"]))["s1"].counts["completed"] == 1


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 40, 100, 101])
def test_percentiles_are_the_nearest_rank(harness: Harness, count: int) -> None:
    values = [(7 * number) % count for number in range(count)] if count % 7 else list(range(count))
    harness.write(*(ended(f"j{number:03}", running_ms=value) for number, value in enumerate(values)))
    expected = tuple(sorted(values)[math.ceil(count * share / 100) - 1] for share in (50, 95))
    assert harness.read(queries.job_stats("default", ["s1"]))["s1"].run_ms == expected


def test_a_clock_that_was_set_back_makes_no_negative_wait(harness: Harness) -> None:
    harness.write(ended("j1", created_ms=9000))
    assert harness.read(queries.job_stats("default", ["s1"]))["s1"].queue_ms == (0, 0)


def test_sessions_and_artifacts_by_id(harness: Harness) -> None:
    harness.write(session("s1"), session("s2"), session("s3", tenant="other"), artifact("a1", None))
    assert harness.read(queries.list_sessions("default")) == [session("s2"), session("s1")]
    assert harness.read(queries.list_sessions("default", limit=1)) == [session("s2")]
    assert harness.read(queries.session_by_id("default", "s3")) is None
    assert harness.read(queries.artifact_by_id("default", "a1")) == artifact("a1", None)
    assert harness.read(queries.artifact_by_id("other", "a1")) is None


def test_artifacts_without_a_record_are_found(harness: Harness) -> None:
    names = [f"a{number}" for number in range(1200)]
    harness.write(*[artifact(name, None) for name in names[::2]])
    assert harness.read(queries.unknown_artifacts(names)) == names[1::2]
    assert harness.read(queries.unknown_artifacts([])) == []


def test_expire_deletes_what_ended_before(harness: Harness) -> None:
    for name in ("old", "new", "live"):
        harness.write(job(name), event(name, 1), artifact(f"of-{name}", name))
    harness.write(outcome("old", finished_ms=4999), outcome("new", finished_ms=5000))
    harness.write(artifact("old-upload", None), artifact("new-upload", None, created_ms=5000), artifact("lost", "gone"))
    harness.write(
        session("closed", status="expired"), session("recent", status="cancelled", touched_ms=5000), session("open")
    )
    value = harness.write(Expire(5000))
    assert (sorted(value.artifact_ids), value.more) == (["lost", "of-old", "old-upload"], False)
    assert {row.job_id for row in harness.read(queries.list_jobs("default"))} == {"new", "live"}
    assert harness.read(queries.events_of("default", "old")) == []
    assert harness.read(queries.events_of("default", "new")) == [event("new", 1)]
    assert {row.session_id for row in harness.read(queries.list_sessions("default"))} == {"recent", "open"}
    for name in ("of-new", "of-live", "new-upload"):
        assert harness.read(queries.artifact_by_id("default", name)) is not None
    assert harness.write(Expire(5000)) == Expired([], False)
    assert harness.write(job("again", request_id="request-old")) is None  # the id is free again


def test_expire_takes_bounded_bites(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "EXPIRE_ROWS_MAX", 3)
    harness.write(*[job(f"j{n}", status="completed", finished_ms=n) for n in range(8)])
    harness.write(*[artifact(f"a{n}", f"j{n}", created_ms=n) for n in range(8)])
    bites, artifact_ids, more = 0, [], True
    while more:
        value = harness.write(Expire(8))
        bites += 1
        artifact_ids += value.artifact_ids
        more = value.more
    assert 3 <= bites <= 4
    assert sorted(artifact_ids) == [f"a{n}" for n in range(8)]
    assert harness.read(queries.list_jobs("default")) == []


def test_a_bite_of_equal_times_still_ends(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "EXPIRE_ROWS_MAX", 2)
    harness.write(*[job(f"j{n}", status="completed", finished_ms=5) for n in range(7)])
    assert harness.write(Expire(8)).more
    assert not harness.write(Expire(8)).more
    assert harness.read(queries.list_jobs("default")) == []


def plans_of(harness: Harness, query: Callable[[Any], Any]) -> list[list[str]]:
    """How the database would run each statement of a query."""
    with harness.store._engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        texts: list[str] = []
        driver.set_trace_callback(texts.append)
        query(connection)
        driver.set_trace_callback(None)
        asked = [text for text in texts if text.startswith(("SELECT", "DELETE", "UPDATE"))]
        return [[row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {text}")] for text in asked]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (queries.job_by_id("default", "j"), "sqlite_autoindex_jobs_1 (tenant=? AND job_id=?)"),
        (queries.job_by_request("default", "r"), "jobs_request (tenant=? AND request_id=?)"),
        (queries.list_jobs("default", before="j"), "sqlite_autoindex_jobs_1 (tenant=? AND job_id<?)"),
        (queries.list_jobs("default", session_id="s"), "jobs_session (tenant=? AND session_id=?)"),
        (queries.list_jobs("default", status="failed"), "jobs_status (tenant=? AND status=?)"),
        (queries.artifact_by_id("default", "a"), "PRIMARY KEY (artifact_id=?)"),
        (queries.unknown_artifacts(["a", "b"]), "PRIMARY KEY (artifact_id=?)"),
        (queries.events_of("default", "j", 5), "PRIMARY KEY (tenant=? AND job_id=? AND seq>?)"),
        (queries.recovered, "jobs_finished (finished_ms=?)"),
        (lambda connection: statements.expire(connection, 0), "jobs_finished (finished_ms<?)"),
    ],
)
def test_queries_use_an_index(harness: Harness, query: Callable, index: str) -> None:
    plans = [line for plan in plans_of(harness, query) for line in plan]
    assert any(index in plan for plan in plans), plans
    scans = [plan for plan in plans if plan.startswith(("SCAN jobs", "SCAN job_events"))]
    assert not [plan for plan in scans if "INDEX jobs_request" not in plan], plans  # all requests are read, at start
    if query is not queries.recovered:  # it sorts, once at start
        assert not [plan for plan in plans if "FOR ORDER BY" in plan], plans


def test_stats_read_no_jobs_but_their_index(harness: Harness) -> None:
    plans = plans_of(harness, queries.job_stats("default", ["s"]))
    searches = [line for plan in plans for line in plan if "jobs" in line]
    assert len(searches) == 5
    assert set(searches) == {
        "SEARCH jobs USING COVERING INDEX jobs_ended (tenant=? AND session_id=? AND finished_ms>?)"
    }


@pytest.mark.parametrize("name", ["job_update", "outcome"])
def test_updates_use_the_key(harness: Harness, name: str) -> None:
    statement = getattr(statements.Statements(harness.store._engine.dialect), name)
    parameters = [None] * statement.text.count("?")
    with harness.store._engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.text}", tuple(parameters)).all()
    assert [row[3] for row in plan] == ["SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (tenant=? AND job_id=?)"]


def test_questions_are_bounded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, held = threading.Event(), threading.Event()
    monkeypatch.setattr(reader, "QUEUE_MAX", 2)
    harness.store.read(lambda _: (held.set(), hold.wait(20)), "held")
    assert held.wait(20)
    for token in ("first", "second", "third"):
        harness.store.read(lambda _: "answer", token)
    assert isinstance(harness.wait("third").error, QueueFull)
    hold.set()
    assert [harness.wait(token).value for token in ("first", "second")] == ["answer", "answer"]
