"""The orchestrator is killed at any time, under load: what it accepted is done, once, and nobody asks again."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import Client, Job
from protocol.errors import AtelierError, RequestConflict
from protocol.ids import new_id
from tests.e2e.house import House, eventually, lines, told

ROUNDS = 3
SEED = 20
WORKERS_BACK_S = 5.0
WRITTEN_BEHIND_S = 0.5  # by then the disk knows that a job runs; one that is killed before is run again


@pytest.fixture(scope="module")
def server() -> Iterator[House]:
    """One worker that holds three jobs and runs them one by one."""
    with House(result_keep_ms=300) as house:
        house.start_worker("w1", "--slots", "3")
        house.start_orchestrator()
        house.wait_for_workers("w1")
        yield house


def restart(server: House) -> None:
    """Kill it, start it again, and see that the workers come back in time."""
    assert server.orchestrator is not None
    server.orchestrator.kill()
    server.start_orchestrator()
    assert server.wait_for_workers(*(worker.name for worker in server.workers)) < WORKERS_BACK_S


def test_held_jobs_are_adopted(server: House) -> None:
    """Running or in the worker's mailbox, they run once; neither client does anything for it."""
    client = server.client()
    files = [server.file(f"adopted-{number}") for number in range(3)]
    jobs = [
        client.submit("system.noop", {"echo": told(append=file), "sleep_ms": ms}, wait=wait, events=["state"])
        for file, wait, ms in zip(files, (True, False, True), (2500, 400, 400), strict=True)
    ]
    eventually(lambda: client.stats().jobs.get("processing") == 3)
    time.sleep(WRITTEN_BEHIND_S)
    restart(server)
    for job, file in zip(jobs, files, strict=True):
        result = job.result(15)
        assert (result.attempt, result.data["echo"]) == (1, told(append=file))
        assert lines(file) == 1
    for job in jobs:
        assert [event.data["status"] for event in job.events(5)][-1] == "completed"


def test_results_made_while_the_orchestrator_was_away(server: House) -> None:
    client, file = server.client(), server.file("away")
    waiting = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 400})
    accepted = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 400}, wait=False)
    eventually(lambda: client.stats().jobs.get("processing") == 2)
    time.sleep(WRITTEN_BEHIND_S)
    assert server.orchestrator is not None
    server.orchestrator.kill()
    eventually(lambda: lines(file) == 2)
    time.sleep(0.5)
    server.start_orchestrator()
    assert (waiting.result(15).attempt, accepted.result(15).attempt) == (1, 1)
    assert lines(file) == 2


class Load:
    """Submits accepted and waiting jobs as fast as they are answered, through kills of the orchestrator."""

    def __init__(self, server: House, folder: Path) -> None:
        self.client: Client = server.client(timeout_s=60)
        self.accepted: dict[str, Path] = {}  # job_id -> what its executions append to
        self.waiting: list[tuple[Job, Path]] = []
        self.errors: list[AtelierError] = []
        self._folder = folder
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._submit, args=(number,)) for number in range(3)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _submit(self, number: int) -> None:
        chance = random.Random(f"{SEED}-{number}")
        count = 0
        while not self._stopped.wait(0.02):
            count += 1
            file = self._folder / f"{number}-{count}"
            data = {"echo": told(append=file), "sleep_ms": chance.choice([0, 0, 10, 100])}
            try:
                if chance.random() < 0.5:
                    job = self.client.submit("system.noop", data, wait=False)
                    assert job.job_id is not None
                    self.accepted[job.job_id] = file
                else:
                    self.waiting.append((self.client.submit("system.noop", data), file))
            except AtelierError as error:
                self.errors.append(error)


