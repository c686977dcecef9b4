"""`model.fetch` from folders and uploads: whole and checked, or not there at all."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from instructors import fetch
from instructors.sources import staging
from instructors.sources.staging import Staging, clean
from protocol.enums import EventName
from protocol.errors import (
    Forbidden,
    InvalidRequest,
    ModelInvalid,
    RequestConflict,
    Unavailable,
)  # fmt: skip
from protocol.schemas.model import FetchResult
from tests.instructors.fetching import FetchDesk, allow, onnx_bytes, silent_server
from tests.instructors.onnx_models import affine

PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07example\x94."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def desk(root: Path) -> Iterator[FetchDesk]:
    desk = FetchDesk(root)
    yield desk
    desk.close()


def upload(**files: int) -> dict[str, Any]:
    """A source of attachments: path -> its number."""
    return {"files": [{"path": path, "parts": [{"attachment": number}]} for path, number in files.items()]}


def sent(*paths: str) -> dict[str, Any]:
    return upload(**{path: number for number, path in enumerate(paths)})


def names(root: Path) -> list[str]:
    """All that lies in the model folder."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_folder_of_the_model_folder_becomes_a_version(desk: FetchDesk, root: Path) -> None:
    original = affine(root / "incoming" / "net" / "model.onnx", 2.0, 0.0)
    (root / "incoming" / "net" / "model.toml").write_text('license = "MIT"\ntags = ["small"]\n')
    answer = desk.fetch({"folder": "incoming/net"}, name="net", version="3")
    FetchResult.model_validate(answer)
    model = desk.models.find("net:3")
    assert answer["content_hash"] == model.content_hash
    assert answer["nbytes"] == sum(file.stat().st_size for file in model.path.iterdir())
    assert answer["files"] == 2
    assert answer["metadata"]["license"] == "MIT"
    assert answer["metadata"]["tags"] == ["small"]
    assert (answer["metadata"]["type"], answer["metadata"]["family"]) == ("onnx", "onnx")
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    assert answer["metadata"]["hashes"]["model.onnx"] == digest
    original.write_bytes(b"changed later")
    assert hashlib.sha256((model.path / "model.onnx").read_bytes()).hexdigest() == digest


def test_a_pipeline_can_be_fetched(desk: FetchDesk, root: Path, tiny_root: Path) -> None:
    shutil.copytree(tiny_root / "tiny", root / "incoming" / "tiny")
    answer = desk.fetch({"folder": "incoming/tiny"}, name="painter")
    assert answer["metadata"]["type"] == "diffusion"
    assert answer["metadata"]["family"] == "stable_diffusion"
    assert desk.models.find("painter").model_id == "painter:1"
    assert answer["content_hash"] == desk.models.find("painter:1").content_hash
    told = [data["progress"] for data, _ in desk.named(EventName.PROGRESS)]
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_an_upload_becomes_a_version(desk: FetchDesk, root: Path, tmp_path: Path) -> None:
    data = onnx_bytes(tmp_path)
    half = len(data) // 2
    source = {"files": [{"path": "model.onnx", "parts": [{"attachment": 1}, {"attachment": 2}]},
                        {"path": "model.toml", "parts": [{"attachment": 0}]}]}  # fmt: skip
    answer = desk.fetch(source, blobs=[b"license = 'MIT'\n", data[:half], data[half:]])
    assert (root / "found" / "1" / "model.onnx").read_bytes() == data
    assert answer["metadata"]["hashes"]["model.onnx"] == hashlib.sha256(data).hexdigest()
    assert names(root) == ["found/1/model.onnx", "found/1/model.toml"]


def test_a_single_onnx_file_may_have_any_name(desk: FetchDesk, root: Path, tmp_path: Path) -> None:
    desk.fetch(sent("resnet.onnx"), blobs=[onnx_bytes(tmp_path)])
    assert names(root) == ["found/1/model.onnx"]


def test_a_large_upload_does_not_hold_up_the_device(desk: FetchDesk, tmp_path: Path) -> None:
    weights = os.urandom(64 << 20)
    desk.fetch(sent("model.onnx", "notes.bin.txt"), blobs=[onnx_bytes(tmp_path), weights])  # `begin` looks at the clock


