"""Whether two answers to one request are the same, and how far apart their numbers are."""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from protocol.codec import Buffer
from protocol.tensors import CODES, ITEMSIZES

SAMPLES_MAX = 4096  # numbers of a tensor that are looked at, evenly spread: the loop must not wait for them all
BFLOAT16_SHIFT = 16  # its bits are the upper half of a float32's


class Answer(NamedTuple):
    """The `data` of a result, and its attachments."""

    data: Mapping[str, Any]
    frames: Sequence[Buffer]


class Comparison(NamedTuple):
    equal: bool  # all of both: predictions, tensors, attachments
    numbers: int = 0  # that were compared
    equal_numbers: int = 0
    max_abs_diff: float | None = None  # None: nothing was compared, or no difference is a number


def compare(one: Answer, other: Answer) -> Comparison:
    """Tensors by their names, predictions as they are, and of an answer without either its attachments."""
    predictions = one.data.get("predictions", []) == other.data.get("predictions", [])
    mine, theirs = _tensors(one), _tensors(other)
    if not mine and not theirs:
        frames = [bytes(frame) for frame in one.frames] == [bytes(frame) for frame in other.frames]
        return Comparison(predictions and frames)
    numbers = equal_numbers = 0
    same, furthest = predictions and mine.keys() == theirs.keys(), None
    for name in mine.keys() & theirs.keys():
        (dtype, shape, data), (other_dtype, other_shape, other_data) = mine[name], theirs[name]
        if (dtype, shape) != (other_dtype, other_shape):
            same = False
            continue
        same = same and data == other_data
        for a, b in _samples(dtype, data, other_data):
            numbers += 1
            equal_numbers += a == b or (a != a and b != b)
            apart = abs(a - b)
            if math.isfinite(apart):
                furthest = max(furthest or 0.0, apart)
    return Comparison(same, numbers, equal_numbers, furthest)


def _tensors(answer: Answer) -> dict[str, tuple[str, list[int], bytes]]:
    """name -> dtype, shape and bytes of the tensors that are whole."""
    found = {}
    outputs = answer.data.get("outputs")
    for output in outputs if isinstance(outputs, list) else ():
        index, data = output.get("attachment"), output.get("data")
        if data is None and isinstance(index, int) and 0 <= index < len(answer.frames):
            data = bytes(memoryview(answer.frames[index]))
        if data is not None:
            found[str(output.get("name"))] = (str(output.get("dtype")), list(output.get("shape", ())), bytes(data))
    return found


def _samples(dtype: str, one: bytes, other: bytes) -> Iterator[tuple[float, float]]:
    """Pairs of numbers at the same places; none of strings, or where the sizes differ."""
    itemsize = ITEMSIZES.get(dtype)
    if itemsize is None or len(one) != len(other):
        return
    read = struct.Struct(f"<{CODES[dtype]}").unpack_from
    count = len(one) // itemsize
    step = max(1, math.ceil(count / SAMPLES_MAX))
    for index in range(0, count, step):
        a, b = read(one, index * itemsize)[0], read(other, index * itemsize)[0]
        yield (_widened(a), _widened(b)) if dtype == "bfloat16" else (a, b)


def _widened(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << BFLOAT16_SHIFT))[0])
