"""Artifacts: all or nothing on the disk, and no way out of the folder."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import artifacts
from orchestrator.artifacts import ArtifactStore
from orchestrator.store import Completion
from protocol.errors import NotFound, QueueFull

ROOT = Path(__file__).parents[2]


class Harness:
    """An ArtifactStore whose completions are awaited in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._woken = threading.Semaphore(0)
        self.store = ArtifactStore(folder, self._woken.release)

    def next(self) -> Completion:
        assert self._woken.acquire(timeout=20)
        return self.store.completions.popleft()

    def put(self, *items: tuple[str, Any]) -> list[bytes]:
        self.store.put(items, "put")
        return self.result("put")

    def get(self, *artifact_ids: str) -> list[bytes]:
        self.store.get(artifact_ids, "get")
        return self.result("get")

    def result(self, token: str) -> Any:
        completion = self.next()
        assert completion.token == token
        if completion.error is not None:
            raise completion.error
        return completion.value

    def files(self) -> set[Path]:
        return {path for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Harness]]:
    harnesses: list[Harness] = []

    def open_it() -> Harness:
        harnesses.append(Harness(tmp_path / "data" / "artifacts"))
        return harnesses[-1]

    yield open_it
    for harness in harnesses:
        harness.store.close(5)


@pytest.fixture
def harness(opened: Callable[[], Harness]) -> Harness:
    return opened()


def new_id() -> str:
    return str(uuid.uuid4())


def test_what_is_put_can_be_got_again(opened: Callable[[], Harness]) -> None:
    first = opened()
    contents: list[Any] = [b"", b"small", bytearray(b"mutable"), memoryview(b"view"), os.urandom(3 * 1024 * 1024 + 1)]
    items = [(new_id(), content) for content in contents]
    assert first.put(*items) == [hashlib.sha256(content).digest() for content in contents]
    assert first.get(*[artifact_id for artifact_id, _ in items]) == contents
    first.store.close(5)
    assert opened().get(items[4][0]) == [contents[4]]
    assert {path.name for path in first.files()} == {artifact_id for artifact_id, _ in items}
    assert {path.stat().st_mode & 0o777 for path in first.files()} == {0o600}


def test_hashing_stores_nothing(harness: Harness) -> None:
    harness.store.hash([b"a", memoryview(b"b")], "hash")
    assert harness.result("hash") == [hashlib.sha256(b"a").digest(), hashlib.sha256(b"b").digest()]
    assert harness.files() == set()


def test_deleting_is_idempotent(harness: Harness) -> None:
    kept, gone = new_id(), new_id()
    harness.put((kept, b"1"), (gone, b"2"))
    harness.store.delete([gone, new_id(), gone])
    assert harness.get(kept) == [b"1"]
    with pytest.raises(NotFound):
        harness.get(kept, gone)


def test_old_files_are_listed_by_shard(harness: Harness) -> None:
    old, new, elsewhere = (str(uuid.uuid4())[:-2] + end for end in ("07", "07", "08"))
    harness.put((old, b"1"), (new, b"2"), (elsewhere, b"3"))
    for artifact_id in (old, elsewhere):
        os.utime(harness.folder / artifact_id[-2:] / artifact_id, (1000, 1000))
    harness.store.aged(7, 1_000_001, "aged")
    assert harness.result("aged") == [old]
    harness.store.aged(artifacts.SHARDS - 1, 1_000_001, "aged")
    assert harness.result("aged") == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "/etc/passwd", "..", "", "unfinished", "x" * 36, "\x00" * 36,
        "../../../../../../secret.txt.......", "0190A0B0-0000-7000-8000-000000000000",
        "0190a0b0-0000-7000-8000-000000000000\n",
        "0190a0b0-0000-7000-8000-0000000000/1", "0190a0b0-0000-7000-8000-00000000000é",
    ],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(harness: Harness, name: str) -> None:
    secret = harness.folder.parent / "secret"
    secret.write_bytes(b"secret")
    with pytest.raises(NotFound):
        harness.get(name)
    with pytest.raises(NotFound):
        harness.put((name, b"planted"))
    harness.store.delete([name])
    assert harness.put((new_id(), b"the thread goes on"))
    assert secret.read_bytes() == b"secret"
    assert len(harness.files()) == 1