def test_what_is_no_model_is_refused(desk: FetchDesk, root: Path) -> None:
    with pytest.raises(ModelInvalid, match="no model"):
        desk.fetch(sent("readme.md"), blobs=[b"# no model"])
    assert names(root) == []


def test_of_two_registrations_at_once_one_wins(desk: FetchDesk, root: Path, tmp_path: Path) -> None:
    tasks = [desk.begin(sent("model.onnx"), blobs=[onnx_bytes(tmp_path, factor)]) for factor in (2.0, 3.0, 4.0)]
    outcomes = []
    for task in tasks:
        try:
            outcomes.append(desk_result(desk, task)["content_hash"])
        except RequestConflict:
            outcomes.append(None)
    winners = [outcome for outcome in outcomes if outcome is not None]
    assert winners == [desk.models.find("found:1").content_hash]


def desk_result(desk: FetchDesk, task: Any) -> dict[str, Any]:
    """As `finish`, while others are still at work."""
    (unit,) = task.units
    while not unit.done:
        desk.hear(0.05)
    if unit.error is not None:
        raise unit.error
    return task.result().data


def test_a_version_that_is_there_stays(desk: FetchDesk, tmp_path: Path) -> None:
    first = desk.fetch(sent("model.onnx"), blobs=[onnx_bytes(tmp_path, 2.0)])
    with pytest.raises(RequestConflict):
        desk.fetch(sent("model.onnx"), blobs=[onnx_bytes(tmp_path, 3.0)])
    assert desk.models.find("found:1").content_hash == first["content_hash"]
    desk.fetch(sent("model.onnx"), version="2", blobs=[onnx_bytes(tmp_path, 3.0)])
    assert desk.models.names() == ["found:1", "found:2"]


def test_a_second_attempt_at_the_same_files_is_no_conflict(desk: FetchDesk, tmp_path: Path) -> None:
    """The worker may be lost after the version was put in place and before it said so."""
    answers = [desk.fetch(sent("model.onnx"), blobs=[onnx_bytes(tmp_path)]) for _ in range(2)]
    assert answers[0] == answers[1]


