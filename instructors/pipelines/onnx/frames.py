"""Frames between a worker and its runner: 4 bytes of header length, a msgpack header, the tensors' bytes.

Nothing is joined before it is sent, and what comes is read into the arrays that are given out. Strings travel as Open
Inference Protocol v2 has them: each a 4-byte little-endian length and its UTF-8.
"""

import math
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from socket import socket
from typing import Any

import numpy as np

from instructors.pipelines.onnx.facts import BFLOAT16, DTYPES, STRING, Array, dtype_name
from protocol.codec import pack, unpack
from protocol.errors import InvalidRequest, MalformedMessage, PayloadTooLarge
from protocol.limits import MIB

LENGTH = struct.Struct("<I")
HEADER_BYTES_MAX = 1 * MIB
FRAME_BYTES_MAX = 1024 * MIB  # all tensors of a frame together
VECTORS_MAX = 256  # buffers in one system call; the system takes 1024

Header = dict[str, Any]
Frame = tuple[Header, dict[str, Array]]


def pack_strings(array: Array) -> bytes:
    """The wire's bytes of an array of str. Raises InvalidRequest for what UTF-8 has no bytes for."""
    parts: list[bytes] = []
    try:
        for item in array.flat:
            raw = str(item).encode()
            parts += (LENGTH.pack(len(raw)), raw)
    except UnicodeEncodeError:  # half of a surrogate pair
        raise InvalidRequest("A string holds what is no character.") from None
    return b"".join(parts)


def unpack_strings(raw: bytes | bytearray | memoryview, shape: Sequence[int]) -> Array:
    """An array of objects, each a str. Raises InvalidRequest where the bytes are not `shape` strings."""
    count, at, items = math.prod(shape), 0, []
    view = memoryview(raw)
    try:
        while at < len(view):
            (length,) = LENGTH.unpack_from(view, at)
            at += LENGTH.size + length
            if at > len(view):
                raise ValueError("beyond the end")
            items.append(str(view[at - length : at], "utf-8"))
    except (ValueError, struct.error):
        raise InvalidRequest("The strings are not lengths (4 bytes, little-endian) with UTF-8.") from None
    if len(items) != count:
        raise InvalidRequest(f"There are {len(items)} strings where the shape wants {count}.")
    array = np.empty(count, dtype=object)
    array[:] = items
    return array.reshape(tuple(shape))


class Outgoing:
    """What a socket has not taken yet, as views of the caller's buffers."""

    def __init__(self) -> None:
        self._views: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._views)

    def put(
        self, header: Header, tensors: Mapping[str, Array] | None = None, bits: frozenset[str] = frozenset()
    ) -> int:
        """Add a frame; its size in bytes. `bits`: tensors that are bfloat16's. Raises PayloadTooLarge."""
        described, views = [], []
        for name, array in (tensors or {}).items():
            dtype = BFLOAT16 if name in bits else dtype_name(array)
            raw: Any = pack_strings(array) if dtype == STRING else np.require(array, requirements="C")
            view = memoryview(raw)
            described.append([name, dtype, list(array.shape), view.nbytes])
            if view.nbytes:
                views.append(view.cast("B"))
        head = pack({**header, "tensors": described})
        nbytes = sum(view.nbytes for view in views)
        if len(head) > HEADER_BYTES_MAX or nbytes > FRAME_BYTES_MAX:
            raise PayloadTooLarge(f"The tensors have {nbytes} bytes; {FRAME_BYTES_MAX} are allowed at a time.")
        self._views.append(memoryview(LENGTH.pack(len(head)) + head))
        self._views.extend(views)
        return nbytes

    def flush(self, to: socket) -> None:
        """Send until all is sent or a non-blocking socket takes no more. Raises OSError where nobody reads."""
        views = self._views
        while views:
            try:
                sent = to.sendmsg(islice(views, VECTORS_MAX))
            except BlockingIOError:
                return
            while views and sent >= views[0].nbytes:
                sent -= views.popleft().nbytes
            if sent:
                views[0] = views[0][sent:]


class Incoming:
    """Frames from a socket, blocking or not."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._raw = bytearray(LENGTH.size)
        self._missing = deque([memoryview(self._raw)])
        self._header_length = 0
        self._header: Header | None = None
        self._bodies: list[tuple[list[Any], Any]] = []

    def next(self, source: socket) -> Frame | None:
        """The next frame; None: it has not come as a whole yet.

        Raises EOFError where the other end is gone, and MalformedMessage or PayloadTooLarge where it breaks the rules.
        """
        while True:
            while self._missing:
                try:
                    count = source.recvmsg_into(islice(self._missing, VECTORS_MAX))[0]
                except BlockingIOError:
                    return None
                except ConnectionError:
                    raise EOFError from None
                if not count:
                    raise EOFError
                self._took(count)
            if self._header is not None:
                frame = self._header, {entry[0]: _array(entry, body) for entry, body in self._bodies}
                self._begin()
                return frame
            self._proceed()

    def _took(self, count: int) -> None:
        missing = self._missing
        while missing and count >= missing[0].nbytes:
            count -= missing.popleft().nbytes
        if count:
            missing[0] = missing[0][count:]

    def _proceed(self) -> None:
        """From the length to the header, from the header to the tensors."""
        if not self._header_length:
            (length,) = LENGTH.unpack(self._raw)
            if not 0 < length <= HEADER_BYTES_MAX:
                raise PayloadTooLarge(f"A header of {length} bytes.")
            self._header_length, self._raw = length, bytearray(length)
            self._missing.append(memoryview(self._raw))
            return
        self._header = unpack(self._raw)
        entries = self._header.pop("tensors")
        if sum(_checked(entry) for entry in entries) > FRAME_BYTES_MAX:
            raise PayloadTooLarge("The tensors of a frame are too large.")
        for entry in entries:
            _, dtype, shape, nbytes = entry
            body: Any = bytearray(nbytes) if dtype == STRING else np.empty(shape, DTYPES[dtype])
            self._bodies.append((entry, body))
            if nbytes:
                self._missing.append(memoryview(body).cast("B"))


def _checked(entry: Any) -> int:
    """The bytes of a tensor that a header describes as [name, dtype, shape, nbytes]."""
    name, dtype, shape, nbytes = entry
    sizes = (*shape, nbytes)
    if type(name) is not str or dtype not in DTYPES or any(type(size) is not int or size < 0 for size in sizes):
        raise MalformedMessage("A header describes no tensor.")
    if dtype != STRING and math.prod(shape) * DTYPES[dtype].itemsize != nbytes:
        raise MalformedMessage("A tensor's bytes are not those of its shape.")
    return int(nbytes)


def _array(entry: list[Any], body: Any) -> Array:
    array: Array = unpack_strings(body, entry[2]) if entry[1] == STRING else body
    return array
