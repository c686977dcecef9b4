"""The network that says where a transmitter is and how sure it is, and its export to ONNX."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

OPSET = 18
IR_VERSION = 10  # of the file format; the newest that onnxruntime 1.22 reads
WIDTH = 192
POSITION_SCALE_M = 600.0
CORRELATION_MAX = 0.99


@dataclass(frozen=True, slots=True)
class Scaling:
    """Of the features before the first layer: their means and deviations over simulated transmissions."""

    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(frozen=True, slots=True)
class LogSigma:
    """The logarithm of a standard deviation in metres is `middle` plus or minus at most `reach`: 0.6 m to 1,800 m."""

    middle: float = 3.5
    reach: float = 4.0

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """From a number without bounds."""
        return self.middle + self.reach * torch.tanh(x)

    def changed(self, factor: float, power: float) -> "LogSigma":
        """Such that every standard deviation becomes `factor` times its `power`."""
        return LogSigma(math.log(factor) + power * self.middle, power * self.reach)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Normal distributions: `position_m` and `sigma_m` [items, 2] to the east and north, `correlation` [items]."""

    position_m: torch.Tensor
    sigma_m: torch.Tensor
    correlation: torch.Tensor

    def nll(self, truth_m: torch.Tensor) -> torch.Tensor:
        """Minus the logarithm of the density at the true places, per square metre, [items]."""
        east, north = ((truth_m - self.position_m) / self.sigma_m).unbind(1)
        rest = 1 - self.correlation**2
        distance2 = (east**2 - 2 * self.correlation * east * north + north**2) / rest
        return distance2 / 2 + self.sigma_m.log().sum(1) + rest.log() / 2 + math.log(2 * math.pi)

    def distance2(self, truth_m: torch.Tensor) -> torch.Tensor:
        """Squared Mahalanobis distances of the true places, [items]."""
        return 2 * (self.nll(truth_m) - self.nll(self.position_m))


class Network(nn.Module):
    """Layers of one width from `iq_features` to five numbers an item."""

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.scaling = scaling
        self.log_sigma = LogSigma()
        widths = [len(scaling.mean), WIDTH, WIDTH, WIDTH, 5]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, features: torch.Tensor) -> Prediction:
        x = (features - self.scaling.mean) / self.scaling.deviation
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        x = self.layers[-1](x)
        sigma, correlation = self.log_sigma.of(x[:, 2:4]).exp(), CORRELATION_MAX * torch.tanh(x[:, 4])
        return Prediction(x[:, :2] * POSITION_SCALE_M, sigma, correlation)


def export(network: Network, path: Path, notes: dict[str, str]) -> None:
    """Write the network as ONNX: `features` to `position_m`, `sigma_m` and `covariance_m2`."""
    weights = _weights(network)
    weights["scale"] = np.full(2, POSITION_SCALE_M, np.float32)
    weights["reach"] = np.full(2, network.log_sigma.reach, np.float32)
    weights["middle"] = np.full(2, network.log_sigma.middle, np.float32)
    weights["correlation_max"] = np.full(1, CORRELATION_MAX, np.float32)
    weights["sizes"] = np.array([2, 2, 1], np.int64)
    weights["axis"] = np.array([1], np.int64)
    graph = helper.make_graph(
        [*_layers(len(network.layers)), *_head()],
        "localisation",
        [_tensor("features", network.layers[0].in_features)],
        [_tensor("position_m", 2), _tensor("sigma_m", 2), _tensor("covariance_m2", None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="atelier")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, notes)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def _tensor(name: str, width: int | None) -> onnx.ValueInfoProto:
    shape = ["items"] if width is None else ["items", width]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _weights(network: Network) -> dict[str, np.ndarray]:
    """Of all layers; the features' scaling is made part of the first."""
    weights = {}
    for index, layer in enumerate(network.layers):
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        if index == 0:
            weight = weight / network.scaling.deviation
            bias = bias - weight @ network.scaling.mean.double()
        weights[f"weight_{index}"], weights[f"bias_{index}"] = weight.float().numpy(), bias.float().numpy()
    return weights


def _layers(count: int) -> list[onnx.NodeProto]:
    nodes, last = [], "features"
    for index in range(count):
        inputs = [last, f"weight_{index}", f"bias_{index}"]
        nodes.append(helper.make_node("Gemm", inputs, [f"sum_{index}"], transB=1))
        last = f"sum_{index}"
        if index < count - 1:
            nodes.append(helper.make_node("Relu", [last], [f"layer_{index}"]))
            last = f"layer_{index}"
    return [*nodes, helper.make_node("Split", [last, "sizes"], ["place", "spread", "lean"], axis=1)]


def _head() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Mul", ["place", "scale"], ["position_m"]),
        node("Tanh", ["spread"], ["spread_bounded"]),
        node("Mul", ["spread_bounded", "reach"], ["spread_wide"]),
        node("Add", ["spread_wide", "middle"], ["log_sigma"]),
        node("Exp", ["log_sigma"], ["sigma_m"]),
        node("ReduceProd", ["sigma_m", "axis"], ["sigma_product"], keepdims=0),
        node("Tanh", ["lean"], ["lean_bounded"]),
        node("Squeeze", ["lean_bounded", "axis"], ["lean_flat"]),
        node("Mul", ["lean_flat", "correlation_max"], ["correlation"]),
        node("Mul", ["correlation", "sigma_product"], ["covariance_m2"]),
    ]