def test_a_name_that_is_taken_is_refused(desk: FetchDesk, root: Path, tmp_path: Path) -> None:
    affine(root / "plain" / "model.onnx", 2.0, 0.0)
    with pytest.raises(RequestConflict, match="no versions"):
        desk.fetch(sent("model.onnx"), name="plain", blobs=[onnx_bytes(tmp_path)])
    with pytest.raises(InvalidRequest):
        desk.begin(sent("model.onnx"), name="loras", blobs=[onnx_bytes(tmp_path)])
    assert desk.models.names() == ["plain"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file system of its own, that is too small."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        desk = FetchDesk(disk)
        with pytest.raises(Unavailable, match="too little room"):
            desk.fetch(sent("model.onnx", "more"), blobs=[onnx_bytes(tmp_path), os.urandom(2 << 20)])
        assert names(disk) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        desk = FetchDesk(disk)
        task = desk.begin(sent("model.onnx", "more"), blobs=[onnx_bytes(tmp_path), bytes(8 << 20)])
        fill(disk / "others")
        with pytest.raises(Unavailable, match=r"disk is full|too little room"):
            desk.finish(task)
        (disk / "others").unlink()
        assert names(disk) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    piece = os.urandom(1 << 20)
    with suppress(OSError), path.open("wb", buffering=0) as stream:
        while stream.write(piece) == len(piece):
            pass


def test_what_is_cancelled_leaves_nothing_and_its_process_ends(desk: FetchDesk, root: Path, tmp_path: Path) -> None:
    task = desk.begin(sent("model.onnx", "more"), blobs=[onnx_bytes(tmp_path), os.urandom(32 << 20)])
    (unit,) = task.units
    process = unit._process
    assert process is not None
    while not desk.staged:
        time.sleep(0.001)
    task.close()
    desk.wait_until_tidy()
    assert process.poll() is not None
    assert names(root) == []


def test_a_process_that_is_killed_leaves_nothing(desk: FetchDesk, root: Path, tmp_path: Path) -> None:
    task = desk.begin(sent("model.onnx", "more"), blobs=[onnx_bytes(tmp_path), os.urandom(32 << 20)])
    process = task.units[0]._process
    assert process is not None
    process.kill()
    with pytest.raises(Unavailable, match="ended"):
        desk.finish(task)
    assert names(root) == []


def test_a_process_that_cannot_be_started_fails_its_job_alone(
    desk: FetchDesk, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match="could not start"):
        desk.fetch({"folder": "incoming"})
    assert names(root) == []


def test_it_ends_with_its_worker(root: Path) -> None:
    """A process that waits for a place that hangs, and whose worker is killed."""
    with silent_server() as port:
        allow(root, mlflow=f"http://127.0.0.1:{port}")
        script = (
            "from pathlib import Path; from tests.instructors.fetching import FetchDesk\n"
            f"desk = FetchDesk(Path({str(root)!r})); task = desk.begin({{'mlflow': 'models:/net/1'}})\n"
            "print(task.units[0]._process.pid, flush=True)\n"
            "while True: desk.hear(1)\n"
        )
        worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        status = Path(f"/proc/{int(worker.stdout.readline())}/stat")
        assert is_running(status)
        worker.kill()
        worker.wait()
        worker.stdout.close()
        until = time.monotonic() + 10
        while is_running(status):
            assert time.monotonic() < until
            time.sleep(0.05)


def is_running(status: Path) -> bool:
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("source", [{"mlflow": "models:/net/1"}, {"url": "s3://bucket/net"}])
def test_a_place_that_accepts_and_says_nothing_is_given_up(
    source: dict[str, str], desk: FetchDesk, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "STALL_S", 1.5)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    with silent_server() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        allow(root, urls=["s3://bucket/"], mlflow=f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="not answered for"):
            desk.fetch(source)
        assert time.monotonic() - begun < 15
    assert names(root) == ["catalogue.toml"]


def test_a_place_that_is_away_is_unavailable(desk: FetchDesk, root: Path) -> None:
    with silent_server() as port:
        pass  # nobody listens there any more
    allow(root, mlflow=f"http://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="does not answer"):
        desk.fetch({"mlflow": "models:/net/1"})


def test_nothing_is_allowed_unasked(desk: FetchDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(Forbidden, match=r"catalogue\.toml"):
        desk.fetch({"url": "s3://models/net"})
    with pytest.raises(Unavailable, match="MLFLOW_TRACKING_URI"):
        desk.fetch({"mlflow": "models:/net/1"})


def test_a_folder_elsewhere_can_be_allowed(desk: FetchDesk, root: Path, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    affine(incoming / "net" / "model.onnx", 2.0, 0.0)
    allow(root, urls=[f"file://{incoming}/"])
    answer = desk.fetch({"url": f"file://{incoming}/net"})
    assert answer["content_hash"] == desk.models.find("found:1").content_hash
    allow(root, urls=[f"file://{incoming}/net/"])
    assert desk.fetch({"url": f"file://{incoming}/net"}, version="3") == answer
    allow(root, urls=[f"file://{incoming}/"])
    (incoming / "link").symlink_to("/etc")
    with pytest.raises(Forbidden):
        desk.fetch({"url": f"file://{incoming}/link"}, version="2")


def test_what_a_killed_worker_left_is_removed_once_it_is_old(root: Path) -> None:
    left, fresh = root / ".staging" / "left", root / ".staging" / "fresh"
    for path in (left, fresh):
        (path / "net" / "1").mkdir(parents=True)
        (path / "net" / "1" / "model.onnx").write_bytes(b"half")
    mine = Staging(root)
    for path in (left, mine.path):
        os.utime(path, (time.time() - 2 * staging.OLD_S,) * 2)
    clean(root)
    assert sorted(path.name for path in (root / ".staging").iterdir()) == sorted(["fresh", mine.path.name])
    mine.close()
    clean(None)
    clean(root / "nowhere")


def test_a_folder_that_cannot_be_written_to_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / ".staging").write_text("a file in its place")
    with pytest.raises(Unavailable):
        FetchDesk(tmp_path).begin({"folder": "net"})
