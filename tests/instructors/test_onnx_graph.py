"""ONNX files are judged by their content, without running them."""

import pickle
import random
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from instructors.pipelines.onnx import graph, protobuf
from instructors.pipelines.onnx.facts import TensorInfo
from protocol.errors import AtelierError, Forbidden, ModelInvalid
from protocol.limits import MIB
from tests.instructors import onnx_models as models


def refusal(path: Path, error: type[AtelierError] = ModelInvalid) -> str:
    with pytest.raises(error) as caught:
        graph.inspect(path, path.parent)
    assert str(path.parent) not in caught.value.message
    return caught.value.message


def changed(path: Path, change: Any) -> Path:
    """The model in the file, with something done to it."""
    made = onnx.load(str(path), load_external_data=False)
    change(made)
    return models.save(made, path)


def test_a_model_is_described(tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx")
    facts = graph.inspect(path, tmp_path)
    assert facts.inputs == (TensorInfo("x", "float32", ("batch", 128)),)
    assert facts.outputs == (TensorInfo("y", "float32", ("batch", 10)),)
    assert (facts.opset, facts.ir_version) == (models.OPSET, models.IR_VERSION)
    assert facts.nbytes == path.stat().st_size
    assert facts.elements == 128 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    assert (facts.initializers, facts.nodes, facts.external) == (6, 5, ())


@pytest.mark.parametrize("dtype", models.TYPES)
def test_each_type_and_open_axes_are_described(dtype: str, tmp_path: Path) -> None:
    path = models.identity(tmp_path / "model.onnx", dtype, ["batch", None, 3])
    assert graph.inspect(path, tmp_path).inputs == (TensorInfo("x", dtype, ("batch", None, 3)),)


def test_weights_that_could_be_overridden_are_no_inputs(tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx", (2, 2))
    changed(path, lambda made: made.graph.input.append(models.value("w0", "float32", [2, 2])))
    assert [info.name for info in graph.inspect(path, tmp_path).inputs] == ["x"]


def test_weights_beside_the_model_count(tmp_path: Path) -> None:
    path = models.external(tmp_path / "model.onnx")
    facts = graph.inspect(path, tmp_path)
    assert facts.external == ("weights.bin",)
    assert facts.nbytes == path.stat().st_size + 64 * 64 * 4


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../weights.bin", "*/_ORT_MEM_ADDR_/*"])
def test_weights_outside_the_folder_are_forbidden(location: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(64 * 64 * 4))
    path = models.external(tmp_path / "model" / "model.onnx", location)
    assert "outside its folder" in refusal(path, Forbidden)


def test_a_link_out_of_the_folder_is_forbidden(tmp_path: Path) -> None:
    path = models.external(tmp_path / "model" / "model.onnx")
    (path.parent / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (path.parent / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    assert "leads out" in refusal(path, Forbidden)
    link = path.parent / "link.onnx"
    link.symlink_to(models.mlp(tmp_path / "other.onnx", (2, 2)))
    assert "leads out" in refusal(link, Forbidden)


def test_weights_beside_the_model_must_be_there_and_whole(tmp_path: Path) -> None:
    path = models.external(tmp_path / "model.onnx")
    (tmp_path / "weights.bin").write_bytes(bytes(64 * 64 * 4 - 1))
    assert "shorter" in refusal(path)
    (tmp_path / "weights.bin").unlink()
    assert "missing" in refusal(path)


@pytest.mark.parametrize(("key", "text"), [("length", "16"), ("offset", "-1"), ("offset", "x"), ("location", "")])
def test_weights_beside_the_model_must_make_sense(key: str, text: str, tmp_path: Path) -> None:
    def change(made: onnx.ModelProto) -> None:
        for entry in made.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = text

    refusal(changed(models.external(tmp_path / "model.onnx"), change))


def test_weights_beside_the_model_are_found_in_attributes_and_nested_graphs(tmp_path: Path) -> None:
    path = models.loop(tmp_path / "model" / "model.onnx")

    def change(made: onnx.ModelProto) -> None:
        body = next(node for node in made.graph.node if node.op_type == "Loop").attribute[0].g
        outside = helper.make_tensor("w", models.TYPES["float32"], [1], [1.0])
        outside.ClearField("float_data")
        outside.data_location = onnx.TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="../weights.bin")
        body.node.append(helper.make_node("Constant", [], ["unused"], value=outside))

    refusal(changed(path, change), Forbidden)


def test_a_custom_operator_is_refused_wherever_it_is(tmp_path: Path) -> None:
    assert "'Frobnicate' of 'org.example'" in refusal(models.custom_operator(tmp_path / "model.onnx"))
    path = models.loop(tmp_path / "model.onnx")

    def change(made: onnx.ModelProto) -> None:
        body = next(node for node in made.graph.node if node.op_type == "Loop").attribute[0].g
        body.node.append(helper.make_node("Frobnicate", ["state"], ["unused"], domain="org.example"))

    assert "'Frobnicate'" in refusal(changed(path, change))


def test_functions_in_the_file_are_no_custom_operators(tmp_path: Path) -> None:
    def change(made: onnx.ModelProto) -> None:
        nodes = [helper.make_node("Add", ["a", "a"], ["b"])]
        opsets = [helper.make_opsetid("", models.OPSET)]
        made.functions.append(helper.make_function("org.example", "Frobnicate", ["a"], ["b"], nodes, opsets))

    path = changed(models.custom_operator(tmp_path / "model.onnx"), change)
    assert graph.inspect(path, tmp_path).opsets == {"": models.OPSET, "org.example": 1}


def test_a_graph_that_was_compiled_for_a_device_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/tmp/engine")
    shape = ["batch"]
    made = models.model([node], [models.value("x", "float32", shape)], [models.value("y", "float32", shape)])
    path = models.save(made, tmp_path / "model.onnx")
    assert "compiled" in refusal(path)


def test_a_field_of_another_kind_hides_nothing(tmp_path: Path) -> None:
    """Protobuf's own parser passes over a domain or an operator's name that is a number; so must ours."""
    made = onnx.load(str(models.custom_operator(tmp_path / "model.onnx")))
    node = made.graph.node[0].SerializeToString() + b"\x38\x00\x20\x00"  # domain and name again, as numbers
    made.graph.ClearField("node")
    inner = made.graph.SerializeToString() + _field(1, node)
    made.ClearField("graph")
    raw = made.SerializeToString() + _field(7, inner)
    assert onnx.ModelProto.FromString(raw).graph.node[0].domain == "org.example"
    (tmp_path / "model.onnx").write_bytes(raw)
    assert "'Frobnicate' of 'org.example'" in refusal(tmp_path / "model.onnx")


def test_a_field_whose_number_is_too_long_hides_nothing(tmp_path: Path) -> None:
    """onnxruntime's parser drops what is beyond 32 bits: to it this is the field for weights in another file."""
    hidden = onnx.TensorProto(name="w", dims=[2], data_type=1, data_location=1).SerializeToString()
    for key, text in (("location", "weights"), ("offset", "0"), ("length", "8")):
        pair = _field(1, key.encode()) + _field(2, text.encode())
        hidden += _varint((13 << 3 | 2) + 2**32) + _varint(len(pair)) + pair
    sides = [models.value("x", "float32", [2])], [models.value("y", "float32", [2])]
    made = models.model([helper.make_node("Add", ["x", "w"], ["y"])], *sides)
    inner = made.graph.SerializeToString() + _field(5, hidden)
    made.ClearField("graph")
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString() + _field(7, inner))
    (tmp_path / "weights").write_bytes(np.array([1, 2], np.float32).tobytes())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros(2, np.float32)})[0].tolist() == [1, 2]
    assert "no whole ONNX model" in refusal(tmp_path / "model.onnx")


def test_weights_of_another_size_than_their_shape_are_refused(tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx", (2, 2))

    def change(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].dims[0] = 3

    assert "not as large as their shape" in refusal(changed(path, change))


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    def change(made: onnx.ModelProto) -> None:
        made.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(made.graph.output[0].type))

    assert "zipmap=False" in refusal(changed(models.identity(tmp_path / "model.onnx"), change))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not a model at all\n" * 10,
        pickle.dumps({"a": 1}),
        b"PK\3\4" + bytes(60),
        bytes(1000),
        b"\xff" * 99,
    ],
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refusal(path)


def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path / "model.onnx")


def test_a_file_of_too_many_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "FIELDS_MAX", 20)
    assert "more than 20 parts" in refusal(models.mlp(tmp_path / "model.onnx", (2, 2)))


def test_graphs_that_are_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "model.onnx")

    def change(made: onnx.ModelProto) -> None:
        inner = made.graph
        for _ in range(40):
            node = inner.node.add(op_type="If")
            inner = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g

    assert "nested" in refusal(changed(path, change))


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A file of 1.5 GB, nearly all of it a hole, is described by its few fields."""
    size = 1_500_000_000
    made = onnx.load(str(models.identity(tmp_path / "model.onnx")))
    weights = b"\x08" + _varint(size // 4) + b"\x10\x01" + _field(8, b"w") + b"\x4a" + _varint(size)
    inner = made.graph.SerializeToString() + b"\x2a" + _varint(len(weights) + size) + weights
    made.ClearField("graph")
    head = made.SerializeToString() + b"\x3a" + _varint(len(inner) + size) + inner
    with (tmp_path / "model.onnx").open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + size)
    tracemalloc.start()
    try:
        assert graph.inspect(tmp_path / "model.onnx", tmp_path).elements == size // 4
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, raw: bytes) -> bytes:
    """One with a length."""
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def mutants(raw: bytes, count: int, seed: int = 0) -> list[bytes]:
    """Cut off, bytes changed, pieces taken out, doubled, or filled with one byte."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        data, at = bytearray(raw), rng.randrange(len(raw))
        kind = number % 5
        if kind == 0:
            del data[at:]
        elif kind == 1:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        else:
            data[at : at + 10] = bytes([rng.choice([0, 0x7F, 0x80, 0xFF])]) * 10
        made.append(bytes(data))
    return made


def test_no_damaged_file_does_harm(tmp_path: Path) -> None:
    path = models.loop(tmp_path / "model.onnx")
    accepted = 0
    for data in mutants(path.read_bytes(), 1000):
        path.write_bytes(data)
        with suppress(ModelInvalid, Forbidden):
            assert graph.inspect(path, tmp_path).nbytes == len(data)
            accepted += 1
    assert 0 < accepted < 800  # names and numbers may change


def test_no_truncated_file_is_accepted(tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx", (3, 3))
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        refusal(path)
