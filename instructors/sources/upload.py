"""Files of a model that were sent with the request: the worker passes them on through a pipe, one after another."""

from collections.abc import Iterator, Sequence
from typing import IO

from instructors.sources import SourceFile, Told
from protocol.errors import Unavailable
from protocol.limits import MIB

PIECE_BYTES = 1 * MIB


class UploadSource:
    """Each file is read once, in the order in which they were sent."""

    resumes = False

    def __init__(self, files: Sequence[tuple[str, int]], stream: IO[bytes]) -> None:
        """`files`: path and size of each."""
        self._files = [SourceFile(path, nbytes) for path, nbytes in files]
        self._stream = stream
        self.told = Told()

    def files(self) -> Sequence[SourceFile]:
        return self._files

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        left = file.nbytes
        while left:
            piece = self._stream.read(min(left, PIECE_BYTES))
            if not piece:
                raise Unavailable("The worker ended while it passed the files on.")
            left -= len(piece)
            yield piece
