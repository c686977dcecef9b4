"""Tensors on the wire: both ways, with and without numpy, and what is refused."""

import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from protocol.codec import pack
from protocol.errors import AtelierError, InvalidRequest, MalformedMessage
from protocol.schemas import validate_data
from protocol.schemas.artifact import ArtifactRef
from protocol.schemas.predict import REQUESTS_MAX, PredictData, check_tensors, read_items
from protocol.schemas.values import byte_refs, check_references, put_at
from protocol.tensors import (
    ITEMSIZES,
    TENSOR_BYTES_MAX,
    Tensor,
    from_list,
    from_numpy,
    join_strings,
    nbytes_of,
    split_strings,
    to_numpy,
)

NUMBERS = [name for name in ITEMSIZES if name != "bfloat16"]
SHAPES = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.data(), st.sampled_from(NUMBERS), SHAPES, st.sampled_from("<>"), st.booleans())
def test_arrays_there_and_back(data: Any, dtype: str, shape: tuple[int, ...], order: str, turned: bool) -> None:
    """Of either byte order, contiguous or not, NaN too; and the bytes are little-endian, row by row."""
    array = data.draw(arrays(np.dtype(dtype).newbyteorder(order), shape))
    array = array.T if turned else array
    tensor = from_numpy(array)
    assert (tensor.dtype, tensor.shape) == (dtype, array.shape)
    assert bytes(tensor.data) == array.astype(array.dtype.newbyteorder("<")).tobytes()
    back = to_numpy(Tensor(tensor.dtype, tensor.shape, bytes(tensor.data)))
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back, array)


@given(arrays(object, SHAPES, elements=TEXTS))
def test_strings_there_and_back(array: Any) -> None:
    tensor = from_numpy(array)
    assert tensor.dtype == "string"
    np.testing.assert_array_equal(to_numpy(tensor), array)
    assert split_strings(tensor.data, array.size) == array.ravel().tolist()


@given(st.data(), st.sampled_from([*NUMBERS, "bfloat16", "string"]), SHAPES.filter(lambda shape: 0 not in shape))
def test_lists_there_and_back(data: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """The same bytes as numpy makes, without it."""
    if dtype == "string":
        array = data.draw(arrays(object, shape, elements=TEXTS))
    elif dtype == "bfloat16":
        array = data.draw(arrays(np.float32, shape, elements=st.integers(-100, 100).map(float)))
    else:
        array = data.draw(arrays(dtype, shape, elements={"allow_nan": False} if "float" in dtype else None))
    tensor = from_list(array.tolist(), dtype)
    assert (tensor.dtype, tensor.shape) == (dtype, shape)
    if dtype != "bfloat16":
        assert bytes(tensor.data) == bytes(from_numpy(array).data)
    assert tensor.tolist() == array.tolist()


@given(st.floats(width=32))
def test_bfloat16_is_the_nearest(number: float) -> None:
    """Of all values whose lower half is 0, that of both neighbours which is nearer, or even where they are as near."""
    (bits,) = struct.unpack("<H", bytes(from_list(number, "bfloat16").data))
    (exact,) = struct.unpack("<I", struct.pack("<f", number))
    if math.isnan(number):
        assert math.isnan(Tensor("bfloat16", (), struct.pack("<H", bits)).tolist())
        return
    below = exact >> 16
    rest = exact & 0xFFFF
    assert bits == below + (rest > 0x8000 or (rest == 0x8000 and below % 2 == 1))


@pytest.mark.parametrize(("exact", "rounded"), [(0x3F808000, 0x3F80), (0x3F818000, 0x3F82), (0x3F808001, 0x3F81)])
def test_bfloat16_halfway_is_the_even_one(exact: int, rounded: int) -> None:
    (number,) = struct.unpack("<f", struct.pack("<I", exact))
    assert from_list(number, "bfloat16").data == struct.pack("<H", rounded)


def test_bfloat16_arrays_are_their_bits() -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)
    tensor = from_numpy(bits, "bfloat16")
    assert (tensor.dtype, tensor.tolist()) == ("bfloat16", [1.0, -2.0])
    assert np.array_equal(to_numpy(tensor), bits)


