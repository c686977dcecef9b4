"""The same request twice is one job: one execution, and an answer for everyone who asked."""

import time

import pytest

from orchestrator.client import Client
from protocol.errors import RequestConflict
from protocol.ids import new_id
from tests.e2e.house import House, eventually, lines, told

CONNECTIONS, TIMES = 5, 20


@pytest.mark.parametrize("wait", [True, False])
def test_a_hundred_times_the_same_request(house: House, wait: bool) -> None:
    request_id, file = new_id(), house.file(f"hundred-{wait}")
    raws = [house.raw() for _ in range(CONNECTIONS)]
    for raw in raws:
        for _ in range(TIMES):
            raw.request(request_id, "system.noop", {"echo": told(append=file), "sleep_ms": 300}, wait=wait)
    answers = [raw.answer() for raw in raws for _ in range(TIMES)]
    assert len(answers) == 100
    assert {answer["request_id"] for answer in answers} == {request_id}
    assert len({answer["job_id"] for answer in answers}) == 1
    assert all(answer["success"] for answer in answers)
    if wait:
        assert {(answer["status"], answer["attempt"]) for answer in answers} == {("completed", 1)}
    else:
        raws[0].request(new_id(), "job.result", {"job_id": answers[0]["job_id"], "wait_ms": 5000})
        assert raws[0].answer()["status"] == "completed"
    assert all(raw.receive(0.1) is None for raw in raws), "an answer too many"
    assert lines(file) == 1


@pytest.mark.parametrize("wait", [True, False])
def test_the_same_id_with_another_body(house: House, client: Client, wait: bool) -> None:
    request_id = new_id()
    job = client.submit("system.noop", {"echo": 1, "sleep_ms": 200}, wait=wait, request_id=request_id)
    eventually(lambda: job.job_id is not None)
    with Client(house.endpoint, timeout_s=10) as other, pytest.raises(RequestConflict):
        other.run("system.noop", {"echo": 2, "sleep_ms": 200}, request_id=request_id)
    assert job.result(10).data == {"echo": 1}
    with Client(house.endpoint, timeout_s=10) as other, pytest.raises(RequestConflict):  # after its end, too
        other.run("system.noop", {"echo": 2, "sleep_ms": 200}, request_id=request_id)


def test_waiting_for_a_job_that_was_accepted(house: House, client: Client) -> None:
    request_id, file = new_id(), house.file("accepted-then-waited")
    data = {"echo": told(append=file), "sleep_ms": 300}
    accepted = client.submit("system.noop", data, wait=False, request_id=request_id)
    waiting = client.submit("system.noop", data, request_id=request_id)
    assert waiting.result(10).job_id == accepted.job_id
    assert client.run("system.noop", data, request_id=request_id).job_id == accepted.job_id  # after its end, too
    assert lines(file) == 1


def test_a_waiting_job_cannot_become_an_accepted_one(client: Client) -> None:
    request_id = new_id()
    client.run("system.noop", {"echo": 1}, request_id=request_id)
    with pytest.raises(RequestConflict):
        client.submit("system.noop", {"echo": 1}, wait=False, request_id=request_id)


def test_waiting_for_a_job_that_only_the_disk_remembers() -> None:
    """Accepted, done and forgotten: the same request with `wait: true` gets its result, also after a restart."""
    with House(result_keep_ms=100) as house:
        house.start_orchestrator()
        house.start_worker("w")
        client, request_id, file = house.client(), new_id(), house.file("forgotten")
        data = {"echo": told(append=file)}
        accepted = client.submit("system.noop", data, wait=False, request_id=request_id)
        accepted.result(20)
        time.sleep(0.5)
        assert client.run("system.noop", data, request_id=request_id).job_id == accepted.job_id
        with pytest.raises(RequestConflict):
            client.run("system.noop", {"echo": 2}, request_id=request_id)
        assert house.orchestrator is not None
        house.orchestrator.kill()
        house.start_orchestrator()
        assert house.client().run("system.noop", data, request_id=request_id).job_id == accepted.job_id
        assert lines(file) == 1
