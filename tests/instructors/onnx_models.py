"""Small ONNX models for tests, each written to a file of its own."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 21, 10
TYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16,
    "string": TensorProto.STRING,
}
Shape = Sequence[int | str | None]


def value(name: str, dtype: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[dtype], list(shape))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, Any] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def save(made: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.SerializeToString())
    return path


def mlp(path: Path, sizes: Sequence[int] = (128, 512, 512, 10), seed: int = 0) -> Path:
    """`x` float32 [batch, first] -> `y` float32 [batch, last], with ReLU between the layers."""
    rng = np.random.default_rng(seed)
    nodes, weights, at = [], {}, "x"
    for layer, (wide, next_wide) in enumerate(pairwise(sizes)):
        weights[f"w{layer}"] = (rng.standard_normal((wide, next_wide)) / wide**0.5).astype(np.float32)
        weights[f"b{layer}"] = rng.standard_normal(next_wide).astype(np.float32) / 10
        last = layer == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [at, f"w{layer}", f"b{layer}"], ["y" if last else f"h{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [at := f"r{layer}"]))
    inputs, outputs = (value(name, "float32", ["batch", sizes[end]]) for name, end in (("x", 0), ("y", -1)))
    return save(model(nodes, [inputs], [outputs], weights), path)


def identity(path: Path, dtype: str = "float32", shape: Shape = ("batch", None)) -> Path:
    """`x` -> `y`, the same."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return save(model(nodes, [value("x", dtype, shape)], [value("y", dtype, shape)]), path)


def affine(path: Path, factor: float, offset: float) -> Path:
    """`x` float32 [batch, width] -> `y` = factor · x + offset: which version of a model answered shows."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["scaled"]), helper.make_node("Add", ["scaled", "offset"], ["y"])]
    weights = {"factor": np.float32(factor), "offset": np.float32(offset)}
    shape = ["batch", "width"]
    return save(model(nodes, [value("x", "float32", shape)], [value("y", "float32", shape)], weights), path)


def two_inputs(path: Path) -> Path:
    """`a` float32 [batch, 3] and `b` int64 [batch, 3] -> `sum` and `product`, float32 [batch, 3]."""
    nodes = [
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "c"], ["sum"]),
        helper.make_node("Mul", ["a", "c"], ["product"]),
    ]
    shape = ["batch", 3]
    outputs = [value("sum", "float32", shape), value("product", "float32", shape)]
    return save(model(nodes, [value("a", "float32", shape), value("b", "int64", shape)], outputs), path)


def loop(path: Path) -> Path:
    """`x` int64 [batch] -> `y`: x, after as many turns of a loop as the first item says. It can be ended between."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["state", "one"], ["next"]),
        ],
        "body",
        [value("turn", "int64", []), value("going", "bool", []), value("state", "int64", [])],
        [value("goes_on", "bool", []), value("next", "int64", [])],
        [numpy_helper.from_array(np.int64(1), "one")],
    )
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["turns"]),
        helper.make_node("Loop", ["turns", "yes", "zero"], ["counted"], body=body),
        helper.make_node("Sub", ["counted", "turns"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    weights = {"zero": np.int64(0), "yes": np.bool_(True)}
    return save(model(nodes, [value("x", "int64", ["batch"])], [value("y", "int64", ["batch"])], weights), path)


def large_product(path: Path) -> Path:
    """`x` int64 [1] -> `y` int64 [1]: the largest number in the product of two matrices of ones, of x rows and columns.
    So it takes 24 · x² bytes."""
    one = helper.make_tensor("one", TYPES["int64"], [1], [1])
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["sides"], axis=0),
        helper.make_node("ConstantOfShape", ["sides"], ["ones"], value=one),
        helper.make_node("MatMul", ["ones", "ones"], ["product"]),
        helper.make_node("ReduceMax", ["product"], ["top"], keepdims=0),
        helper.make_node("Unsqueeze", ["top", "zero"], ["y"]),
    ]
    weights = {"zero": np.array([0], np.int64)}
    return save(model(nodes, [value("x", "int64", [1])], [value("y", "int64", [1])], weights), path)


def slow_node(path: Path) -> Path:
    """`x` int64 [1] -> `y` int64 [1]: as many boxes as x says, none of which overlap, counted by comparing all of them
    with all others. One node takes the time, x² of it, so a run cannot be ended between two."""
    nodes = [
        helper.make_node("Squeeze", ["x"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["numbers"]),
        helper.make_node("Cast", ["numbers"], ["at"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["at", "half"], ["end"]),
        helper.make_node("Reshape", ["at", "column"], ["at_"]),
        helper.make_node("Reshape", ["end", "column"], ["end_"]),
        helper.make_node("Concat", ["at_", "at_", "end_", "end_"], ["boxes"], axis=2),
        helper.make_node("Reshape", ["at", "row"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "x"], ["selected"]),
        helper.make_node("Shape", ["selected"], ["y"], start=0, end=1),
    ]
    weights = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "half": np.float32(0.5),
        "column": np.array([1, -1, 1]),
        "row": np.array([1, 1, -1]),
    }
    return save(model(nodes, [value("x", "int64", [1])], [value("y", "int64", [1])], weights), path)


def upper_case(path: Path) -> Path:
    """`x` string [batch] -> `y`, in capitals."""
    nodes = [helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="UPPER", locale="C.UTF-8")]
    return save(model(nodes, [value("x", "string", ["batch"])], [value("y", "string", ["batch"])]), path)


def external(path: Path, location: str = "weights.bin", size: int = 64) -> Path:
    """`x` float32 [batch, size] -> `y` = x · w, whose weights lie in the file `location` beside the model."""
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    shape = ["batch", size]
    made = model(nodes, [value("x", "float32", shape)], [value("y", "float32", shape)], {"w": weights})
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(weights.nbytes))):
        tensor.external_data.add(key=key, value=text)
    save(made, path)
    if "/" not in location:
        (path.parent / location).write_bytes(weights.tobytes())
    return path


def custom_operator(path: Path) -> Path:
    """Of a domain that nobody knows."""
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], domain="org.example")]
    shape = ["batch", 3]
    return save(
        model(nodes, [value("x", "float32", shape)], [value("y", "float32", shape)], domains=["org.example"]), path
    )
