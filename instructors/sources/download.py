"""From a source into an empty folder: within limits, with progress, going on where a connection broke."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from instructors.models import FILES_MAX
from instructors.sources import Broken, Source, SourceFile
from protocol.errors import InvalidRequest, ModelInvalid, PayloadTooLarge, Unavailable
from protocol.limits import MIB

BYTES_MAX = 256 * 1024 * MIB  # of one model
PATH_LENGTH_MAX, DEPTH_MAX = 200, 8
NAME_BYTES_MAX = 255  # of a file or folder, as file systems have it
DISK_MARGIN_BYTES = 64 * MIB  # to be left free
TRIES = 5  # in a row without a byte
PAUSE_S = 0.25  # before the second; doubled each time

Tell = Callable[[int, int], None]  # (bytes done, of how many), after each piece
T = TypeVar("T")


def download(source: Source, folder: Path, tell: Tell) -> dict[str, str]:
    """Fetch all files of a source. Returns path -> SHA-256 in hex.

    Raises what the source raises, ModelInvalid and PayloadTooLarge (too many files or bytes), InvalidRequest (paths
    that lead elsewhere or clash), and Unavailable (too little disk, a place that goes on failing).
    """
    files = _persistently(source.files)
    _check(files, folder)
    total, done = sum(file.nbytes for file in files), 0
    tell(0, total)
    digests = {}
    for file in files:
        digests[file.path] = _fetch(source, file, folder, partial(_tell_all, tell, done, total))
        done += file.nbytes
    return digests


def _tell_all(tell: Tell, before: int, total: int, nbytes: int) -> None:
    tell(before + nbytes, total)


def _check(files: Sequence[SourceFile], folder: Path) -> None:
    if not files:
        raise InvalidRequest("A model has files; there are none.")
    if len(files) > FILES_MAX:
        raise ModelInvalid(f"The model has more than {FILES_MAX} files.")
    total = sum(file.nbytes for file in files)
    if total > BYTES_MAX:
        raise PayloadTooLarge(f"The model has {total} bytes; {BYTES_MAX} are allowed.")
    if total + DISK_MARGIN_BYTES > shutil.disk_usage(folder).free:
        raise Unavailable("There is too little room on the worker's disk for this model.")
    paths = {PurePosixPath(file.path) for file in files}
    for file in files:
        if not is_plain_path(file.path):
            raise InvalidRequest(f"A file's path must be relative and plain; {file.path[:100]!r} is not.")
    if len(paths) < len(files) or any(parent in paths for path in paths for parent in path.parents):
        raise InvalidRequest("Two files have the same path, or one lies in the other.")


def is_plain_path(path: str) -> bool:
    """Whether it leads to a place below, and says so plainly."""
    parts = path.split("/")
    if not path.isprintable():
        return False
    plain = not {"", ".", ".."} & set(parts) and not {"\\", ":"} & set(path)
    short = len(path) <= PATH_LENGTH_MAX and all(len(part.encode()) <= NAME_BYTES_MAX for part in parts)
    return plain and short and len(parts) <= DEPTH_MAX


def _fetch(source: Source, file: SourceFile, folder: Path, tell: Callable[[int], None]) -> str:
    """One file; its SHA-256."""
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as stream:
        progress = _Progress(source, file, stream, tell)
        _persistently(progress.go_on, progress.moved)
        stream.flush()
        os.fsync(stream.fileno())
    return progress.digest.hexdigest()


class _Progress:
    """How far a file is, across the connections that it takes."""

    def __init__(self, source: Source, file: SourceFile, stream: Any, tell: Callable[[int], None]) -> None:
        self._source, self._file, self._stream, self._tell = source, file, stream, tell
        self._looked_at = 0
        self.done = 0
        self.digest = hashlib.sha256()

    def go_on(self) -> None:
        """Read to the end. Raises Broken where it is not reached."""
        if not self._source.resumes:
            self._stream.seek(0)
            self._stream.truncate()
            self.done, self.digest = 0, hashlib.sha256()
        for piece in self._source.read(self._file, self.done):
            self.done += len(piece)
            if self.done > self._file.nbytes:
                raise ModelInvalid("A file grew while it was fetched; try again.")
            self._stream.write(piece)
            self.digest.update(piece)
            self._tell(self.done)
        if self.done < self._file.nbytes:
            raise Broken("too few bytes")

    def moved(self) -> bool:
        """Whether bytes came since the last call: then it is worth going on. Without resuming there is no such."""
        before, self._looked_at = self._looked_at, self.done
        return self._source.resumes and self.done > before


def _persistently(function: Callable[[], T], moved: Callable[[], bool] = lambda: False) -> T:
    """The function's result, asked for again while it is Broken. Raises Unavailable when that does not help."""
    tries = 0
    while True:
        try:
            return function()
        except Broken as error:
            tries = 1 if moved() else tries + 1
            if tries == TRIES:
                raise Unavailable(f"The place where the model lies does not answer as it should ({error}).") from None
            time.sleep(PAUSE_S * 2 ** (tries - 1))
