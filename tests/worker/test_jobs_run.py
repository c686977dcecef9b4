"""One worker for this module: jobs in, results out, whatever the jobs do. At the end its child is still the first."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.codec import pack
from protocol.limits import MIB
from protocol.messages import FROM_WORKER, parse_message
from tests.worker.scripted import PLUGIN, ScriptedOrchestrator, WorkerProcess


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ScriptedOrchestrator, WorkerProcess, dict[str, Any]]]:
    scripted = ScriptedOrchestrator()
    worker = WorkerProcess(scripted.endpoint, *PLUGIN, "--slots", "64", "--light-slots", "32")
    try:
        hello = scripted.welcome()
        pid = worker.child.pid
        yield scripted, worker, hello
        assert worker.child.pid == pid
    finally:
        worker.close()
        scripted.close()


@pytest.fixture
def scripted(running: Any) -> Iterator[ScriptedOrchestrator]:
    scripted = running[0]
    scripted.seen.clear()
    yield scripted
    scripted.wait_for(lambda: scripted.held() == {})  # each test cleans up after itself


def test_the_hello(running: Any) -> None:
    hello = running[2]
    assert parse_message(hello, FROM_WORKER) is not None
    assert (hello["protocol"], hello["worker_id"], hello["slots"], hello["held"]) == (1, "w1", 64, [])
    assert (hello["device"]["device_id"], hello["device"]["kind"]) == ("cpu", "cpu")
    assert 0 < hello["device"]["memory_free"] <= hello["device"]["memory_total"]
    capabilities = hello["capabilities"]
    assert {"system.noop", "inference.text2img", "test.sleep"} <= set(capabilities["actions"])
    assert capabilities["models"] == []
    assert {"euler", "EulerDiscreteScheduler"} <= set(capabilities["schedulers"])


def test_echo_with_attachments(scripted: ScriptedOrchestrator) -> None:
    attachments = [b"small", bytes(range(256)) * 4096]
    result = scripted.run("j", "system.noop", {"echo": [1, {"a": None}]}, attachments=attachments)
    assert result["success"]
    assert result["data"] == {"echo": [1, {"a": None}]}
    assert result["frames"] == attachments
    assert [entry["nbytes"] for entry in result["attachments"]] == [5, MIB]


def test_many_at_once_in_order(scripted: ScriptedOrchestrator) -> None:
    for number in range(64):
        scripted.assign(f"j{number}", "system.noop", {"echo": number})
    results = [scripted.expect("result") for _ in range(64)]
    assert [result["data"]["echo"] for result in results] == list(range(64))
    for result in results:
        scripted.acknowledge_result(result)


@pytest.mark.parametrize(
    ("action", "data", "code"),
    [
        ("no.such", {}, "unknown_action"),
        ("system.noop", {"ecko": 1}, "invalid_request"),
        ("system.noop", {"sleep_ms": "1"}, "invalid_request"),
        ("inference.text2img", {"prompt": "x"}, "model_not_found"),
        ("inference.text2img", {"prompt": "x", "model_id": "../../etc"}, "model_not_found"),
        ("test.fail", {}, "internal"),
        ("test.memory", {}, "out_of_memory"),
        ("test.encode_badly", {}, "internal"),
        ("test.large", {"nbytes": 65 * MIB}, "payload_too_large"),
        ("test.large", {"nbytes": 1, "frames": 65}, "payload_too_large"),
        ("test.wide", {"nbytes": MIB}, "payload_too_large"),
    ],
)
def test_failures_have_a_code_and_tell_no_secrets(
    scripted: ScriptedOrchestrator, action: str, data: dict[str, Any], code: str
) -> None:
    result = scripted.run("j", action, data)
    assert not result["success"]
    assert result["error"]["code"] == code
    assert "secret" not in str(result["error"])
    assert "/" not in result["error"]["message"]
    assert scripted.run("after", "system.noop", {})["success"]


def test_what_is_encoded_off_the_device_keeps_its_order(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("pictures", "test.encode", {"seconds": 0.5})
    scripted.assign("other", "system.noop", {})
    other = scripted.expect("result")
    assert other["job_id"] == "other"  # the device did not wait for the encoder
    item, log, result = scripted.expect("event"), scripted.expect("event"), scripted.expect("result")
    assert [item["frames"], log["event"], result["frames"]] == [[b"item"], "log", [b"result"]]
    scripted.acknowledge_result(other)
    scripted.acknowledge_result(result)


@pytest.mark.parametrize("action", ["test.sleep", "test.spin"])
def test_heartbeats_during_a_long_step(scripted: ScriptedOrchestrator, action: str) -> None:
    scripted.assign("long", action, {"seconds": 1.5})
    ages = []
    while (message := scripted.receive(5)) is not None and message["kind"] == "heartbeat":
        ages.append(message["quantum_age_ms"])
        assert [job["state"] for job in message["held"]] in ([], ["running"])
    assert message is not None
    assert message["kind"] == "result"
    assert len(ages) >= 8  # one every 100 ms
    assert ages[-1] > 1000
    assert ages[1:] == sorted(ages[1:])
    assert message["running_ms"] >= 1500
    scripted.acknowledge_result(message)
    assert scripted.expect("heartbeat")["quantum_age_ms"] < 1000


def test_cancel_between_steps(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("j", "system.noop", {"sleep_ms": 60_000})
    scripted.wait_for(lambda: scripted.held() == {"j": "running"})
    scripted.send("cancel", job_id="j", attempt=1)
    result = scripted.expect("result", 1)
    assert (result["job_id"], result["success"], result["error"]["code"]) == ("j", False, "cancelled")
    scripted.acknowledge_result(result)
    assert scripted.run("next", "system.noop", {})["success"]


def test_a_cancelled_job_is_held_until_the_device_has_left_it(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("j", "test.large", {"seconds": 1.2, "nbytes": 100})  # ends well, in one quantum
    scripted.wait_for(lambda: scripted.held() == {"j": "running"})
    scripted.send("cancel", job_id="j", attempt=1)
    assert scripted.held() == {"j": "running"}
    result = scripted.expect("result")
    assert (result["error"]["code"], result["frames"]) == ("cancelled", [])
    assert scripted.held() == {"j": "done"}
    scripted.acknowledge_result(result)


def test_cancel_in_the_mailbox(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("first", "system.noop", {"sleep_ms": 1500})
    scripted.assign("second", "test.fail", {})
    assert scripted.held() == {"first": "running", "second": "assigned"}
    scripted.send("cancel", job_id="second", attempt=1)
    second = scripted.expect("result", 0.5)  # the device need not come to it
    assert (second["job_id"], second["error"]["code"]) == ("second", "cancelled")
    first = scripted.expect("result")
    assert (first["job_id"], first["success"]) == ("first", True)
    for result in (first, second):
        scripted.acknowledge_result(result)
    scripted.expect_none("result", 0.5)


def test_cancel_of_a_held_result_and_of_nothing(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("j", "system.noop", {})
    scripted.expect("result")
    assert scripted.held() == {"j": "done"}
    scripted.send("cancel", job_id="j", attempt=1)
    scripted.send("cancel", job_id="unknown", attempt=1)
    assert scripted.held() == {}
    assert not [message for message in scripted.seen if message["kind"] == "result" and not message["success"]]


def test_doubled_and_stale_assignments(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("j", "system.noop", {"sleep_ms": 500, "echo": "second"}, attempt=2)
    scripted.assign("j", "system.noop", {"echo": "doubled"}, attempt=2)
    scripted.assign("j", "system.noop", {"echo": "stale"}, attempt=1)
    result = scripted.expect("result")
    assert (result["attempt"], result["data"]["echo"]) == (2, "second")
    scripted.assign("j", "system.noop", {"echo": "doubled"}, attempt=2)  # while the result is held
    scripted.expect_none("result", 0.5)
    scripted.acknowledge_result(result)


def test_a_newer_attempt_replaces_the_older(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("j", "system.noop", {"sleep_ms": 60_000})
    scripted.assign("j", "system.noop", {"echo": "newer"}, attempt=2)
    result = scripted.expect("result", 5)
    assert (result["attempt"], result["data"]["echo"]) == (2, "newer")
    scripted.send("cancel", job_id="j", attempt=1)  # concerns the older one
    scripted.acknowledge_result({"job_id": "j", "attempt": 1})
    assert scripted.held() == {"j": "done"}
    scripted.acknowledge_result(result)


def test_a_result_is_sent_again_until_it_is_acknowledged(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("j", "system.noop", {"echo": 1}, attachments=[b"x" * 100_000])
    first = scripted.expect("result")
    begun = time.monotonic()
    second = scripted.expect("result", 8)
    assert 4 < time.monotonic() - begun < 7
    assert second["frames"] == first["frames"]
    scripted.acknowledge_result(second)


def test_a_worker_that_is_not_known_says_hello_with_what_it_holds(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("done", "system.noop", {"echo": 1})
    scripted.expect("result")
    scripted.assign("running", "system.noop", {"sleep_ms": 1500})
    scripted.assign("waiting", "system.noop", {})
    scripted.wait_for(lambda: scripted.held()["running"] == "running")
    scripted.send("rehello", orchestrator_epoch="epoch-1")
    hello = scripted.expect("hello")
    assert {job["job_id"]: job["state"] for job in hello["held"]} == {
        "done": "done",
        "running": "running",
        "waiting": "assigned",
    }
    assert hello["held"][0]["fingerprint"] == b"f" * 32
    assert (hello["held"][0]["request_id"], hello["held"][0]["action"]) == ("request-done", "system.noop")
    scripted.send_welcome("w1")
    for job_id in ("done", "running", "waiting"):
        scripted.acknowledge_result(scripted.expect("result", job_id=job_id))


def test_another_epoch_is_greeted(scripted: ScriptedOrchestrator) -> None:
    scripted.epoch = "epoch-2"
    hello = scripted.welcome()
    assert hello["held"] == []
    scripted.expect_none("hello", 1)


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xff garbage"],
        [b"\xc1"],
        [pack({"kind": "assign"})],
        [pack({"kind": "assign", "job_id": 7})],
        [pack({"kind": "unheard-of"})],
        [pack({"kind": ["welcome"]})],
        [pack([1, 2])],
        [pack({"kind": "result_ack", "results": []}), b"unannounced"],
        [pack({"kind": "result_ack", "results": [7]})],
        [pack({"kind": "cancel", "job_id": "j", "attempt": "1"})],
        [b"\xdf\xff\xff\xff\xff"],
        [b"\x81" * 100_000],
    ],
)
def test_garbage_is_ignored(scripted: ScriptedOrchestrator, frames: list[bytes]) -> None:
    scripted.send_raw(*frames)
    assert scripted.run("after", "system.noop", {"echo": 1})["success"]


def test_too_many_assignments_are_left_out_of_the_heartbeat(scripted: ScriptedOrchestrator) -> None:
    scripted.assign("blocker", "system.noop", {"sleep_ms": 60_000})
    for number in range(200):
        scripted.assign(f"j{number}", "system.noop", {})
    held = scripted.held()
    assert len(held) == 64 + 32 + 64  # its slots, light ones, and some slack
    for job_id in reversed(held):  # the blocker last
        scripted.send("cancel", job_id=job_id, attempt=1)
    results = [scripted.expect("result") for _ in held]
    assert {result["error"]["code"] for result in results} == {"cancelled"}
    refs = [{"job_id": result["job_id"], "attempt": 1} for result in results]
    scripted.send("result_ack", results=refs)  # many at once


def test_residents_are_told_and_loading_is_measured(scripted: ScriptedOrchestrator) -> None:
    result = scripted.run("load", "test.resident", {"key": "a", "nbytes": 10, "seconds": 0.5})
    assert result["load_ms"] >= 500
    assert result["running_ms"] < 400
    assert scripted.run("again", "test.resident", {"key": "a", "nbytes": 10, "seconds": 0.5})["load_ms"] == 0
    assert scripted.run("other", "test.resident", {"key": "b", "nbytes": 10})["success"]
    scripted.expect("heartbeat")
    assert scripted.expect("heartbeat")["resident_models"] == ["a", "b"]
    assert scripted.run("crowded", "test.crowded", {})["success"]  # after these two have made room
    scripted.expect("heartbeat")
    assert scripted.expect("heartbeat")["resident_models"] == []
    assert scripted.run("again", "test.crowded", {})["error"]["code"] == "out_of_memory"  # nothing left to evict
    result = scripted.run("huge", "test.resident", {"key": "c", "nbytes": 2**52})
    assert result["error"]["code"] == "out_of_memory"


def test_the_log_names_the_job_and_keeps_the_traceback(running: Any, scripted: ScriptedOrchestrator) -> None:
    scripted.run("logged", "test.fail", {})
    [line] = [line for line in running[1].log.splitlines() if '"job_id": "logged"' in line]
    assert '"request_id": "request-logged"' in line
    assert "RuntimeError: secret" in line
