"""What is told of a model, which tensors fit it, and how they travel."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructors.pipelines.onnx import frames
from instructors.pipelines.onnx.facts import (
    DTYPES,
    Array,
    Facts,
    RunnerSpec,
    TensorInfo,
    check,
    check_outputs,
    checked_dtype,
)
from protocol.codec import pack
from protocol.errors import InvalidRequest, MalformedMessage, ModelInvalid, PayloadTooLarge
from tests.instructors.onnx_models import Shape


def facts(*inputs: tuple[str, str, Shape]) -> Facts:
    """Of a model with these inputs, and the outputs `y` and `z`."""
    outputs = (TensorInfo("y", "float32", (None,)), TensorInfo("z", "float32", (None,)))
    infos = tuple(TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in inputs)
    return Facts(infos, outputs, ("CPUExecutionProvider",), ("CPUExecutionProvider",), 1.0, 1, False)


def refusal(model: Facts, **tensors: Array) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check(model, tensors)
    assert caught.value.details["fields"][0]["problem"] in caught.value.message
    return caught.value.message


IMAGE = facts(("x", "float32", ["batch", 3, None]))


def test_tensors_that_fit_are_taken() -> None:
    check(IMAGE, {"x": np.zeros((1, 3, 7), np.float32)})
    check(facts(("x", "bfloat16", [2])), {"x": np.zeros(2, np.uint16)})
    check(facts(("x", "string", ["n"])), {"x": np.array(["a", "b"], object)})
    check(facts(("x", "string", ["n"])), {"x": np.array(["a", "b"])})
    check(facts(("x", "float32", [])), {"x": np.zeros((), np.float32)})
    check(facts(("x", "float32", ["n", "past"])), {"x": np.zeros((2, 0), np.float32)})


@pytest.mark.parametrize(
    ("array", "this_is"),
    [
        (np.zeros((1, 3, 7)), "float64 [1, 3, 7]"),
        (np.zeros((1, 3, 7), ">f4"), ">f4 [1, 3, 7]"),
        (np.zeros((1, 3, 7), np.complex64), "complex64 [1, 3, 7]"),
        (np.zeros((1, 3), np.float32), "float32 [1, 3]"),
        (np.zeros((1, 4, 7), np.float32), "float32 [1, 4, 7]"),
        (np.array("a"), "string []"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_what_the_model_wants(array: Array, this_is: str) -> None:
    assert refusal(IMAGE, x=array) == f"input 'x': the model wants float32 [batch, 3, ?], this is {this_is}."


def test_a_batch_of_nothing_is_refused() -> None:
    assert "no items" in refusal(IMAGE, x=np.zeros((0, 3, 7), np.float32))


def test_an_unknown_and_a_missing_input_are_named() -> None:
    good = np.zeros((1, 3, 7), np.float32)
    problem = "the model has no input of this name; it takes 'x'"
    assert refusal(IMAGE, x=good, extra=good).startswith(f"input 'extra': {problem}")
    assert refusal(IMAGE).startswith("input 'x': is missing; the model takes 'x': float32 [batch, 3, ?]")


def test_axes_of_one_name_have_one_size() -> None:
    model = facts(("a", "float32", ["batch", 2]), ("b", "int64", ["batch"]))
    check(model, {"a": np.zeros((3, 2), np.float32), "b": np.zeros(3, np.int64)})
    message = refusal(model, a=np.zeros((3, 2), np.float32), b=np.zeros(4, np.int64))
    assert message == "input 'b': its axis 'batch' is 4, that of 'a' is 3; they must be the same."


def test_strings_must_be_strings() -> None:
    assert "none" in refusal(facts(("x", "string", ["n"])), x=np.array(["a", 7], object))


def test_an_unknown_output_is_named() -> None:
    check_outputs(IMAGE, ["z", "y"])
    with pytest.raises(InvalidRequest, match=r"output 'w': .* it answers 'y', 'z'"):
        check_outputs(IMAGE, ["w"])


def test_only_tensors_can_be_outputs() -> None:
    assert checked_dtype("x", "tensor(double)") == "float64"
    with pytest.raises(ModelInvalid, match="zipmap=False"):
        checked_dtype("x", "seq(map(int64,tensor(float)))")


def test_spec_and_facts_survive_the_way_to_the_child() -> None:
    spec = RunnerSpec(Path("m.onnx"), providers=("CPUExecutionProvider",), cache=Path("kept"))
    assert RunnerSpec.from_wire(spec.to_wire()) == spec
    assert Facts.from_wire(IMAGE.to_wire()) == IMAGE


def sent(header: dict[str, Any], tensors: dict[str, Array], bits: frozenset[str] = frozenset()) -> frames.Frame:
    """Through a socket, a little at a time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        outgoing, incoming = frames.Outgoing(), frames.Incoming()
        outgoing.put(header, tensors, bits)
        while True:
            outgoing.flush(ours)
            frame = incoming.next(theirs)
            if frame is not None:
                assert not outgoing
                return frame


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("string", "bfloat16")])
def test_each_type_travels(dtype: str) -> None:
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)
    for part in (array, array[:, ::2], array[:0], array[0, 0, 0].reshape(())):
        header, tensors = sent({"id": 5}, {"x": part})
        assert header == {"id": 5}
        assert tensors["x"].dtype == part.dtype
        assert tensors["x"].shape == part.shape
        np.testing.assert_array_equal(tensors["x"], part)


