"""Workers that are killed, stopped or hang: their jobs go on, and each has one result."""

import signal
import time
from collections.abc import Iterator

import pytest

from orchestrator.client import Job
from protocol.errors import Poisoned
from tests.e2e.house import House, Worker, eventually, lines, told


@pytest.fixture(scope="module")
def server() -> Iterator[House]:
    with House() as house:
        house.start_orchestrator()
        yield house


@pytest.fixture(scope="module", autouse=True)
def long_job(server: House) -> Job:
    """Runs for ten leases, in one step, while the other tests take place; its worker takes nothing else."""
    server.start_worker("slow")
    server.wait_for_workers("slow")
    lease_s = server.settings["lease_ms"] / 1000
    client, file = server.client(), server.file("long")
    job = client.submit("system.noop", {"echo": told(append=file, hang_s=10 * lease_s)})
    eventually(lambda: lines(file) == 1)
    client.drain_worker("slow")
    return job


@pytest.fixture
def worker(server: House) -> Iterator[Worker]:
    yield from _one(server)


@pytest.fixture
def hanging(server: House) -> Iterator[Worker]:
    """A worker whose steps may last a second, and that takes three jobs."""
    yield from _one(server, "--quantum-ms-max", "1000", "--slots", "3")


def _one(server: House, *arguments: str) -> Iterator[Worker]:
    worker = server.start_worker("w1", *arguments)
    server.wait_for_workers("w1")
    yield worker
    for each in server.workers[1:]:  # all but the long job's
        if each.alive:
            each.signal(signal.SIGTERM)
            each.wait()
    del server.workers[1:]
    server.wait_for_workers(gone=["w1", "w2"])


def _attempts(job: Job) -> list[int]:
    """The attempts that began, as the state events tell."""
    return [event.data["attempt"] for event in job.events() if event.data["status"] == "processing"]


def test_a_killed_child_is_replaced(server: House, worker: Worker) -> None:
    client, file = server.client(), server.file("child")
    job = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 1500}, events=["state"])
    eventually(lambda: lines(file) == 1)
    first = worker.child
    first.kill()
    result = job.result(15)
    assert (result.attempt, result.worker_id) == (2, "w1")
    assert _attempts(job) == [1, 2]
    assert lines(file) == 2
    assert worker.child.pid != first.pid


def test_a_killed_worker_is_replaced_by_another(server: House, worker: Worker) -> None:
    client, file = server.client(), server.file("worker")
    server.start_worker("w2")
    server.wait_for_workers("w1", "w2")
    jobs = [
        client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 600}, wait=wait) for wait in (True, False)
    ]
    eventually(lambda: lines(file) == 2)  # one on each
    worker.kill_all()
    results = [job.result(15) for job in jobs]
    assert sorted((result.attempt, result.worker_id) for result in results) == [(1, "w2"), (2, "w2")]
    assert lines(file) == 3


def test_a_late_result_is_dropped(server: House, worker: Worker) -> None:
    client, raw, file = server.client(), server.raw(), server.file("late")
    raw.request("late", "system.noop", {"echo": told(append=file), "sleep_ms": 600})
    eventually(lambda: lines(file) == 1)
    worker.freeze()
    server.wait_for_workers(gone=["w1"])
    server.start_worker("w2")
    answer = raw.answer()
    assert (answer["status"], answer["attempt"], answer["worker_id"]) == ("completed", 2, "w2")
    worker.thaw()  # its own attempt is over at once, and it tells so
    server.wait_for_workers("w1", "w2")
    assert raw.receive(1) is None, "a second answer"
    info = client.jobs.get(answer["job_id"])
    assert (info.status, info.attempt, info.worker_id) == ("completed", 2, "w2")
    eventually(lambda: not any(each.jobs for each in client.workers() if each.worker_id != "slow"))  # no slot is lost
    assert lines(file) == 2


def test_a_pause_within_the_lease_costs_nothing(server: House, worker: Worker) -> None:
    client, file = server.client(), server.file("pause")
    job = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 600})
    eventually(lambda: lines(file) == 1)
    worker.freeze()
    time.sleep(0.5)
    worker.thaw()
    assert job.result(10).attempt == 1
    assert lines(file) == 1


def test_a_hung_device_is_killed_and_three_losses_are_poison(server: House, hanging: Worker) -> None:
    client = server.client()
    bad, good = server.file("bad"), [server.file(f"good{number}") for number in range(2)]
    poison = client.submit("system.noop", {"echo": told(append=bad, hang_s=600)}, wait=False, events=["state"])
    neighbours = [client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 50}) for file in good]
    with pytest.raises(Poisoned) as caught:
        poison.result(30)
    assert caught.value.details == {}
    assert _attempts(poison) == [1, 2, 3]
    assert lines(bad) == 3
    for neighbour, file in zip(neighbours, good, strict=True):
        assert neighbour.result(10).data["echo"] == told(append=file)
        assert lines(file) == 1  # it was waiting behind the hung one and never began there
    assert hanging.alive
    assert "the device thread hangs" in hanging.log
    assert client.run("system.noop", {"echo": "well"}).data == {"echo": "well"}


def test_a_worker_that_is_told_to_stop_hands_back_what_it_has_not_begun(server: House, hanging: Worker) -> None:
    client, running, waiting = server.client(), server.file("running"), server.file("waiting")
    first = client.submit("system.noop", {"echo": told(append=running), "sleep_ms": 500})
    second = client.submit("system.noop", {"echo": told(append=waiting)}, events=["state"])
    eventually(lambda: lines(running) == 1 and [len(w.jobs) for w in client.workers() if w.worker_id == "w1"] == [2])
    hanging.signal(signal.SIGTERM)
    assert first.result(10).attempt == 1  # it ended within the grace
    assert hanging.wait() == 0
    server.start_worker("w2")
    result = second.result(10)
    assert (result.attempt, result.worker_id) == (2, "w2")
    assert (lines(running), lines(waiting)) == (1, 1)


def test_a_job_of_ten_leases_runs_once(server: House, long_job: Job) -> None:
    result = long_job.result(30)
    assert (result.attempt, result.worker_id) == (1, "slow")
    assert result.timing is not None
    assert result.timing.running_ms >= 10 * server.settings["lease_ms"]
    assert lines(server.file("long")) == 1
    assert server.workers[0].wait() == 0  # it was to leave after this job
