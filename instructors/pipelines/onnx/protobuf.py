"""A protobuf file walked field by field: only what is asked for is read, and only so many fields."""

import os
from collections.abc import Iterator

from protocol.errors import ModelInvalid
from protocol.limits import KIB

FIELDS_MAX = 2_000_000  # walked in one file: some seconds
TEXT_BYTES_MAX = 4 * KIB
WINDOW_BYTES = 64 * KIB
VARINT_BYTES_MAX = 10
KEY_MAX = 2**32 - 1  # onnxruntime's parser drops the bits above, and takes it for another field
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types

Span = tuple[int, int]  # of the file's bytes: from, to


class Walk:
    """Over an open file of `nbytes`, which may become shorter meanwhile. Each method raises ModelInvalid or OSError."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self._fd = fd
        self.whole: Span = 0, nbytes
        self._fields_left = FIELDS_MAX
        self._window, self._window_at = b"", 0

    def fields(self, span: Span) -> Iterator[tuple[int, int | Span | None]]:
        """Each field's number with its value: of a varint the int, the span of what has a length, else None."""
        at, end = span
        while at < end:
            self._count()
            key, at = self._varint(at, end)
            kind = key & 7
            value: int | Span | None = None
            if kind == VARINT:
                value, at = self._varint(at, end)
            elif kind == LENGTH:
                length, at = self._varint(at, end)
                value = at, at + length
                at += length
            elif kind in (FIXED32, FIXED64):
                at += 4 if kind == FIXED32 else 8
            else:
                raise damaged()
            if at > end or key > KEY_MAX:
                raise damaged()
            yield key >> 3, value

    def parts(self, span: Span) -> Iterator[tuple[int, Span]]:
        """The fields that have a length: texts and messages. Another kind under the same number is no such field."""
        for number, value in self.fields(span):
            if isinstance(value, tuple):
                yield number, value

    def numbers(self, span: Span) -> Iterator[int]:
        """Packed varints."""
        at, end = span
        while at < end:
            self._count()
            value, at = self._varint(at, end)
            yield value

    def text(self, span: Span) -> str:
        """A name, or another short text."""
        at, end = span
        if end - at > TEXT_BYTES_MAX:
            raise ModelInvalid(f"A name in the model's file is longer than {TEXT_BYTES_MAX} bytes.")
        if not self._window_at <= at <= end <= self._window_at + len(self._window):
            self._fill(at)
        raw = self._window[at - self._window_at : end - self._window_at]
        if len(raw) != end - at:
            raise damaged()
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise damaged() from None

    def _count(self) -> None:
        self._fields_left -= 1
        if self._fields_left < 0:
            raise ModelInvalid(f"The model's file has more than {FIELDS_MAX} parts.")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number, and where it ends."""
        index = at - self._window_at
        if at < end and 0 <= index < len(self._window) and self._window[index] < 128:  # nearly all of them
            return self._window[index], at + 1
        if not 0 <= index <= len(self._window) - VARINT_BYTES_MAX:
            self._fill(at)
            index = 0
        value, shift, stop = 0, 0, min(index + min(VARINT_BYTES_MAX, end - at), len(self._window))
        for place in range(index, stop):
            byte = self._window[place]
            value |= (byte & 127) << shift
            if byte < 128:
                return value, place + 1 + self._window_at
            shift += 7
        raise damaged()

    def _fill(self, at: int) -> None:
        self._window, self._window_at = os.pread(self._fd, WINDOW_BYTES, at), at


def damaged() -> ModelInvalid:
    """For a file that is something else, or not all there."""
    return ModelInvalid("The file is no whole ONNX model.")
