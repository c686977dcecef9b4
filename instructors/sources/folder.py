"""Files of a model that lie on this machine's disk: in the model folder, or in a folder that the operator allowed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from instructors.models import files_of, inside
from instructors.sources import SourceFile, Told
from protocol.errors import Forbidden, ModelInvalid, NotFound
from protocol.limits import MIB

PIECE_BYTES = 4 * MIB
OUTSIDE = "This folder leads out of where models may come from."


class FolderSource:
    """A folder or a single file within `root`, which nothing of it may leave. Files are copied, not linked: what
    happens to them later changes no registered model."""

    resumes = True

    def __init__(self, relative: str, root: Path, *, whole: bool) -> None:
        """`whole`: `root` itself may be meant. Raises Forbidden where it leads out of it."""
        self._path = root / relative
        self._root = root
        self.told = Told()
        if "\0" in relative or not inside(self._path, root) or not (whole or self._path.resolve() != root.resolve()):
            raise Forbidden(OUTSIDE)

    def files(self) -> Sequence[SourceFile]:
        """Raises NotFound, and as `models.files_of` does."""
        if not self._path.exists():
            raise NotFound("There is no such folder or file.")
        if self._path.is_file():
            return [self._listed(self._path, self._path.name)]
        files = files_of(self._path, self._root)
        return [self._listed(file, file.relative_to(self._path).as_posix()) for file in files]

    def _listed(self, file: Path, path: str) -> SourceFile:
        status = file.stat()
        if not inside(file, self._root):
            raise Forbidden(OUTSIDE)
        return SourceFile(path, status.st_size, (file, _version(status)))

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        """Raises ModelInvalid where it is not the file that was listed, or is written to meanwhile."""
        path, listed = file.key
        with path.open("rb") as stream:
            stream.seek(begin)
            piece: bytes | None = None
            while piece != b"":
                piece = stream.read(PIECE_BYTES)
                _check_same(stream, listed)
                yield piece


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_same(stream: IO[bytes], listed: tuple[int, ...]) -> None:
    """A link may have come into its place that leads elsewhere."""
    if _version(os.fstat(stream.fileno())) != listed:
        raise ModelInvalid("A file changed while it was fetched; try again.")
