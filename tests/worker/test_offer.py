"""What a worker offers, as its model folder changes."""

import os
import signal
import time
from pathlib import Path

from tests.instructors import onnx_models
from tests.worker.conftest import Start
from tests.worker.scripted import ScriptedOrchestrator
from worker.offer import fingerprint


def test_every_change_of_a_models_files_shows(tmp_path: Path) -> None:
    seen = [fingerprint(tmp_path)]
    file = tmp_path / "a/1/model.onnx"

    def is_new() -> bool:
        seen.append(fingerprint(tmp_path))
        return seen[-1] not in seen[:-1]

    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    assert is_new()
    file.write_bytes(b"three")
    assert is_new()
    os.utime(file, ns=(1, 1))
    assert is_new()
    (tmp_path / "a/1/model.toml").touch()
    assert is_new()
    (tmp_path / "models.toml").touch()
    assert is_new()
    (tmp_path / "a").rename(tmp_path / "b")
    assert is_new()
    for hidden in (".staging/c/1", "loras"):
        (tmp_path / hidden).mkdir(parents=True)
        (tmp_path / hidden / "model.onnx").touch()
        assert not is_new()
    assert fingerprint(tmp_path / "absent") == fingerprint(None) == seen[0]


def test_it_says_hello_again_with_what_it_holds(
    orchestrator: ScriptedOrchestrator, start: Start, tmp_path: Path
) -> None:
    onnx_models.affine(tmp_path / "first/model.onnx", 1, 0)
    start("--models", str(tmp_path))
    first = orchestrator.welcome()
    assert [model["model_id"] for model in first["capabilities"]["models"]] == ["first"]
    orchestrator.assign("j", "system.noop", {"sleep_ms": 6000, "echo": 1})
    orchestrator.wait_for(lambda: orchestrator.held().get("j") == "running")
    onnx_models.affine(tmp_path / "second/model.onnx", 2, 0)
    again = orchestrator.expect("hello", 8)
    assert [model["model_id"] for model in again["capabilities"]["models"]] == ["first", "second"]
    assert all(model["kept"] is False for model in again["capabilities"]["models"])
    assert [(job["job_id"], job["state"]) for job in again["held"]] == [("j", "running")]
    assert (again["instance_id"], again["capabilities"]["actions"]) == (
        first["instance_id"],
        first["capabilities"]["actions"],
    )
    assert orchestrator.expect("result", 10)["data"] == {"echo": 1}


def test_a_signal_to_reload_harms_no_worker_that_has_just_begun(
    orchestrator: ScriptedOrchestrator, start: Start
) -> None:
    worker = start()
    child = worker.child
    until = time.monotonic() + 2
    while time.monotonic() < until:
        worker.signal(signal.SIGHUP)
        time.sleep(0.02)
    orchestrator.welcome()
    orchestrator.assign("j", "system.noop", {"echo": 1})
    assert orchestrator.expect("result")["data"] == {"echo": 1}
    assert worker.child.pid == child.pid
