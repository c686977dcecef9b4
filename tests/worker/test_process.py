"""The worker's processes: how they stop, how they are killed, and who notices."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.worker.conftest import Start
from tests.worker.scripted import ROOT, ScriptedOrchestrator


def gone(process: psutil.Process, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_the_running_job_and_hands_back_the_others(
    orchestrator: ScriptedOrchestrator, start: Start, number: signal.Signals
) -> None:
    worker = start("--slots", "2")
    orchestrator.welcome()
    orchestrator.assign("running", "system.noop", {"sleep_ms": 1000, "echo": 1})
    orchestrator.assign("waiting", "system.noop", {})
    orchestrator.wait_for(lambda: orchestrator.held()["running"] == "running")
    worker.signal(number)
    assert orchestrator.expect("hello")["draining"]
    orchestrator.assign("late", "system.noop", {})
    result = orchestrator.expect("result")
    assert (result["job_id"], result["data"]) == ("running", {"echo": 1})
    orchestrator.expect_none("goodbye", 0.5)  # the result is not yet safe
    orchestrator.acknowledge_result(result)
    orchestrator.expect("goodbye")
    assert worker.wait() == 0
    assert not [m for m in orchestrator.seen if m["kind"] == "result" and m["job_id"] != "running"]


def test_a_stop_waits_no_longer_than_the_grace(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start("--grace-s", "1")
    orchestrator.welcome()
    orchestrator.assign("long", "test.sleep", {"seconds": 60.0})
    orchestrator.wait_for(lambda: orchestrator.held()["long"] == "running")
    begun = time.monotonic()
    worker.signal(signal.SIGTERM)
    orchestrator.expect("goodbye", 3)
    assert worker.wait() == 0
    assert 0.9 < time.monotonic() - begun < 3


def test_a_stop_without_an_orchestrator(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    orchestrator.vanish()
    worker = start()
    worker.child.wait  # noqa: B018 (it is there)
    time.sleep(1)
    worker.signal(signal.SIGTERM)
    assert worker.wait(5) == 0
    orchestrator.bind()


def test_a_second_signal_stops_at_once(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start()
    orchestrator.welcome()
    orchestrator.assign("long", "system.noop", {"sleep_ms": 60_000})
    orchestrator.wait_for(lambda: orchestrator.held()["long"] == "running")
    child = worker.child
    worker.signal(signal.SIGTERM)
    orchestrator.expect("hello")
    worker.signal(signal.SIGTERM)
    assert worker.wait(3) == 1
    assert gone(child, 1)


def test_drain_finishes_everything(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start("--slots", "3")
    orchestrator.welcome()
    for number in range(3):
        orchestrator.assign(f"j{number}", "system.noop", {"sleep_ms": 200, "echo": number})
    orchestrator.send("drain")
    orchestrator.assign("late", "system.noop", {})
    for number in range(3):
        result = orchestrator.expect("result")
        assert result["data"] == {"echo": number}
        orchestrator.acknowledge_result(result)
    orchestrator.expect("goodbye")
    assert worker.wait() == 0


@pytest.mark.parametrize("crash", ["kill -9", "exit"])
def test_a_fallen_child_is_started_again(orchestrator: ScriptedOrchestrator, start: Start, crash: str) -> None:
    worker = start()
    first = orchestrator.welcome()
    begun = time.monotonic()
    if crash == "exit":
        orchestrator.assign("bad", "test.crash", {})
    else:
        orchestrator.assign("long", "system.noop", {"sleep_ms": 60_000})
        orchestrator.wait_for(lambda: orchestrator.held() == {"long": "running"})
        worker.child.kill()
    second = orchestrator.welcome()
    assert time.monotonic() - begun < 5
    assert second["held"] == []  # which tells the orchestrator at once what was lost
    assert second["instance_id"] == first["instance_id"]
    assert second["identity"] != first["identity"]
    assert orchestrator.run("next", "system.noop", {})["success"]


def test_the_pause_between_starts_grows(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start()
    pauses = []
    for _ in range(3):
        orchestrator.welcome()
        worker.child.kill()
        lost = time.monotonic()
        orchestrator.wait_for(lambda: len(psutil.Process(worker.process.pid).children()) == 0)
        orchestrator.wait_for(lambda: len(psutil.Process(worker.process.pid).children()) == 1)
        pauses.append(time.monotonic() - lost)
    assert 0.15 < pauses[0] < 0.4 < pauses[1] < 0.8 <= pauses[2] < 1.5


@pytest.mark.parametrize("action", ["test.sleep", "test.spin"])
def test_a_hung_device_is_killed(orchestrator: ScriptedOrchestrator, start: Start, action: str) -> None:
    worker = start("--quantum-ms-max", "1000")
    orchestrator.welcome()
    child = worker.child
    orchestrator.assign("hung", action, {"seconds": 3600.0})
    begun = time.monotonic()
    orchestrator.welcome()
    assert 1 < time.monotonic() - begun < 6
    assert gone(child, 1)
    assert "hangs" in worker.log
    assert orchestrator.run("next", "system.noop", {})["success"]


def test_steps_that_come_back_are_not_hung_however_many(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start("--quantum-ms-max", "1000")
    orchestrator.welcome()
    child = worker.child
    assert orchestrator.run("long", "test.sleep", {"seconds": 0.5, "steps": 6})["success"]
    orchestrator.run("loads", "test.resident", {"seconds": 2.0, "nbytes": 1})  # judged by the longer limit
    assert worker.child == child


def test_the_child_dies_with_its_parent(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start()
    orchestrator.welcome()
    child = worker.child
    orchestrator.assign("hung", "test.sleep", {"seconds": 3600.0})
    orchestrator.wait_for(lambda: orchestrator.held() == {"hung": "running"})
    worker.process.kill()
    assert gone(child, 2)


def test_a_stopped_and_continued_worker_keeps_its_job(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start("--quantum-ms-max", "1000")
    orchestrator.welcome()
    child = worker.child
    orchestrator.assign("j", "system.noop", {"sleep_ms": 500, "echo": 1})
    orchestrator.wait_for(lambda: orchestrator.held() == {"j": "running"})
    child.suspend()
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)  # more than the longest step: neither could have told the other
    worker.process.send_signal(signal.SIGCONT)
    child.resume()
    assert orchestrator.expect("result")["data"] == {"echo": 1}
    assert worker.child == child


def test_the_death_pipe_of_a_launcher(orchestrator: ScriptedOrchestrator, start: Start) -> None:
    worker = start("--death-pipe", stdin=subprocess.PIPE)
    orchestrator.welcome()
    child = worker.child
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.wait(3) == 1
    assert gone(child, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--connect"),
        (["--connect", "ipc://x", "--slots", "0"], "at least 1"),
        (["--connect", "ipc://x", "--slots", "4097"], "at most 4096"),
        (["--connect", "ipc://x", "--light-slots", "-1"], "at least 0"),
        (["--connect", "ipc://x", "--light-slots", "4097"], "at most 4096"),
        (["--connect", "ipc://x", "--name", "n" * 201], "200 characters"),
        (["--connect", "ipc://x", "--device", "tpu"], "not a device"),
        (["--connect", "ipc://x", "--device", "cuda:9"], "not there"),
        (["--connect", "http://x"], "http://x"),
        (["--connect", "tcp://127.0.0.1"], "cannot connect"),
        (["--connect", "ipc://x", "--instructors", "no.such.module"], "no.such.module"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert "example: python -m worker" in done.stdout


@pytest.mark.parametrize("module", ["worker.main", "worker.launcher", "worker.child"])
def test_what_watches_does_not_import_what_computes(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'diffusers', 'transformers', 'numpy', 'PIL'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
