"""The life of a job as a user steers it: timeouts, cancelling, priority, sessions, events, a worker that leaves."""

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from orchestrator.client import Client, Job
from protocol.errors import (
    AtelierError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    TimeoutQueue,
    TimeoutRun,
)
from tests.e2e.house import House, eventually, lines, told

STEP_S = 0.25  # generous: a step of the noop takes 10 ms


@pytest.fixture
def busy(client: Client, house: House) -> Iterator[Job]:
    """A job that occupies the only worker until the test is over."""
    file = house.file(f"busy-{time.time()}")
    job = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 60_000}, priority=9)
    eventually(lambda: lines(file) == 1)
    yield job
    job.cancel()
    ready(client)


def ready(client: Client) -> None:
    """The worker is free again, which shows by its doing something."""
    assert client.run("system.noop", {"echo": "ready"}, timeout_s=5).data == {"echo": "ready"}


def fails_with(job: Job, error: type[AtelierError], after_s: float, since: float) -> None:
    with pytest.raises(error):
        job.result(10)
    took = time.monotonic() - since
    assert after_s - 0.05 <= took < after_s + 1.0


@pytest.mark.parametrize("wait", [True, False])
def test_queue_timeout(client: Client, busy: Job, wait: bool) -> None:
    begun = time.monotonic()
    job = client.submit("system.noop", wait=wait, queue_timeout_ms=300)
    fails_with(job, TimeoutQueue, 0.3, begun)


def test_queue_timeout_does_not_count_once_it_runs(client: Client) -> None:
    assert client.run("system.noop", {"echo": 1, "sleep_ms": 500}, queue_timeout_ms=200).data == {"echo": 1}


@pytest.mark.parametrize("wait", [True, False])
def test_run_timeout(client: Client, wait: bool) -> None:
    begun = time.monotonic()
    job = client.submit("system.noop", {"sleep_ms": 60_000}, wait=wait, run_timeout_ms=300)
    fails_with(job, TimeoutRun, 0.3, begun)
    ready(client)


@pytest.mark.parametrize("wait", [True, False])
def test_deadline(client: Client, wait: bool) -> None:
    begun = time.monotonic()
    running = client.submit("system.noop", {"sleep_ms": 60_000}, wait=wait, deadline_ms=300)
    queued = client.submit("system.noop", wait=wait, deadline_ms=200, priority=0)
    fails_with(queued, DeadlineExceeded, 0.2, begun)
    fails_with(running, DeadlineExceeded, 0.3, begun)
    ready(client)


@pytest.mark.parametrize("wait", [True, False])
def test_cancel_while_waiting(client: Client, house: House, busy: Job, wait: bool) -> None:
    file = house.file(f"cancelled-{wait}")
    job = client.submit("system.noop", {"echo": told(append=file)}, wait=wait, events=["state"])
    eventually(lambda: job.job_id is not None)
    assert job.job_id is not None
    assert client.jobs.cancel(job.job_id).status == "cancelled"
    with pytest.raises(Cancelled):
        job.result(5)
    assert client.jobs.cancel(job.job_id).status == "cancelled"  # again, and harmless
    assert [event.data["status"] for event in job.events(5)][-1] == "cancelled"
    busy.cancel()
    ready(client)
    assert lines(file) == 0


@pytest.mark.parametrize("wait", [True, False])
def test_cancel_while_running(client: Client, house: House, wait: bool) -> None:
    file = house.file(f"running-{wait}")
    job = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 60_000}, wait=wait)
    eventually(lambda: lines(file) == 1)
    begun = time.monotonic()
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(5)
    ready(client)  # the device has left the job
    assert time.monotonic() - begun < 2 * STEP_S + house.settings["heartbeat_ms"] / 1000


def test_cancel_after_the_end_changes_nothing(client: Client) -> None:
    job = client.submit("system.noop", {"echo": 1})
    assert job.result(5).data == {"echo": 1}
    assert job.job_id is not None
    assert client.jobs.cancel(job.job_id).status == "completed"
    with pytest.raises(NotFound):
        client.jobs.cancel("no-such-job")


def test_priority_overtakes(client: Client, busy: Job) -> None:
    jobs = {
        name: client.submit("system.noop", {"sleep_ms": 50}, priority=priority)
        for name, priority in {"first": 4, "second": 4, "last": 0, "urgent": 9, "early": 5}.items()
    }
    done: list[str] = []
    for name, job in jobs.items():
        job.add_done_callback(lambda _, name=name: done.append(name))
    eventually(lambda: client.stats().queued == 5)
    busy.cancel()
    eventually(lambda: len(done) == 5)
    assert done == ["urgent", "early", "first", "second", "last"]