@pytest.mark.timeout(120)
def test_killed_at_random_points_under_load(server: House, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    server.start_worker("w2", "--slots", "2")
    server.wait_for_workers("w2")
    load = Load(server, tmp_path)
    load.start()
    try:
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0.2, 1.0))
            restart(server)
    finally:
        load.stop()
    assert not load.errors
    assert len(load.accepted) > 20
    assert len(load.waiting) > 20
    executions = Counter[int]()
    for job_id, file in load.accepted.items():
        result = load.client.jobs.result(job_id, 30)
        assert result.job_id == job_id
        assert result.data["echo"] == told(append=file)
        executions[lines(file)] += 1
    for job, file in load.waiting:
        assert job.result(30).data["echo"] == told(append=file)
        executions[lines(file)] += 1
    assert executions[0] == 0  # none has a result without having run
    # An attempt may be repeated where the kill fell between a worker's result and its acknowledgement; most are not.
    assert executions[1] > 0.9 * executions.total(), executions
    stored = server.client().jobs.list(status="completed", limit=1000)
    assert set(load.accepted) <= {info.job_id for info in stored}
    eventually(lambda: server.client().stats().queued == 0)


def test_the_same_request_after_a_restart_and_after_it_was_forgotten(server: House) -> None:
    client, file, request_id = server.client(), server.file("again"), new_id()
    data = {"echo": told(append=file)}
    first = client.submit("system.noop", data, wait=False, request_id=request_id)
    assert first.result(10).data["echo"] == data["echo"]
    time.sleep(0.5)  # result_keep_ms: now only the disk knows it
    for _ in range(2):
        again = client.submit("system.noop", data, wait=False, request_id=request_id)
        assert again.job_id == first.job_id
        assert again.result(10).data["echo"] == data["echo"]
        told_again = client.submit("system.noop", data, wait=False, request_id=request_id, events=["state"])
        assert [event.data["status"] for event in told_again.events(5)] == ["pending", "processing", "completed"]
        with pytest.raises(RequestConflict):
            client.submit("system.noop", {"echo": 2}, wait=False, request_id=request_id)
        restart(server)
    assert lines(file) == 1


def test_an_accepted_job_that_nobody_began(server: House) -> None:
    """Its timeouts, priority and session are there after the restart, and so is its order."""
    client = server.client()
    session = client.sessions.create("kept", priority=7)
    blocks = [client.submit("system.noop", {"sleep_ms": 600}, wait=False) for _ in range(5)]
    job = client.submit("system.noop", {"echo": "kept"}, wait=False, session_id=session.session_id, deadline_ms=60_000)
    assert job.job_id is not None
    before = client.jobs.get(job.job_id)
    eventually(lambda: client.stats().jobs.get("processing") == 5)
    time.sleep(WRITTEN_BEHIND_S)
    restart(server)
    after = client.jobs.get(job.job_id)
    assert (after.priority, after.session_id, after.created_at) == (7, session.session_id, before.created_at)
    assert sum(client.sessions.get(session.session_id).jobs.values()) == 1
    assert job.result(15).data == {"echo": "kept"}
    assert client.sessions.get(session.session_id).jobs["completed"] == 1
    for block in blocks:
        assert block.result(15).attempt == 1


def test_drained_on_sigterm(server: House) -> None:
    """What runs ends, what waits in memory is told `draining`, what was accepted runs after the restart."""
    client, raw = server.client(), server.raw()
    eventually(lambda: client.stats().workers_free == 2)
    running = [client.submit("system.noop", {"echo": n, "sleep_ms": 300}, events=["state"]) for n in range(5)]
    eventually(lambda: client.stats().jobs.get("processing") == 5)
    raw.request("waiting", "system.noop")
    accepted = client.submit("system.noop", {"echo": "accepted"}, wait=False)
    assert server.orchestrator is not None
    server.orchestrator.signal(signal.SIGTERM)
    refused = raw.answer()
    assert (refused["request_id"], refused["error"]["code"]) == ("waiting", "draining")
    assert refused["error"]["retryable"]
    assert [job.result(10).data for job in running] == [{"echo": n} for n in range(5)]
    assert server.orchestrator.wait() == 0
    server.start_orchestrator()
    assert accepted.result(15).data == {"echo": "accepted"}
