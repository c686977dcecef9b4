"""What sessions tell of their jobs: of every outcome, of pictures, of lost workers, and the same after a restart."""

import time
from collections.abc import Iterator

import pytest

from orchestrator.client import Client
from protocol.errors import AtelierError
from protocol.schemas.session import SessionInfo
from tests.e2e.house import ROOT, House, eventually, lines, told


@pytest.fixture(scope="module")
def server() -> Iterator[House]:
    with House(models_dir=ROOT / "models") as house:
        house.start_worker("w1", "--models", str(ROOT / "models"), "--slots", "1")
        house.start_orchestrator()
        house.wait_for_workers("w1")
        yield house


def steps(info: SessionInfo) -> int:
    return info.analytics.steps


def lose_a_worker(server: House, client: Client, session_id: str) -> None:
    """A job of the session begins on `w2`, which is killed; it ends there, when such a worker is back."""
    file = server.file("lost")
    worker = server.start_worker("w2")
    server.wait_for_workers("w2")
    data = {"echo": told(append=file), "sleep_ms": 500}
    job = client.submit("system.noop", data, wait=False, session_id=session_id, worker_id="w2")
    eventually(lambda: lines(file) == 1)
    worker.kill_all()
    server.wait_for_workers(gone=["w2"])
    assert client.sessions.get(session_id).analytics.losses == 1  # told while the job waits
    server.start_worker("w2")
    assert job.result(20).attempt == 2


@pytest.mark.timeout(120)
def test_analytics_of_every_outcome_survive_a_restart(server: House) -> None:
    client = server.client()
    session_id = client.sessions.create("every outcome").session_id
    other = client.sessions.create("another").session_id
    lose_a_worker(server, client, session_id)

    on_w1 = {"session_id": session_id, "worker_id": "w1"}
    picture = {"prompt": "a red circle", "steps": 3, "num_images": 2, "model_id": "demo"}
    assert len(client.run("inference.text2img", picture, timeout_s=90, **on_w1).images) == 2
    client.run("system.noop", {"echo": told(steps=5)}, **on_w1)
    client.run("system.noop", {"echo": told(steps=7)}, session_id=other)
    failing = {"echo": told(append=server.file("failing"), fail_times=100)}
    for code, data, options in (
        ("unavailable", failing, {"wait": False}),  # tried three times
        ("timeout_run", {"sleep_ms": 5000}, {"run_timeout_ms": 300}),
        ("invalid_request", {**picture, "scheduler": "euler", "eta": 1}, {}),  # as the worker finds
    ):
        action = "inference.text2img" if "prompt" in data else "system.noop"
        with pytest.raises(AtelierError) as caught:
            client.submit(action, data, **options, **on_w1).result(30)
        assert caught.value.code == code
    running = client.submit("system.noop", {"echo": told(steps=500)}, **on_w1)
    before = steps(client.sessions.get(session_id))
    eventually(lambda: steps(client.sessions.get(session_id)) > before + 5)  # of the job under way
    assert client.sessions.get(session_id).jobs["processing"] == 1
    running.cancel()

    info = client.sessions.get(session_id)
    check(info)
    assert (info.analytics.steps - before) < 500
    assert client.sessions.get(other).analytics.steps == 7
    time.sleep(0.5)  # what is written behind
    assert server.orchestrator is not None
    server.orchestrator.kill()
    server.start_orchestrator()
    again = client.sessions.get(session_id)
    assert (again.jobs, again.analytics) == (info.jobs, info.analytics)
    assert [item for item in client.sessions.list() if item.session_id == session_id] == [again]


def test_a_job_that_runs_through_a_restart_waited_as_long_as_it_did(server: House) -> None:
    client, file = server.client(), server.file("through")
    session_id = client.sessions.create("through").session_id
    data = {"echo": told(append=file), "sleep_ms": 2500}
    job = client.submit("system.noop", data, wait=False, session_id=session_id, worker_id="w1")
    eventually(lambda: lines(file) == 1)
    time.sleep(0.5)  # what is written behind
    assert server.orchestrator is not None
    server.orchestrator.kill()
    server.start_orchestrator()
    live = client.sessions.get(session_id).analytics
    assert (live.queue_ms, live.retries) == (None, 0)
    assert (job.result(20).attempt, lines(file)) == (1, 1)
    ended = client.sessions.get(session_id).analytics
    assert ended.queue_ms is not None
    assert ended.queue_ms.p95 < 400  # not until it was adopted, half a second later at the least
    assert [(at.worker_id, at.jobs) for at in ended.devices] == [("w1", 1)]


def check(info: SessionInfo) -> None:
    told_of = info.analytics
    assert {status: count for status, count in info.jobs.items() if count} == {
        "completed": 3, "failed": 3, "cancelled": 1,
    }  # fmt: skip
    assert told_of.images == 2
    assert told_of.steps > 2 * 3 + 5
    assert told_of.failures == {"unavailable": 1, "timeout_run": 1, "invalid_request": 1}
    assert (told_of.retries, told_of.losses) == (1 + 2, 1)
    assert [(at.worker_id, at.device_id, at.jobs) for at in told_of.devices] == [("w1", "cpu", 4), ("w2", "cpu", 1)]
    assert told_of.queue_ms is not None
    assert told_of.run_ms is not None
    assert 0 <= told_of.queue_ms.p50 <= told_of.queue_ms.p95 < 30_000
    assert 300 <= told_of.run_ms.p95 < 60_000