def test_a_link_in_the_folder_is_not_followed(harness: Harness) -> None:
    secret, artifact_id = harness.folder.parent / "secret", new_id()
    secret.write_bytes(b"secret")
    (harness.folder / artifact_id[-2:] / artifact_id).symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        harness.get(artifact_id)


def test_a_file_is_on_the_disk_before_it_has_its_name(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename, artifact_id = os.fsync, os.rename, new_id()

    def watched_fsync(descriptor: int) -> None:
        calls.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{harness.folder}/"))
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        calls.append("rename")
        assert not target.exists()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    harness.put((artifact_id, b"x"))
    assert calls == [f"fsync unfinished/{artifact_id}", "rename", f"fsync {artifact_id[-2:]}"]


def test_a_disk_that_takes_no_more_is_told_and_leaves_nothing(harness: Harness) -> None:
    fits, too_big = (new_id(), b"x" * 1000), (new_id(), b"x" * 3_000_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # as with a full disk, write() fails midway
    try:
        harness.store.put([fits, too_big], "put")
        completion = harness.next()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(completion.error, OSError)
    assert harness.files() == set(), "all or none"
    assert harness.put(fits, too_big)


def test_an_id_is_not_written_twice_at_once(harness: Harness) -> None:
    artifact_id = new_id()
    (harness.folder / "unfinished" / artifact_id).touch()
    with pytest.raises(FileExistsError):
        harness.put((artifact_id, b"x"))


def test_the_queue_is_bounded_but_deleting_goes_on(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact_id, hold, held = new_id(), threading.Event(), threading.Event()
    harness.put((artifact_id, b"x"))
    monkeypatch.setattr(artifacts, "QUEUE_MAX", 2)
    harness.store._submit(lambda: (held.set(), hold.wait(20)), "held")
    assert held.wait(20)
    for token in ("first", "second", "third"):
        harness.store.hash([b"x"], token)
    harness.store.delete([artifact_id])
    refused = harness.next()
    hold.set()
    assert refused.token == "third"
    assert isinstance(refused.error, QueueFull)
    assert [harness.next().token for _ in range(3)] == ["held", "first", "second"]
    with pytest.raises(NotFound):
        harness.get(artifact_id)


PUT_FOR_EVER = """
import os, sys, threading, uuid
from pathlib import Path
from orchestrator.artifacts import ArtifactStore
woken = threading.Semaphore(0)
store = ArtifactStore(Path(sys.argv[1]), woken.release)
while True:
    artifact_id = str(uuid.uuid4())
    store.put([(artifact_id, artifact_id.encode() * 30_000)], artifact_id)
    woken.acquire()
    assert store.completions.popleft().error is None
    os.write(1, f"{artifact_id}\\n".encode())
"""


def test_kill_9_leaves_whole_files_and_leftovers_are_cleaned(opened: Callable[[], Harness], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "artifacts"
    promised: list[str] = []
    for turn in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", PUT_FOR_EVER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            promised.append(process.stdout.readline().strip())
            time.sleep(0.01 * turn)
            process.send_signal(signal.SIGKILL)
            promised += [line.strip() for line in process.stdout if line.endswith("\n")]
    (folder / "unfinished" / "half").write_bytes(b"left by a crash")
    harness = opened()
    assert list((folder / "unfinished").iterdir()) == []
    for artifact_id in promised:
        assert harness.get(artifact_id) == [artifact_id.encode() * 30_000]
    for path in harness.files():  # a file may be there that was not promised, but then it is whole
        assert path.stat().st_size == 36 * 30_000