def test_arrays_read_the_bytes_where_they_lie() -> None:
    data = bytearray(np.arange(4, dtype="<f4").tobytes())
    array = to_numpy(Tensor("float32", (2, 2), data))
    data[:4] = struct.pack("<f", 7)
    assert array[0, 0] == 7
    assert not array.flags.writeable
    source = np.arange(4, dtype="<f4")
    assert np.shares_memory(np.frombuffer(from_numpy(source).data, "<f4"), source)


@pytest.mark.parametrize(("value", "dtype"), [([1, 2], "int64"), ([1, 2.0], "float32"), ([True], "bool"),
                                              ("a", "string"), ([], "float32"), ([[], []], "float32")])  # fmt: skip
def test_the_type_of_a_list(value: Any, dtype: str) -> None:
    assert from_list(value).dtype == dtype
    assert from_list(value).tolist() == value


@pytest.mark.parametrize(
    ("value", "dtype", "problem"),
    [
        ([1, True], None, "several kinds"), ([[1], [2, 3]], None, "one length"), ([[1], 2], None, "one length"),
        ([1, [2]], None, "as deep"), ({}, None, "beside"), (None, None, "beside"), ([256], "uint8", "uint8"),
        ([-1], "uint64", "uint64"), ([1.5], "int8", "int8"), (["a"], "float32", "float32"), ([1], "string", "string"),
        ([1e39], "float32", "float32"), ([1e39], "bfloat16", "bfloat16"), ([2], "bool", "bool"), ([1], "int7", "int7"),
        ([[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]], None, "16 axes"),
    ],
)  # fmt: skip
def test_lists_that_are_no_tensor(value: Any, dtype: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_list(value, dtype)


@pytest.mark.parametrize("array", [np.ones(1, complex), np.array(["2026"], "M8[Y]"), np.array([None])])
def test_arrays_that_are_no_tensor(array: Any) -> None:
    with pytest.raises(TypeError):
        from_numpy(array)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("float32", (2,), bytes(7)), Tensor("float32", (2,), bytes(9)), Tensor("float32", (), b""),
        Tensor("string", (2,), b"\0\0\0\0"), Tensor("string", (1,), b"\0\0\0\0\0"), Tensor("string", (0,), b"\0\0\0\0"),
        Tensor("string", (1,), b"\xff\xff\xff\xffabc"), Tensor("string", (1,), b"\1\0\0\0\xff"),
        Tensor("string", (1,), b"\1\0\0"), Tensor("string", (2,), b"\5\0\0\0ab\0\0\0"),
    ],
)  # fmt: skip
def test_bytes_that_are_not_the_tensors(tensor: Tensor) -> None:
    with pytest.raises(InvalidRequest):
        to_numpy(tensor)
    with pytest.raises(InvalidRequest):
        tensor.tolist()


def test_a_bool_is_0_or_1() -> None:
    with pytest.raises(InvalidRequest, match="0 and 1"):
        to_numpy(Tensor("bool", (2,), b"\1\2"))


@given(st.binary(max_size=64), st.integers(0, 8))
def test_no_bytes_are_taken_for_other_strings(raw: bytes, count: int) -> None:
    try:
        found = split_strings(raw, count)
    except InvalidRequest:
        return
    assert len(found) == count
    assert join_strings(found) == raw


def test_numpy_is_not_needed() -> None:
    script = (
        "import sys; sys.modules['numpy'] = None\n"
        "import protocol.tensors as t, protocol.schemas\n"
        "print(t.from_list([[1.5, 2]]).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "[[1.5, 2.0]]\n", done.stderr


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "dtype": "float32", "shape": [2], "data": bytes(8), **fields}


def predict(*inputs: dict[str, Any], **fields: Any) -> PredictData:
    data = validate_data("inference.predict", {"inputs": list(inputs), **fields})
    assert isinstance(data, PredictData)
    return data


