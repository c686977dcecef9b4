"""Files of a model that lie on this machine's disk: in the model folder, or in a folder that the operator allowed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from instructors.models import files_of, inside
from instructors.sources import SourceFile, Told
from protocol.errors import Forbidden, NotFound
from protocol.limits import MIB

PIECE_BYTES = 4 * MIB


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
            raise Forbidden("This folder leads out of where models may come from.")

    def files(self) -> Sequence[SourceFile]:
        """Raises NotFound, and as `models.files_of` does."""
        if not self._path.exists():
            raise NotFound("There is no such folder or file.")
        if self._path.is_file():
            return [SourceFile(self._path.name, self._path.stat().st_size, self._path)]
        files = files_of(self._path, self._root)
        return [SourceFile(file.relative_to(self._path).as_posix(), file.stat().st_size, file) for file in files]

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        with file.key.open("rb") as stream:
            stream.seek(begin)
            while piece := stream.read(PIECE_BYTES):
                yield piece
