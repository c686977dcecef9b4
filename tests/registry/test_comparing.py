"""Two answers to one request, side by side."""

import math
import struct
from typing import Any

from orchestrator.registry.comparing import SAMPLES_MAX, Answer, compare


def answer(*values: float, dtype: str = "float32", predictions: Any = (), name: str = "y") -> Answer:
    code = {"float32": "f", "float64": "d", "int64": "q", "float16": "e", "bfloat16": "H", "uint8": "B"}[dtype]
    output = {"name": name, "dtype": dtype, "shape": [len(values)], "attachment": 0}
    data = {"outputs": [output], "predictions": list(predictions), "inference_time_ms": 1.0}
    return Answer(data, [struct.pack(f"<{len(values)}{code}", *values)])


def test_equal_answers() -> None:
    found = compare(answer(1, 2, 3), answer(1, 2, 3))
    assert (found.equal, found.numbers, found.equal_numbers, found.max_abs_diff) == (True, 3, 3, 0.0)


def test_how_far_apart() -> None:
    found = compare(answer(1, 2, 3, 4), answer(1, 2.5, 3, 1))
    assert (found.equal, found.numbers, found.equal_numbers, found.max_abs_diff) == (False, 4, 2, 3.0)


def test_each_kind_of_number() -> None:
    for dtype in ("float64", "int64", "float16", "uint8"):
        assert compare(answer(1, 7, dtype=dtype), answer(1, 4, dtype=dtype)).max_abs_diff == 3
    one, two = 0x3F80, 0x4000  # the upper halves of 1.0 and 2.0
    assert compare(answer(one, dtype="bfloat16"), answer(two, dtype="bfloat16")).max_abs_diff == 1.0


def test_what_is_no_number_is_equal_to_itself_and_has_no_distance() -> None:
    found = compare(answer(math.nan, math.inf, 1), answer(math.nan, 5, 1))
    assert (found.equal_numbers, found.max_abs_diff) == (2, 0.0)


def test_predictions_count_too() -> None:
    assert not compare(answer(1, predictions=[{"label": "a"}]), answer(1, predictions=[{"label": "b"}])).equal
    assert compare(answer(1, predictions=[{"label": "a"}]), answer(1, predictions=[{"label": "a"}])).equal


def test_other_tensors_than_expected() -> None:
    assert not compare(answer(1), answer(1, name="z")).equal
    assert compare(answer(1), answer(1, name="z")).numbers == 0
    assert not compare(answer(1), answer(1, 1)).equal
    assert not compare(answer(1), answer(1, dtype="float64")).equal


def test_the_same_numbers_in_another_shape_are_another_tensor() -> None:
    flat, square = answer(1, 2, 3, 4), answer(1, 2, 3, 4)
    square.data["outputs"][0]["shape"] = [2, 2]
    found = compare(flat, square)
    assert (found.equal, found.numbers) == (False, 0)


def test_bytes_beside_the_header_and_in_it_are_the_same() -> None:
    inside = {"name": "y", "dtype": "float32", "shape": [1], "data": struct.pack("<f", 1.0)}
    assert compare(answer(1.0), Answer({"outputs": [inside]}, [])).equal


def test_pictures_are_compared_byte_by_byte() -> None:
    data = {"images": [{"attachment": 0}]}
    assert compare(Answer(data, [b"png"]), Answer(data, [b"png"])).equal
    assert not compare(Answer(data, [b"png"]), Answer(data, [b"gnp"])).equal


def test_of_large_tensors_a_part_is_looked_at() -> None:
    many = [float(number % 7) for number in range(10 * SAMPLES_MAX)]
    found = compare(answer(*many), answer(*[value + 1 for value in many]))
    assert (found.numbers, found.equal_numbers, found.max_abs_diff) == (SAMPLES_MAX, 0, 1.0)


def test_strings_are_compared_whole() -> None:
    output = {"name": "y", "dtype": "string", "shape": [1], "attachment": 0}
    one, other = Answer({"outputs": [output]}, [b"\x01\0\0\0a"]), Answer({"outputs": [output]}, [b"\x01\0\0\0b"])
    assert compare(one, one).equal
    assert not compare(one, other).equal