def refused(*inputs: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    with pytest.raises(InvalidRequest) as caught:
        predict(*inputs, **fields)
    told: list[dict[str, Any]] = caught.value.details["fields"]
    return told


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"data": bytes(7)}, "has 7 bytes; float32 of shape [2] has 8"),
        ({"shape": []}, "has 8 bytes; float32 of shape [] has 4"),
        ({"dtype": "string", "data": bytes(7)}, "has at least 8"),
        ({"dtype": "string", "shape": [1, 0], "data": bytes(4)}, "has 4 bytes"),
        ({"shape": [0, 2], "data": b""}, "zero items"),
        ({"shape": [2**29], "data": {"attachment": 0}}, f"has {2**31} bytes by its shape; {TENSOR_BYTES_MAX}"),
    ],
)
def test_a_tensor_that_is_not_its_shape_is_told_before_it_is_accepted(fields: dict[str, Any], problem: str) -> None:
    (told,) = refused(tensor(name="a"), tensor(**fields))
    assert told["field"] == "inputs.1"
    assert problem in told["problem"]


@given(st.sampled_from([*ITEMSIZES, "string"]), st.lists(st.integers(1, 5), max_size=4), st.integers(-2, 2))
def test_an_attachment_is_as_long_as_the_shape_says(dtype: str, shape: list[int], more: int) -> None:
    data = predict(tensor(dtype=dtype, shape=shape, data={"attachment": 0}))
    size = nbytes_of(dtype, shape) + more
    check_references(data, 1)
    if more == 0 or (dtype == "string" and more > 0):
        check_tensors(data, [size])
    else:
        with pytest.raises(InvalidRequest, match=f"inputs.0: has {size} bytes"):
            check_tensors(data, [size])


def test_bytes_are_found_and_replaced_wherever_they_stand() -> None:
    stored = {"artifact_id": "a"}
    raw = {"requests": [{"inputs": [tensor(), tensor(name="y", data=stored)], "images": [b"x", stored]}]}
    found = [path for path, ref in byte_refs(validate_data("predict.batch", raw)) if isinstance(ref, ArtifactRef)]
    assert found == ["requests.0.inputs.1.data", "requests.0.images.1"]
    for path in found:
        put_at(raw, path, {"attachment": 0})
    assert raw["requests"][0]["inputs"][1]["data"] == raw["requests"][0]["images"][1] == {"attachment": 0}
    check_references(validate_data("predict.batch", raw), 1)


def test_every_tensor_of_a_batch_is_looked_at() -> None:
    good, bad = (
        {"inputs": [tensor(data={"attachment": 0})]},
        {"inputs": [tensor(), tensor(name="y", data={"attachment": 1})]},
    )
    data = validate_data("predict.batch", {"requests": [good, bad]})
    check_tensors(data, [8, 8])
    with pytest.raises(InvalidRequest, match=r"requests\.1\.inputs\.1: has 9 bytes"):
        check_tensors(data, [8, 9])
    with pytest.raises(InvalidRequest, match=r"requests\.1\.inputs\.1\.data"):
        check_references(data, 1)


@pytest.mark.parametrize(
    "value", [{"a": 1}, [[1]], float("nan"), [1, float("inf")], "a" * 1001, [0] * 1001, b"a", [b"a"]]
)
def test_parameters_are_plain(value: Any) -> None:
    (told,) = refused(tensor(), parameters={"k": value})
    assert told["field"] == "parameters.k"


def test_a_flood_of_parameters_is_one_fault() -> None:
    assert len(refused(tensor(), parameters={str(index): 1 for index in range(65)})) == 1


def test_items_of_a_batch_are_judged_one_by_one() -> None:
    good = {"inputs": [tensor()], "parameters": {"k": 1}}
    bad = [{"inputs": [tensor(shape=[3])]}, {}, 7, None, [], {"inputs": [tensor(data={"attachment": 0})]},
           {"images": [{"artifact_id": "a"}]}, {**good, "model_id": "other"}]  # fmt: skip
    first, *rest = read_items(pack([good, *bad]))
    assert not isinstance(first, AtelierError)
    assert (first.inputs[0].data, first.parameters) == (bytes(8), {"k": 1})
    assert [type(item) for item in rest] == [InvalidRequest] * len(bad)


@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", pack({}), pack([]), pack([7] * (REQUESTS_MAX + 1)), b"\xdd\xff\xff\xff\xff"]
)
def test_an_attachment_that_is_no_batch(raw: bytes) -> None:
    with pytest.raises((InvalidRequest, MalformedMessage)):
        read_items(raw)


def test_pictures_of_an_item_may_be_large() -> None:
    (item,) = read_items(pack([{"images": [bytes(300_000)]}]))
    assert not isinstance(item, AtelierError)
    assert item.images == [bytes(300_000)]
