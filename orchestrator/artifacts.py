"""Stored bytes: uploads, and the attachments of accepted jobs and their results, one file each.

Names are made by the server alone; `_path` is the only way from an id to a file. A file appears under its name only
when all of it is on the disk.
"""

import contextlib
import hashlib
import os
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog

from orchestrator.store.writer import Completion
from protocol.codec import Buffer
from protocol.errors import NotFound, QueueFull

ARTIFACT_ID_PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
QUEUE_MAX = 10_000  # operations; their bytes are bounded by whoever holds the buffers
CHUNK_BYTES = 1024 * 1024
SHARDS = 256  # folders, named by the last two digits of the ids in them

log = structlog.get_logger()


class ArtifactStore:
    """A folder of artifacts and the thread that reads and writes it.

    All methods are for one thread and never wait. `put`, `hash`, `get` and `aged` end in a Completion under their
    token in `completions`; `wake` is called (from the store's thread) after every append and must not raise. Errors:
    OSError where the disk fails or is full, NotFound, QueueFull.
    """

    def __init__(self, folder: Path, wake: Callable[[], None]) -> None:
        """Open the folder, making it if need be. Removes what a crash left half-written."""
        self._folder = folder
        self._unfinished = folder / "unfinished"
        self._prepare()
        self.completions: deque[Completion] = deque()
        self._wake = wake
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Hashable] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="artifacts", daemon=True)
        self._thread.start()

    def put(self, items: Sequence[tuple[str, Buffer]], token: Hashable) -> None:
        """Store buffers under new ids (UUIDs), all or none; the value is their SHA-256 digests, in order."""
        self._submit(lambda: self._put(items), token)

    def hash(self, buffers: Sequence[Buffer], token: Hashable) -> None:
        """The value is the buffers' SHA-256 digests, in order."""
        self._submit(lambda: [hashlib.sha256(buffer).digest() for buffer in buffers], token)

    def get(self, artifact_ids: Sequence[str], token: Hashable) -> None:
        """The value is the artifacts' bytes, in order; NotFound if one is missing."""
        self._submit(lambda: [self._read(artifact_id) for artifact_id in artifact_ids], token)

    def delete(self, artifact_ids: Iterable[str]) -> None:
        """Remove files; one that is gone already is no error. Never refused: a full queue must not keep a disk full."""
        ids = list(artifact_ids)
        self._queue.put((lambda: self._delete(ids), None))

    def aged(self, shard: int, before_ms: int, token: Hashable) -> None:
        """The value is the ids in one of the SHARDS whose files were stored before `before_ms` (epoch).

        Those that `queries.unknown_artifacts` does not find a record of were left by a crash between file and record.
        """
        self._submit(lambda: self._aged(self._folder / f"{shard:02x}", before_ms), token)

    def close(self, timeout_s: float) -> None:
        """Finish what is queued, or leave it behind after `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _submit(self, operation: Callable[[], Any], token: Hashable) -> None:
        if self._queue.qsize() >= QUEUE_MAX:
            self._complete(Completion(token, error=QueueFull("Too many artifacts are being stored or fetched.")))
        else:
            self._queue.put((operation, token))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            operation, token = item
            try:
                completion = Completion(token, operation())
            except Exception as error:  # told to the asker; the thread goes on
                completion = Completion(token, error=error)
                if token is None:
                    log.error("an artifact could not be deleted", error=str(error))
            if token is not None:
                self._complete(completion)
            del item, operation, completion  # or the buffers would live until the next operation

    def _complete(self, completion: Completion) -> None:
        self.completions.append(completion)
        self._wake()

    def _prepare(self) -> None:
        self._unfinished.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._unfinished.iterdir():
            leftover.unlink()
        for shard in range(SHARDS):
            (self._folder / f"{shard:02x}").mkdir(mode=0o700, exist_ok=True)
        _sync_folder(self._folder)

    def _path(self, artifact_id: str) -> Path:
        """The file of an id. The pattern lets no separator or dot through, so the path stays in the folder."""
        if not ARTIFACT_ID_PATTERN.fullmatch(artifact_id):
            raise NotFound("No such artifact.")
        return self._folder / artifact_id[-2:] / artifact_id  # the end of a UUIDv7 is random, its start is the time

    def _put(self, items: Sequence[tuple[str, Buffer]]) -> list[bytes]:
        stored: list[str] = []
        try:
            digests = []
            for artifact_id, buffer in items:
                digests.append(self._write(artifact_id, buffer))
                stored.append(artifact_id)
            for folder in {self._path(artifact_id).parent for artifact_id in stored}:
                _sync_folder(folder)
        except BaseException:
            self._delete(stored)
            raise
        return digests

    def _write(self, artifact_id: str, buffer: Buffer) -> bytes:
        path, unfinished = self._path(artifact_id), self._unfinished / artifact_id
        digest = hashlib.sha256()
        try:
            with open(unfinished, "xb", buffering=0, opener=_private) as file:
                view = memoryview(buffer).cast("B")
                for start in range(0, view.nbytes, CHUNK_BYTES):
                    chunk = view[start : start + CHUNK_BYTES]
                    digest.update(chunk)
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
                os.fsync(file.fileno())
            os.rename(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return digest.digest()

    def _read(self, artifact_id: str) -> bytes:
        # Bytes rather than a mapping: a failing disk under a mapping is a SIGBUS, which would end the process.
        try:
            descriptor = os.open(self._path(artifact_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound("No such artifact.") from None
        with open(descriptor, "rb") as file:
            return file.read()

    def _aged(self, shard: Path, before_ms: int) -> list[str]:
        with os.scandir(shard) as entries:
            ours = [entry for entry in entries if ARTIFACT_ID_PATTERN.fullmatch(entry.name)]
            return [entry.name for entry in ours if entry.stat(follow_symlinks=False).st_mtime * 1000 < before_ms]

    def _delete(self, artifact_ids: Iterable[str]) -> None:
        for artifact_id in artifact_ids:
            with contextlib.suppress(FileNotFoundError):
                self._path(artifact_id).unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