def test_progress_and_events(client: Client) -> None:
    data = {"echo": told(steps=5)}
    job = client.submit("system.noop", data, wait=False, events=["state", "progress"])
    events = list(job.events(10))
    assert [event.data["status"] for event in events if event.kind == "state"] == ["pending", "processing", "completed"]
    assert [event.data["step"] for event in events if event.kind == "progress"] == [1, 2, 3, 4, 5]
    assert all(before.seq < after.seq for before, after in pairwise(events))
    assert job.job_id is not None
    replayed = list(client.jobs.events(job.job_id))  # of progress the last one is kept
    assert [event.seq for event in replayed] == [events[0].seq, events[1].seq, events[-2].seq, events[-1].seq]


def test_a_retryable_failure_is_tried_again(client: Client, house: House) -> None:
    file = house.file("retried")
    result = client.run("system.noop", {"echo": told(append=file, fail_times=2)})
    assert (result.attempt, lines(file)) == (3, 3)
    file = house.file("given-up")
    with pytest.raises(AtelierError) as caught:
        client.run("system.noop", {"echo": told(append=file, fail_times=9)})
    assert (caught.value.code, lines(file)) == ("unavailable", 3)


def test_sessions(client: Client, house: House) -> None:
    session = client.sessions.create("portraits", defaults={"echo": "by default", "sleep_ms": 20}, priority=8)
    in_it = {"session_id": session.session_id}
    assert client.run("system.noop", {}, **in_it).data == {"echo": "by default"}
    assert client.run("system.noop", {"echo": "said"}, **in_it).data == {"echo": "said"}
    failed = client.submit("system.noop", {"sleep_ms": 5000}, run_timeout_ms=50, **in_it)
    with pytest.raises(TimeoutRun):
        failed.result(5)
    file = house.file("session")
    running = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 60_000}, **in_it)
    eventually(lambda: lines(file) == 1)
    waiting = [client.submit("system.noop", {"sleep_ms": 60_000}, wait=wait, **in_it) for wait in (True, False)]
    eventually(lambda: client.sessions.get(session.session_id).jobs["pending"] == 2)
    info = client.sessions.get(session.session_id)
    assert (info.jobs["completed"], info.jobs["failed"], info.jobs["processing"]) == (2, 1, 1)
    assert info.progress is not None
    assert 0.5 <= info.progress < 1
    assert client.jobs.get(waiting[1].job_id or "").priority == 8
    assert client.sessions.cancel(session.session_id).cancelled_jobs == 3
    for job in (running, *waiting):
        with pytest.raises(Cancelled):
            job.result(5)
    assert client.sessions.get(session.session_id).status == "cancelled"
    with pytest.raises(NotFound):
        client.run("system.noop", {}, **in_it)
    assert client.sessions.list()[0].session_id == session.session_id
    ready(client)


def test_a_session_whose_defaults_do_not_suit(client: Client) -> None:
    with pytest.raises(InvalidRequest):
        client.sessions.create(defaults={"step": 1})
    session = client.sessions.create(defaults={"sleep_ms": "soon"})
    with pytest.raises(InvalidRequest):
        client.run("system.noop", {}, session_id=session.session_id)


def test_pages_of_jobs(client: Client) -> None:
    session = client.sessions.create("pages").session_id
    made = [client.run("system.noop", {"sleep_ms": 2}, session_id=session).job_id for _ in range(5)]
    eventually(lambda: len(client.jobs.list(session_id=session)) == 5)
    first = client.jobs.list(session_id=session, limit=3)
    rest = client.jobs.list(session_id=session, limit=3, before=first[-1].job_id)
    assert [info.job_id for info in first + rest] == made[::-1]


def test_draining_a_worker(client: Client, house: House) -> None:
    """It ends what it holds, takes nothing more, and leaves."""
    worker, file = house.start_worker("leaving"), house.file("leaving")
    house.wait_for_workers("leaving")
    data = {"echo": told(append=file), "sleep_ms": 600}
    job = client.submit("system.noop", data, worker_id="leaving")
    eventually(lambda: lines(file) == 1)
    assert client.drain_worker("leaving").status == "draining"
    other = client.submit("system.noop", {"echo": "other"})
    assert other.result(5).worker_id == "w1"
    assert job.result(5).worker_id == "leaving"
    assert worker.wait(5) == 0
    house.wait_for_workers("w1", gone=["leaving"])
