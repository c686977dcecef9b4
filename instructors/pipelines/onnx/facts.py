"""What both ends of a runner know: how a model is to be run, what it takes and answers, and which values fit it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import AtelierError, InvalidRequest, ModelInvalid

Array = npt.NDArray[Any]

STRING, BFLOAT16 = "string", "bfloat16"
DTYPES: dict[str, np.dtype[Any]] = {
    "bool": np.dtype(np.bool_),
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    BFLOAT16: np.dtype(np.uint16),  # its 16 bits: numpy has no such type
    STRING: np.dtype(object),  # each a str
}
"""The names of Open Inference Protocol v2, in lower case -> numpy's type for them."""
NAMES = {dtype: name for name, dtype in DTYPES.items() if name != BFLOAT16}
GRAPH_OPTIMIZATIONS = ("none", "basic", "extended", "all")
NAMES_SHOWN = 20  # in a message


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """How one model is to be run.

    `device` is "cpu" or "cuda:0". `providers` None: by device. `intra_op_threads` None: the cores of this process,
    shared among `instances`, the batches that are computed at a time. `cache`: folder for optimised graphs.
    `memory_bytes` bounds what the model may take, of the GPU's memory on a GPU. Timeouts in seconds.
    """

    path: Path
    device: str = "cpu"
    instances: int = 1
    providers: tuple[str, ...] | None = None
    intra_op_threads: int | None = None
    inter_op_threads: int = 1
    arena: bool = True
    graph_optimization: str = "all"
    cache: Path | None = None
    memory_bytes: int | None = None
    load_timeout_s: float = 120.0
    run_timeout_s: float = 60.0

    def to_wire(self) -> dict[str, Any]:
        """For the child."""
        wire = {name: getattr(self, name) for name in self.__slots__}
        return {**wire, "path": str(self.path), "cache": None if self.cache is None else str(self.cache)}

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> "RunnerSpec":
        """What `to_wire` gave."""
        cache, providers = wire["cache"], wire["providers"]
        made = {"path": Path(wire["path"]), "cache": None if cache is None else Path(cache)}
        return RunnerSpec(**{**wire, **made, "providers": None if providers is None else tuple(providers)})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output. `dtype` is a name of `DTYPES`; in `shape`, an open axis is its name or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def told(self) -> str:
        """For messages: `float32 [batch, 128]`."""
        return told(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Facts:
    """A loaded model. `providers`: what the session says it runs on; `asked`: what it was to run on; `nbytes`: by how
    much its memory grew at most while it was loaded, on a GPU by how much the GPU's did."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    providers: tuple[str, ...]
    asked: tuple[str, ...]
    load_ms: float
    nbytes: int
    from_cache: bool  # whether the optimised graph of an earlier time was taken

    @property
    def fell_back(self) -> bool:
        """Whether it runs on less than what was asked for."""
        return any(provider not in self.providers for provider in self.asked)

    def to_wire(self) -> dict[str, Any]:
        """For the parent."""
        wire = {name: getattr(self, name) for name in self.__slots__}
        inputs, outputs = ([[t.name, t.dtype, t.shape] for t in tensors] for tensors in (self.inputs, self.outputs))
        return {**wire, "inputs": inputs, "outputs": outputs}

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> "Facts":
        """What `to_wire` gave."""
        inputs, outputs = (tuple(TensorInfo(n, d, tuple(s)) for n, d, s in wire[key]) for key in ("inputs", "outputs"))
        made = {"inputs": inputs, "outputs": outputs, "providers": tuple(wire["providers"])}
        return Facts(**{**wire, **made, "asked": tuple(wire["asked"])})


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch that ended: its outputs, or the error. `run_ms`: what computing took, without the ways there and back."""

    batch_id: int
    tensors: dict[str, Array] | None = None
    error: AtelierError | None = None
    run_ms: float = 0.0


def dtype_name(array: Array) -> str | None:
    """The name of an array's type; None for one that no tensor has. bfloat16 looks like uint16."""
    return STRING if array.dtype.kind == "U" else NAMES.get(array.dtype)


def told(dtype: str, shape: Iterable[int | str | None]) -> str:
    """A type and shape for messages."""
    return f"{dtype} [{', '.join('?' if side is None else str(side)[:40] for side in shape)}]"


def check(facts: Facts, tensors: Mapping[str, Array]) -> None:
    """Raise InvalidRequest that names the first tensor that the model cannot take, and what it wants."""
    wanted = {info.name: info for info in facts.inputs}
    for name in tensors:
        if name not in wanted:
            raise _refused(name, f"the model has no input of this name; it takes {_takes(facts)}")
    axes: dict[str, tuple[int, str]] = {}
    for info in facts.inputs:
        if info.name not in tensors:
            raise _refused(info.name, f"is missing; the model takes {_takes(facts)}")
        problem = _problem(info, tensors[info.name]) or _other_size(info, tensors[info.name].shape, axes)
        if problem:
            raise _refused(info.name, problem)


def _takes(facts: Facts) -> str:
    return ", ".join(f"{info.name[:60]!r}: {info.told}" for info in facts.inputs[:NAMES_SHOWN])


def check_outputs(facts: Facts, outputs: Sequence[str]) -> None:
    """Raise InvalidRequest for an output that the model does not have."""
    known = [info.name for info in facts.outputs]
    for name in outputs:
        if name not in known:
            answers = ", ".join(repr(other[:60]) for other in known[:NAMES_SHOWN])
            raise _refused(name, f"the model has no output of this name; it answers {answers}", "outputs")


def checked_dtype(name: str, type_: str) -> str:
    """`tensor(float)` -> `float32`. Raises ModelInvalid for what cannot be sent as a tensor."""
    inner = type_.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(inner, inner)
    if type_ == inner or dtype not in DTYPES:
        problem = "only tensors can be sent (for scikit-learn, convert with zipmap=False)"
        raise ModelInvalid(f"Its {name[:60]!r} is of the type {type_[:60]}; {problem}.")
    return dtype


def _problem(info: TensorInfo, array: Array) -> str | None:
    dtype = dtype_name(array)
    fits_type = dtype == info.dtype or (dtype == "uint16" and info.dtype == BFLOAT16)
    if not fits_type or len(array.shape) != len(info.shape):
        return f"the model wants {info.told}, this is {told(str(array.dtype) if dtype is None else dtype, array.shape)}"
    if any(isinstance(side, int) and side != is_ for side, is_ in zip(info.shape, array.shape, strict=True)):
        return f"the model wants {info.told}, this is {told(info.dtype, array.shape)}"
    if array.ndim and array.shape[0] == 0:
        return "it has no items; send at least one"
    if array.dtype == DTYPES[STRING] and any(type(item) is not str for item in array.flat):
        return "the model wants strings, and one of its items is none"
    return None


def _other_size(info: TensorInfo, shape: Sequence[int], axes: dict[str, tuple[int, str]]) -> str | None:
    """Axes of one name have one size. `axes`: those seen, and at which input."""
    for side, is_ in zip(info.shape, shape, strict=True):
        if isinstance(side, str):
            size, at = axes.setdefault(side, (is_, info.name))
            if size != is_:
                return f"its axis {side[:40]!r} is {is_}, that of {at[:60]!r} is {size}; they must be the same"
    return None


def _refused(name: str, problem: str, field: str = "inputs") -> InvalidRequest:
    message = f"{field[:-1]} {name[:60]!r}: {problem}"
    return InvalidRequest(f"{message}.", details={"fields": [{"field": f"{field}.{name[:60]}", "problem": problem}]})
