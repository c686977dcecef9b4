"""The codec against any bytes at all: only its own errors, bounded memory and time, and a faithful round trip."""

import math
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import attachment_list, check_attachments, fingerprint, pack, unpack, unpack_header
from protocol.errors import MalformedMessage, PayloadTooLarge
from protocol.limits import INT_MAX, MIB, WireLimits

SMALL = WireLimits(header_bytes_max=100, nesting_max=2, entries_max=3, attachments_max=2, attachment_bytes_max=10)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-INT_MAX, INT_MAX) | st.floats() | texts | st.binary(max_size=20)
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20
)
headers = st.dictionaries(texts, values, max_size=6)
foreign = st.recursive(  # what other msgpack users may send, and we don't take
    scalars | st.just(msgpack.Timestamp(1)) | st.just(msgpack.ExtType(5, b"")),
    lambda inner: st.lists(inner) | st.dictionaries(texts | st.integers(0, 9), inner),
    max_leaves=9,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and left == right


def kinds(value: Any) -> set[type]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return {type(value)}.union(*(kinds(item) for item in inner))


@given(headers)
def test_round_trip(header: dict[str, Any]) -> None:
    assert same(header, unpack_header(pack(header)))


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_any_bytes_raise_only_ours(raw: bytes) -> None:
    for data in (raw, b"\x81\xa1a" + raw, b"\x8f" + raw):
        try:
            header = unpack_header(data)
        except (MalformedMessage, PayloadTooLarge):
            continue
        assert same(header, unpack_header(pack(header)))


@given(headers, st.data())
@settings(max_examples=300)
def test_a_damaged_header_raises_only_ours(header: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(pack(header))
    index = data.draw(st.integers(0, len(raw) - 1))
    raw[index] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(1, len(raw))) :]
    with suppress(MalformedMessage, PayloadTooLarge):
        unpack_header(raw)


