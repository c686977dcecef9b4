"""What a worker offers, as its model folder changes."""

import hashlib
import os
import signal
import time
from pathlib import Path

import msgpack

from instructors.digests import Digests
from instructors.models import ModelFolder
from protocol.limits import MIB
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
    orchestrator.assign("j", "system.noop", {"sleep_ms": 8000, "echo": 1})
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
    assert orchestrator.expect("result", 12)["data"] == {"echo": 1}


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


def test_hashes_of_large_files_outlive_the_worker(tmp_path: Path) -> None:
    """A second start takes the hash that is known, until the file is another."""
    root, cache = tmp_path / "models", tmp_path / "cache"
    onnx_models.affine(root / "large/model.onnx", 1, 0)
    weights = root / "large/weights.data"
    weights.write_bytes(b"a" * 2 * MIB)

    def started() -> tuple[ModelFolder, str]:
        models = ModelFolder(root)
        digests = Digests(models, cache)
        digests.restore()
        known = set(models.digests)
        content_hash = models.find("large").content_hash
        digests.save()
        assert known <= {weights}
        return models, content_hash

    models, first = started()
    [file] = (cache / "digests").iterdir()
    told = msgpack.unpackb(file.read_bytes())
    told[0][2] = b"x" * 32  # what is kept is what is taken
    file.write_bytes(msgpack.packb(told))
    models, other = started()
    assert models.digests[weights][1] == b"x" * 32
    assert other != first
    times = weights.stat()
    weights.write_bytes(b"b" * 2 * MIB)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time, and not the same file
    models, changed = started()
    assert models.digests[weights][1] == hashlib.sha256(b"b" * 2 * MIB).digest()
    assert changed not in (first, other)
    file.write_bytes(b"rubbish")
    assert started()[1] == changed
