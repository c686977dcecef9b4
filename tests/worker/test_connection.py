"""The worker and an orchestrator that refuses, falls silent, goes away and comes back."""

import time
from typing import Any

import pytest

from tests.worker.conftest import Start
from tests.worker.scripted import ScriptedOrchestrator


def test_another_version_ends_the_worker(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start()
    orchestrator.expect("hello")
    orchestrator.send("refused", error={"code": "unsupported_protocol", "message": "This server speaks protocol 2."})
    assert worker.wait() == 3
    assert "unsupported_protocol" in worker.log


def test_a_name_in_use_is_asked_for_again(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    start()
    first = orchestrator.expect("hello")
    orchestrator.send("refused", error={"code": "request_conflict", "message": "The name is in use."})
    second = orchestrator.welcome()
    assert second["instance_id"] == first["instance_id"]
    assert orchestrator.run("j", "system.noop", {})["success"]


def test_hello_is_said_until_it_is_answered(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    start()
    first = orchestrator.expect("hello")
    second = orchestrator.expect("hello", 5)
    assert second["identity"] == first["identity"]
    orchestrator.send_welcome("w1")
    assert orchestrator.run("j", "system.noop", {})["success"]


def test_a_worker_started_first_waits(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    orchestrator.vanish()
    start()
    time.sleep(2.5)
    orchestrator.bind()
    orchestrator.welcome(5)
    assert len([message for message in orchestrator.seen if message["kind"] == "hello"]) == 1  # none was queued


def test_a_silent_orchestrator_is_called_anew(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    orchestrator.lease_ms = 1000
    start()
    first = orchestrator.welcome()
    orchestrator.assign("j", "system.noop", {"sleep_ms": 2500, "echo": "kept"})
    orchestrator.acknowledge = False
    second = orchestrator.welcome(5)
    assert second["identity"] != first["identity"]
    assert second["instance_id"] == first["instance_id"]
    assert [(job["job_id"], job["state"]) for job in second["held"]] == [("j", "running")]
    orchestrator.acknowledge = True
    assert orchestrator.expect("result")["data"] == {"echo": "kept"}


def test_a_restarted_orchestrator_is_handed_what_was_done(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    start()
    orchestrator.welcome()
    orchestrator.assign("done", "system.noop", {"echo": 1}, attachments=[b"x" * 1_000_000])
    orchestrator.expect("result")
    orchestrator.assign("away", "system.noop", {"sleep_ms": 1500, "echo": 2})
    orchestrator.wait_for(lambda: orchestrator.held()["away"] == "running")
    orchestrator.vanish()
    time.sleep(2)  # "away" ends meanwhile
    orchestrator.bind()
    orchestrator.epoch = "epoch-2"
    begun = time.monotonic()
    message = orchestrator.receive(5)
    while message is not None and message["kind"] != "hello":  # an orchestrator that knows nobody
        orchestrator.send("rehello", orchestrator_epoch="epoch-2")
        message = orchestrator.receive(5)
    assert message is not None
    assert time.monotonic() - begun < 5
    assert {job["job_id"]: job["state"] for job in message["held"]} == {"done": "done", "away": "done"}
    orchestrator.send_welcome("w1")
    results: dict[str, Any] = {}
    for _ in range(2):
        result = orchestrator.expect("result")
        results[result["job_id"]] = result
        orchestrator.acknowledge_result(result)
    assert results["done"]["frames"] == [b"x" * 1_000_000]
    assert results["away"]["data"] == {"echo": 2}
    assert orchestrator.held() == {}


def test_the_device_rests_while_too_many_results_wait(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    start("--slots", "8")
    orchestrator.welcome()
    for number in range(9):  # 9 × 60 MiB are more than 512 MiB
        orchestrator.assign(f"j{number}", "test.large", {"nbytes": 60 * 1024 * 1024})
        orchestrator.expect("result", job_id=f"j{number}")
    orchestrator.assign("next", "system.noop", {})
    orchestrator.expect_none("result", 1)
    assert orchestrator.held()["next"] == "assigned"
    orchestrator.acknowledge_result({"job_id": "j0", "attempt": 1})
    orchestrator.expect("result", job_id="next")


@pytest.mark.parametrize("kind", ["rehello", "heartbeat_ack"])
def test_one_hello_answers_many_calls_for_it(orchestrator: ScriptedOrchestrator, start: Start, kind: str) -> None:
    start()
    orchestrator.welcome()
    for _ in range(20):
        orchestrator.send(kind, orchestrator_epoch="epoch-9")
    orchestrator.expect("hello")
    orchestrator.expect_none("hello", 1)
