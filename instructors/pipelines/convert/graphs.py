"""A torch module written as an ONNX graph: traced once, its open axes named, and held against the module itself."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, nn

from protocol.errors import ModelInvalid
from protocol.limits import MIB

BATCH = "batch"  # the first axis of all inputs and outputs
INLINE_BYTES_MAX = 1024 * MIB  # weights of more stand in a file beside the graph: a protobuf ends at 2 GiB
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": 0.2}
"""How far an output may be from the module's in float32: the largest difference by the largest value."""
QUANTIZED = ["MatMul", "Gemm"]  # what gains by int8 on a CPU; convolutions lose

SMALLEST = 1e-6  # what counts as the largest value at least

Inputs = dict[str, Tensor]
Answers = list[list[np.ndarray[Any, Any]]]  # by case and output, in float32


@dataclass(frozen=True, slots=True)
class Graph:
    """What is to become one ONNX file.

    `module` takes the inputs in their order and gives the `outputs`, a tensor or a tuple of them. `example(case)` makes
    inputs: case 0 is traced, the others are compared; all differ in each of the `open_axes` (input -> axis -> name).
    """

    module: nn.Module
    outputs: tuple[str, ...]
    open_axes: Mapping[str, Mapping[int, str]]
    example: Callable[[int], Inputs]
    cases: int = 3

    def half(self) -> "Graph":
        """The same in half precision. Inputs that are no floats stay as they are, and so do timesteps, whose numbers
        halves do not hold."""
        return Graph(self.module.half(), self.outputs, self.open_axes, lambda case: halved(self.example(case)))


def halved(inputs: Inputs) -> Inputs:
    """See `Graph.half`."""
    halves = {name: value.half() for name, value in inputs.items() if value.is_floating_point() and name != "timestep"}
    return {**inputs, **halves}


def truth(graph: Graph) -> Answers:
    """What the module, as it is now, answers to each case that is compared."""
    found = []
    for case in range(1, graph.cases):
        with torch.inference_mode():
            outputs = graph.module(*graph.example(case).values())
        found.append([output.float().numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))])
    return found


def write(graph: Graph, file: Path) -> None:
    """Trace the module and write its graph. What torch cannot trace raises an error of its own."""
    example = graph.example(0)
    dynamic = tuple(dict.fromkeys(graph.open_axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of what is compared afterwards
        # traced here: the exporter's own attempt at symbolic sizes of a UNet fails, and its second one takes longer
        traced = torch.export.export(graph.module, tuple(example.values()), dynamic_shapes=dynamic, strict=False)
        program = torch.onnx.export(
            traced, dynamo=True, verbose=False, input_names=list(example), output_names=list(graph.outputs)
        )
    assert program is not None
    _tidy(program.model, graph)
    nbytes = sum(tensor.nbytes for tensor in graph.module.state_dict().values())
    file.parent.mkdir(parents=True, exist_ok=True)
    program.save(file, external_data=nbytes > INLINE_BYTES_MAX)


def quantize(file: Path) -> None:
    """Have the graph's matrix products computed in int8, with scales found as it runs."""
    model = onnx.load(file)
    del model.graph.value_info[:]  # shapes of before, which the quantizer would hold against its own
    size = file.stat().st_size + sum(other.stat().st_size for other in file.parent.glob(f"{file.name}.*"))
    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    quantize_dynamic(model, file, op_types_to_quantize=QUANTIZED, use_external_data_format=size > INLINE_BYTES_MAX)


def answers(graph: Graph, file: Path) -> Answers:
    """What the written graph answers to each case that is compared."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}  # one that changes nothing is not in the graph
    found = []
    for case in range(1, graph.cases):
        feed = {name: value.numpy() for name, value in graph.example(case).items() if name in taken}
        found.append([output.astype(np.float32) for output in session.run(list(graph.outputs), feed)])
    return found


def agreed(found: Answers, wanted: Answers, precision: str, name: str) -> dict[str, float]:
    """How far the answers are from those wanted, over all outputs and cases, as `model.convert` tells it.

    Raises ModelInvalid where that is more than the precision explains.
    """
    max_abs = max_rel = 0.0
    for ours, theirs in zip(chain(*found), chain(*wanted), strict=True):
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            raise ModelInvalid(f"Its {name} in {precision} answers in another shape, or with what are no numbers.")
        apart = float(np.abs(ours - theirs).max())
        max_abs = max(max_abs, apart)
        max_rel = max(max_rel, apart / max(float(np.abs(theirs).max()), SMALLEST))
    if max_rel > TOLERANCES[precision]:
        raise ModelInvalid(
            f"Its {name} in {precision} differs by {max_rel:.2g} of the largest value from what it was, and "
            f"{TOLERANCES[precision]:g} may be; convert it to another precision."
        )
    return {"max_abs_error": max_abs, "max_rel_error": max_rel, "tolerance": TOLERANCES[precision]}


def made(graph: Graph, file: Path, precision: str, name: str) -> dict[str, float]:
    """Write the graph in this precision and hold it against its module, which may be in halves afterwards.

    Raises ModelInvalid where they are too far apart.
    """
    wanted = truth(graph)
    if precision == "float16":
        graph = graph.half()
    write(graph, file)
    if precision == "int8":
        quantize(file)
    return agreed(answers(graph, file), wanted, precision, name)


def _tidy(model: onnx_ir.Model, graph: Graph) -> None:
    """Name the open axes, and forget what the tracer noted of this machine: its files and their lines."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None  # told in the tracer's own names for the axes
    names: dict[str, str] = {}  # the tracer's -> ours
    for value in model.graph.inputs:
        axes = graph.open_axes.get(str(value.name), {})
        names |= {str(side): axes[axis] for axis, side in enumerate(value.shape or ()) if axis in axes}
    for value in (*model.graph.inputs, *model.graph.outputs):
        sides = [side if isinstance(side, int) else names.get(str(side)) for side in value.shape or ()]
        value.shape = onnx_ir.Shape(sides)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