@given(foreign)
def test_what_is_taken_holds_only_plain_values(value: Any) -> None:
    raw = msgpack.packb({"a": value})
    try:
        header = unpack_header(raw)
    except MalformedMessage:
        return
    assert kinds(header) <= {dict, list, str, bytes, int, float, bool, type(None)}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x81\xa1a" + b"\xdd\x00\x00\x40\x00" * 200_000,  # lists in each other, each claiming 16,384 entries
        b"\x81\xa1a" + b"\xdf\x00\x00\x40\x00\xa1a" * 140_000,
        b"\xdc\x40\x00" + b"\xdc\x00\x3f" * 16_384 + b"\x80" * (16_384 * 48),
        b"\xdc\x00\x40" + (b"\xdc\x40\x00" + b"\x80" * 16_384) * 63,  # a million empty maps
        b"\xdc\x00\x40" + (b"\xdc\x40\x00" + b"\x01" * 16_384) * 63,
        b"\xde\x40\x00" + b"".join(b"\xa5" + b"%05d" % key + b"\x01" for key in range(16_384)),
        b"\x81\xa1a" + b"\x91" * (MIB - 4) + b"\xc0",
    ],
    ids=["lists", "maps", "truncated", "empty_maps", "integers", "keys", "deep"],
)
def test_memory_and_time_stay_bounded(raw: bytes) -> None:
    assert len(raw) <= MIB
    tracemalloc.start()
    try:
        try_unpack(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 * MIB  # an empty map weighs 64 bytes
    began = time.process_time()
    try_unpack(raw)
    assert time.process_time() - began < 2  # 0.3 s at worst where it was measured


def try_unpack(raw: bytes) -> None:
    with suppress(MalformedMessage, PayloadTooLarge):
        unpack_header(raw)


def test_limits_hold_at_their_edge() -> None:
    fits = {"a": ["x" * 30, 1, b"\x00"]}
    assert unpack_header(pack(fits), SMALL) == fits
    with pytest.raises(MalformedMessage, match="nested"):
        unpack_header(pack({"a": [[]]}), SMALL)
    with pytest.raises(MalformedMessage):
        unpack_header(pack({"a": [1, 2, 3, 4]}), SMALL)
    with pytest.raises(MalformedMessage):
        unpack_header(pack({"a": 1, "b": 1, "c": 1, "d": 1}), SMALL)
    assert unpack_header(pack({"a": "x" * 95}), SMALL)  # 1 + 2 + 2 + 95 = 100 bytes
    with pytest.raises(PayloadTooLarge):
        unpack_header(pack({"a": "x" * 96}), SMALL)


def test_only_a_header_must_be_a_map() -> None:
    assert unpack(pack([1, "a", None])) == [1, "a", None]
    with pytest.raises(MalformedMessage):
        unpack(pack(2**53))


def test_attachments_as_described() -> None:
    frames = [b"abc", bytearray(b""), memoryview(b"12345")]
    header = {"attachments": attachment_list(frames, ["a/b", "c/d", "e/f"])}
    assert header["attachments"][2] == {"media_type": "e/f", "nbytes": 5}
    check_attachments(header, [3, 0, 5])
    check_attachments({}, [])
    check_attachments({"attachments": []}, [])
    with pytest.raises(ValueError, match="shorter"):
        attachment_list(frames, ["a/b"])


@pytest.mark.parametrize(
    "described",
    [
        None,
        7,
        "ab",
        {"0": 1},
        [],
        [{"media_type": "a/b", "nbytes": 1}] * 2,
        [7],
        [{}],
        [{"media_type": "a/b"}],
        [{"nbytes": 1}],
        [{"media_type": 7, "nbytes": 1}],
        [{"media_type": "a/b", "nbytes": 2}],
        [{"media_type": "a/b", "nbytes": "1"}],
        [{"media_type": "a/b", "nbytes": True}],
        [{"media_type": "a/b", "nbytes": float("nan")}],
    ],
)
def test_attachments_not_as_described(described: Any) -> None:
    with pytest.raises(MalformedMessage):
        check_attachments({"attachments": described}, [1])


def test_too_many_or_too_large_attachments() -> None:
    one = {"media_type": "a/b", "nbytes": 5}
    check_attachments({"attachments": [one, one]}, [5, 5], SMALL)
    with pytest.raises(PayloadTooLarge):
        check_attachments({"attachments": [one, one]}, [5, 6], SMALL)
    with pytest.raises(PayloadTooLarge):
        check_attachments({"attachments": [one] * 3}, [1, 1, 1], SMALL)


@given(headers)
def test_fingerprint_ignores_order_and_kind_of_number(data: dict[str, Any]) -> None:
    mixed = {key: float(value) if type(value) is int else value for key, value in reversed(data.items())}
    assert fingerprint("a", None, data, [], []) == fingerprint("a", None, mixed, [], [])


@given(headers, headers)
def test_fingerprint_tells_other_data_apart(left: dict[str, Any], right: dict[str, Any]) -> None:
    if fingerprint("a", None, left, [], []) == fingerprint("a", None, right, [], []):
        assert left == right or "nan" in repr(left)
    assert fingerprint("a", None, left, [], []) != fingerprint("b", None, left, [], [])
    assert fingerprint("a", None, left, [], []) != fingerprint("a", "s", left, [], [])


def test_fingerprint_counts_attachments() -> None:
    entry = {"media_type": "a/b", "nbytes": 1}
    base = fingerprint("a", None, {}, [entry], [bytes(32)])
    assert base == fingerprint("a", None, {}, [{**entry, "nbytes": 1.0}], [bytes(32)])
    assert base != fingerprint("a", None, {}, [entry], [b"\x01" * 32])
    assert base != fingerprint("a", None, {}, [{**entry, "media_type": "c/d"}], [bytes(32)])
    assert base != fingerprint("a", None, {}, [], [])


def test_what_cannot_be_packed_leaves_no_trace() -> None:
    with pytest.raises(TypeError):
        pack(["half", object()])
    with pytest.raises(OverflowError):
        pack({"a": "half", "b": 2**64})
    assert pack("whole") == b"\xa5whole"
