"""Tensors as bytes for the cache of results, and what names a result."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from instructors.tensor_bytes import ALIGNMENT, key_of, pack, unpack

DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
X = np.arange(12, dtype="f4").reshape(3, 4)


@given(st.dictionaries(st.text(max_size=10), ARRAYS, max_size=5))
def test_what_was_packed_comes_back(arrays: dict[str, np.ndarray]) -> None:
    back, facts = unpack(pack(arrays, {"inference_time_ms": 1.5}))
    assert list(back) == list(arrays)
    assert facts == {"inference_time_ms": 1.5}
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()  # NaN as well


def test_strings_come_back() -> None:
    words = np.array([["", "grüße"], ["🙂", "a\0b"]], object)
    back, _ = unpack(pack({"words": words}, {}))
    assert back["words"].tolist() == words.tolist()


def test_other_layouts_come_back_as_they_read() -> None:
    big = X.astype(">f4")
    back, _ = unpack(pack({"t": X.T, "big": big, "every": X[::2, ::2]}, {}))
    np.testing.assert_array_equal(back["t"], X.T)
    np.testing.assert_array_equal(back["big"], X)
    np.testing.assert_array_equal(back["every"], X[::2, ::2])


def test_nobody_can_write_to_what_others_read() -> None:
    back, _ = unpack(pack({"x": X}, {}))
    with pytest.raises(ValueError, match="read-only"):
        back["x"][0, 0] = 1


def test_tensors_lie_aligned_within_the_bytes() -> None:
    data = pack({"a": np.zeros(3, "u1"), "b": X, "c": X}, {})
    start = np.frombuffer(data, "u1").ctypes.data
    back, _ = unpack(data)
    assert [(back[name].ctypes.data - start) % ALIGNMENT for name in "abc"] == [0, 0, 0]


@given(st.binary(max_size=200))
def test_other_bytes_are_no_tensors(data: bytes) -> None:
    with pytest.raises(ValueError, match="no tensors"):
        unpack(data)


@given(st.data())
def test_bytes_that_were_cut_or_grew_are_no_tensors(data: st.DataObject) -> None:
    whole = pack({"x": X, "words": np.array(["a", "b"], object)}, {})
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"\0"):
        with pytest.raises(ValueError, match="no tensors"):
            unpack(wrong)


def key(**changed: object) -> bytes:
    said = {"content_hash": "a" * 64, "inputs": {"x": X}, "outputs": None, "parameters": {}} | changed
    return key_of(**said)  # type: ignore[arg-type]


def test_equal_requests_have_one_key() -> None:
    two = {"x": X, "y": X + 1}
    turned = {"y": X + 1, "x": np.asfortranarray(X)}
    assert key(inputs=two) == key(inputs=turned)
    assert key(outputs=["a", "b"]) == key(outputs=["b", "a"])
    assert key(parameters={"k": 5, "labels": [1]}) == key(parameters={"labels": [1], "k": 5})
    assert len(key()) == 32


@pytest.mark.parametrize(
    "changed",
    [
        {"content_hash": "b" * 64},
        {"inputs": {"x": X + 1}},
        {"inputs": {"y": X}},
        {"inputs": {"x": X.reshape(4, 3)}},
        {"inputs": {"x": X.view("i4")}},
        {"inputs": {"x": X, "y": X}},
        {"outputs": []},
        {"outputs": ["a"]},
        {"parameters": {"k": 5}},
        {"parameters": {"k": 5.0}},
    ],
)
def test_whatever_it_depends_on_changes_the_key(changed: dict[str, object]) -> None:
    assert key(**changed) != key()


def test_strings_cannot_be_shifted_into_each_other() -> None:
    one, other = np.array(["ab", "c"], object), np.array(["a", "bc"], object)
    assert key(inputs={"x": one}) != key(inputs={"x": other})