def test_strings_travel_with_their_shape() -> None:
    words = np.array([["", "ä"], ["a b", "日本"]], object)
    _, tensors = sent({}, {"x": words, "y": np.array(["no objects"])})
    assert tensors["x"].tolist() == words.tolist()
    assert tensors["y"].tolist() == ["no objects"]


def test_many_large_tensors_travel_through_a_small_socket() -> None:
    large = {str(number): np.full(20_000, number, np.int64) for number in range(300)}
    _, tensors = sent({}, large)
    assert all((tensors[name] == array).all() for name, array in large.items())


def test_what_is_received_is_no_copy() -> None:
    _, tensors = sent({}, {"x": np.zeros((2, 2), np.float32)})
    assert tensors["x"].base is None
    assert tensors["x"].flags.writeable


@pytest.mark.parametrize("raw", [b"\1\0\0\0", b"\1\0\0\0a\1\0\0", b"\xff\0\0\0a", b"\1\0\0\0\xff"])
def test_strings_that_are_none_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        frames.unpack_strings(raw, [1])


def test_the_number_of_strings_is_that_of_the_shape() -> None:
    with pytest.raises(InvalidRequest, match="2 strings where the shape wants 3"):
        frames.unpack_strings(b"\1\0\0\0a\0\0\0\0", [3])


def damaged(change: Callable[[list[Any]], None]) -> None:
    """Read a frame whose header was changed."""
    entry: list[Any] = ["x", "float32", [2, 2], 16]
    change(entry)
    head = pack({"tensors": [entry]})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frames.LENGTH.pack(len(head)) + head)
        frames.Incoming().next(theirs)


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, 7, MalformedMessage),
        (1, "object", MalformedMessage),
        (2, [2, -2], MalformedMessage),
        (2, [2, 3], MalformedMessage),
        (2, [True, 4], MalformedMessage),
        (3, 17, MalformedMessage),
        (2, [2**32, 2**32], MalformedMessage),
    ],
)
def test_a_header_that_lies_is_refused(at: int, value: Any, error: type[Exception]) -> None:
    def change(entry: list[Any]) -> None:
        entry[at] = value

    with pytest.raises(error):
        damaged(change)


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    def change(entry: list[Any]) -> None:
        entry[2:] = [[2**30], 2**32]

    with pytest.raises(PayloadTooLarge):
        damaged(change)


def test_what_is_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 100)
    outgoing = frames.Outgoing()
    with pytest.raises(PayloadTooLarge):
        outgoing.put({}, {"x": np.zeros(101, np.uint8)})
    with pytest.raises(PayloadTooLarge):
        outgoing.put({"name": "x" * frames.HEADER_BYTES_MAX})
    assert not outgoing


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no character"):
        frames.pack_strings(np.array(["\ud800"], object))


def test_a_header_beyond_the_limit_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(PayloadTooLarge):
            frames.Incoming().next(theirs)


def test_the_end_of_the_other_side_is_told() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(EOFError):
            frames.Incoming().next(theirs)
