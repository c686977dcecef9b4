"""Frames <-> messages: one msgpack header and raw attachments beside it.

The header is decoded under limits that make hostile input cheap to refuse; attachments are never copied here.
Every function raises `MalformedMessage` or `PayloadTooLarge`, nothing else.
"""

import hashlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack

from protocol.errors import MalformedMessage, PayloadTooLarge
from protocol.limits import DEFAULT_LIMITS, INT_MAX, WireLimits

Header = dict[str, Any]
Buffer = bytes | bytearray | memoryview  # or a ZeroMQ frame's buffer


REWRITTEN = frozenset((dict, list, float))  # types that the canonical form may change


class _Packers(threading.local):
    """A packer per thread: making one costs more than packing a header, and they are not thread-safe."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer(use_bin_type=True).pack


_packers = _Packers()


def pack(value: Any) -> bytes:
    """One msgpack value: str as str, bytes as bin, no extension types."""
    return _packers.pack(value)


def unpack(raw: Buffer, limits: WireLimits = DEFAULT_LIMITS) -> Any:
    """The one msgpack value in `raw`, refused if it breaks a rule of the header (see SPEC.md, Header)."""
    try:
        value = msgpack.unpackb(
            raw,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map,
            ext_hook=_no_extension,
            max_array_len=limits.entries_max,  # msgpack allocates what a length claims, before it sees the entries
            max_map_len=limits.entries_max,
        )
        _check((value,), limits.nesting_max + 1)
    except MalformedMessage:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessage(f"The header is not valid msgpack ({type(error).__name__}).") from None
    return value


def unpack_header(raw: Buffer, limits: WireLimits = DEFAULT_LIMITS) -> Header:
    """The header map of a message."""
    nbytes = memoryview(raw).nbytes
    if nbytes > limits.header_bytes_max:
        raise PayloadTooLarge(f"The header has {nbytes} bytes; {limits.header_bytes_max} are allowed.")
    header = unpack(raw, limits)
    if type(header) is not dict:
        raise MalformedMessage("The header must be a msgpack map.")
    return header


def attachment_list(frames: Sequence[Buffer], media_types: Iterable[str]) -> list[dict[str, Any]]:
    """The header's `attachments` entry for these frames."""
    return [
        {"media_type": media_type, "nbytes": memoryview(frame).nbytes}
        for frame, media_type in zip(frames, media_types, strict=True)
    ]


def check_attachments(header: Header, sizes: Sequence[int], limits: WireLimits = DEFAULT_LIMITS) -> None:
    """Refuse a message whose attachment frames (their sizes in bytes) are not what its header says."""
    described = header.get("attachments")
    if not sizes and not described:
        return
    if len(sizes) > limits.attachments_max:
        raise PayloadTooLarge(f"{len(sizes)} attachments; {limits.attachments_max} are allowed.")
    if sum(sizes) > limits.attachment_bytes_max:
        raise PayloadTooLarge(f"The attachments have more than {limits.attachment_bytes_max} bytes in all.")
    if type(described) is not list or len(described) != len(sizes):
        raise MalformedMessage(f"The header must describe each attachment; {len(sizes)} frames came with this message.")
    for index, (entry, nbytes) in enumerate(zip(described, sizes, strict=True)):
        if type(entry) is not dict or type(entry.get("media_type")) is not str:
            raise MalformedMessage(f"attachments[{index}] must be {{media_type, nbytes}}.")
        if type(entry.get("nbytes")) is bool or entry.get("nbytes") != nbytes:
            raise MalformedMessage(f"attachments[{index}] came with {nbytes} bytes, not what its entry says.")


def fingerprint(
    action: str,
    session_id: str | None,
    data: dict[str, Any],
    attachments: Sequence[dict[str, Any]],
    digests: Sequence[bytes],
) -> bytes:
    """SHA-256 that tells whether two requests ask for the same work (SPEC.md, Idempotency).

    `digests` are the attachments' SHA-256, in order.
    """
    return hashlib.sha256(canonical_request(action, session_id, data, attachments, digests)).digest()


def canonical_request(
    action: str,
    session_id: str | None,
    data: dict[str, Any],
    attachments: Sequence[dict[str, Any]],
    digests: Sequence[bytes],
) -> bytes:
    """The bytes that `fingerprint` hashes: equal for requests that ask for the same work."""
    described = zip(attachments, digests, strict=True)
    parts = [[entry["media_type"], int(entry["nbytes"]), digest] for entry, digest in described]
    return pack([action, session_id, _canonical(data), parts])


def _canonical(value: Any) -> Any:
    if type(value) is dict:
        return {key: _canonical(item) if type(item := value[key]) in REWRITTEN else item for key in sorted(value)}
    if type(value) is list:
        return [_canonical(item) for item in value]
    if type(value) is float and value.is_integer() and abs(value) <= INT_MAX:
        return int(value)  # a JavaScript client cannot tell 7.0 from 7
    return value


def _map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedMessage("A map in the header holds a key twice.")
    for key in result:
        if type(key) is not str:
            raise MalformedMessage("Every key in the header must be a string.")
    return result


def _no_extension(code: int, data: bytes) -> None:
    raise MalformedMessage("msgpack extension types are not used.")


def _check(values: Iterable[Any], depth_left: int) -> None:
    if depth_left == 0:
        raise MalformedMessage("The header is nested too deeply.")
    for value in values:
        kind = type(value)
        if kind is str:
            continue
        if kind is int:
            if not -INT_MAX <= value <= INT_MAX:
                raise MalformedMessage("Integers stay within 2^53 - 1; send a larger seed as a decimal string.")
        elif kind is dict:
            _check(value.values(), depth_left - 1)
        elif kind is list:
            _check(value, depth_left - 1)
        elif kind is msgpack.Timestamp:
            raise MalformedMessage("msgpack timestamps are not used; times are RFC 3339 strings.")
