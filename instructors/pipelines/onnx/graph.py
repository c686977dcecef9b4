"""What an ONNX file is, found without running it and without reading its weights.

Whatever onnxruntime would read or run because of the file is checked here: operators that are nobody's, files outside
the model's folder, weights that are not as large as their shape says.
"""

import math
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from instructors.pipelines.onnx.facts import TensorInfo
from instructors.pipelines.onnx.protobuf import Span, Walk, damaged
from protocol.errors import Forbidden, ModelInvalid
from protocol.limits import MIB

FILE_BYTES_MAX = 2048 * MIB - 1  # a protobuf's own limit
EXTERNAL_FILES_MAX = 1000
TENSORS_MAX = 256  # inputs, or outputs
AXES_MAX = 64
NESTING_MAX = 16  # graphs within nodes within graphs
INT64_BIT = 1 << 63
DOMAINS = frozenset({
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training",
    "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc",
})  # fmt: skip
"""Whose operators onnxruntime brings. Those of others are code that a user would have to bring."""
COMPILED = "EPContext"  # an operator whose code was made for one device, and lies where the file says
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
"""TensorProto.DataType -> the types that a tensor can be sent as."""
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""TensorProto.DataType -> bits of one number."""
LISTS = (4, 5, 6, 7, 10, 11)  # of TensorProto: numbers and strings that are not raw


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """`opsets`: domain -> version. `external`: the files beside it, as it names them. `nbytes`: of all its files;
    `elements`: numbers in its weights."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opsets: dict[str, int]
    ir_version: int
    nbytes: int
    elements: int
    initializers: int
    nodes: int
    external: tuple[str, ...]

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 0: it uses none."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 0))


def inspect(path: Path, root: Path) -> GraphFacts:
    """What the file is. `root`: the folder that it and the files it names must not leave.

    Raises ModelInvalid, or Forbidden where it reaches out of the folder.
    """
    try:
        _contained(path, root)
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_size == 0:
                raise ModelInvalid("The ONNX file is empty.")
            if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
                raise ModelInvalid("An ONNX file is a plain file of less than 2 GiB; larger weights lie beside it.")
            reader = _Reader(Walk(stream.fileno(), status.st_size))
            reader.model()
        reader.check_operators()
        sizes = {name: _external_bytes(name, path.parent, root) for name in reader.external}
        for name, end in reader.external.items():
            if end > sizes[name]:
                raise ModelInvalid(f"The file of weights {name[:100]!r} is shorter than the model says.")
        return reader.facts(status.st_size + sum(sizes.values()))
    except OSError:
        raise ModelInvalid("The model's files cannot be read, or have changed just now.") from None


@dataclass(slots=True)
class _Reader:
    """Collects what matters. The numbers of fields are those of onnx.proto."""

    walk: Walk
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    ir_version: int = 0
    graphs: int = 0
    nodes: int = 0
    elements: int = 0
    initializers: set[str] = field(default_factory=set)
    operators: set[tuple[str, str]] = field(default_factory=set)  # (domain, name) that nodes want
    functions: set[tuple[str, str]] = field(default_factory=set)  # that the file has itself
    external: dict[str, int] = field(default_factory=dict)  # file -> how long it must be

    def facts(self, nbytes: int) -> GraphFacts:
        """`nbytes`: of all files."""
        return GraphFacts(
            inputs=tuple(info for info in self.inputs if info.name not in self.initializers),
            outputs=tuple(self.outputs),
            opsets=self.opsets,
            ir_version=self.ir_version,
            nbytes=nbytes,
            elements=self.elements,
            initializers=len(self.initializers),
            nodes=self.nodes,
            external=tuple(self.external),
        )

    def model(self) -> None:
        """ModelProto."""
        for number, value in self.walk.fields(self.walk.whole):
            if number == 1 and isinstance(value, int):
                self.ir_version = value
            elif isinstance(value, tuple):
                if number == 7:
                    self.graphs += 1
                    self._graph(value, 0)
                elif number == 8:
                    self._opset(value)
                elif number == 25:
                    self._function(value)
        if self.graphs != 1 or not 0 < self.ir_version < 1000 or not self.opsets or not self.outputs:
            raise damaged()

    def check_operators(self) -> None:
        """Raises ModelInvalid for one that would need code from elsewhere."""
        for domain, name in sorted(self.operators - self.functions):
            if domain not in DOMAINS:
                raise ModelInvalid(f"It uses a custom operator, {name[:60]!r} of {domain[:60]!r}; those are not run.")
            if name == COMPILED:
                raise ModelInvalid("It is compiled for one device; give the model that it was compiled from.")

    def _opset(self, span: Span) -> None:
        domain, version = "", 0
        for number, value in self.walk.fields(span):
            if number == 1 and isinstance(value, tuple):
                domain = self.walk.text(value)
            elif number == 2 and isinstance(value, int):
                version = value
        self.opsets[domain] = version

    def _function(self, span: Span) -> None:
        domain, name = "", ""
        for number, inner in self.walk.parts(span):
            if number == 1:
                name = self.walk.text(inner)
            elif number == 10:
                domain = self.walk.text(inner)
            elif number == 7:
                self._node(inner, 0)
            elif number == 11:
                self._attribute(inner, 0)
        self.functions.add((domain, name))

    def _graph(self, span: Span, depth: int) -> None:
        if depth > NESTING_MAX:
            raise ModelInvalid("Its graphs are nested too deeply.")
        for number, inner in self.walk.parts(span):
            if number == 1:
                self._node(inner, depth)
            elif number == 5:
                name = self._tensor(inner)
                if depth == 0:
                    self.initializers.add(name)
            elif number == 15:
                self._sparse(inner)
            elif number in (11, 12) and depth == 0:
                infos = self.inputs if number == 11 else self.outputs
                infos.append(self._value(inner))
                if len(infos) - len(self.initializers) * (number == 11) > TENSORS_MAX:
                    raise ModelInvalid(f"It has more than {TENSORS_MAX} inputs or outputs.")

    def _node(self, span: Span, depth: int) -> None:
        self.nodes += 1
        domain, name = "", ""
        for number, inner in self.walk.parts(span):
            if number == 4:
                name = self.walk.text(inner)
            elif number == 7:
                domain = self.walk.text(inner)
            elif number == 5:
                self._attribute(inner, depth)
        self.operators.add((domain, name))

    def _attribute(self, span: Span, depth: int) -> None:
        for number, inner in self.walk.parts(span):
            if number in (5, 10):
                self._tensor(inner)
            elif number in (6, 11):
                self._graph(inner, depth + 1)
            elif number in (22, 23):
                self._sparse(inner)

    def _sparse(self, span: Span) -> None:
        for number, inner in self.walk.parts(span):
            if number in (1, 2):
                self._tensor(inner)

    def _tensor(self, span: Span) -> str:
        """TensorProto; its name."""
        name, kind, raw, listed = "", 0, None, False
        dims: list[int] = []
        external: list[tuple[str, str]] = []
        for number, value in self.walk.fields(span):
            listed |= number in LISTS
            if isinstance(value, int):
                dims += [value] if number == 1 else []
                kind = value if number == 2 else kind
            elif value is None:
                continue
            elif number == 1:
                dims += self.walk.numbers(value)
            elif number == 8:
                name = self.walk.text(value)
            elif number == 9:
                raw = value[1] - value[0]
            elif number == 13:
                external.append(self._entry(value))
        if len(dims) > AXES_MAX or any(size >= INT64_BIT for size in dims):
            raise damaged()
        nbytes = (math.prod(dims) * BITS.get(kind, 0) + 7) // 8
        self.elements += math.prod(dims)
        if raw is not None and not external and not listed and raw != nbytes:
            raise ModelInvalid(f"The weights of {name[:60]!r} are not as large as their shape says.")
        if external:
            self._external(external, nbytes)
        return name

    def _entry(self, span: Span) -> tuple[str, str]:
        key, value = "", ""
        for number, inner in self.walk.parts(span):
            if number == 1:
                key = self.walk.text(inner)
            elif number == 2:
                value = self.walk.text(inner)
        return key, value

    def _external(self, pairs: list[tuple[str, str]], nbytes: int) -> None:
        entries = dict(pairs)
        location = entries.get("location", "")
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or nbytes)
        except ValueError:
            raise damaged() from None
        if not location or offset < 0 or length != nbytes or len(entries) != len(pairs):
            raise ModelInvalid("Weights that lie in another file are not as large as their shape says.")
        self.external[location] = max(self.external.get(location, 0), offset + length)
        if len(self.external) > EXTERNAL_FILES_MAX:
            raise ModelInvalid(f"Its weights lie in more than {EXTERNAL_FILES_MAX} files.")

    def _value(self, span: Span) -> TensorInfo:
        """ValueInfoProto of a tensor."""
        name, kind = "", 0
        shape: tuple[int | str | None, ...] = ()
        for number, inner in self.walk.parts(span):
            if number == 1:
                name = self.walk.text(inner)
            elif number == 2:
                kind, shape = self._type(inner)
        if kind not in DTYPES:
            problem = "only tensors can be sent (for scikit-learn, convert with zipmap=False)"
            raise ModelInvalid(f"Its {name[:60]!r} is no tensor of a usual type; {problem}.")
        return TensorInfo(name, DTYPES[kind], shape)

    def _type(self, span: Span) -> tuple[int, tuple[int | str | None, ...]]:
        """TypeProto: the tensor's type, 0 where it is none, and its shape."""
        kind, shape = 0, list[int | str | None]()
        for number, inner in self.walk.parts(span):
            if number != 1:
                continue
            for part, value in self.walk.fields(inner):
                if part == 1 and isinstance(value, int):
                    kind = value
                elif part == 2 and isinstance(value, tuple):
                    shape = [self._axis(axis) for at, axis in self.walk.parts(value) if at == 1]
        if len(shape) > AXES_MAX:
            raise damaged()
        return kind, tuple(shape)

    def _axis(self, span: Span) -> int | str | None:
        """Its size, or its name where it is open, or None."""
        for number, value in self.walk.fields(span):
            if number == 1 and isinstance(value, int):
                return value if 0 <= value < INT64_BIT else None
            if number == 2 and isinstance(value, tuple):
                return self.walk.text(value) or None
        return None


def _external_bytes(name: str, folder: Path, root: Path) -> int:
    """How long a file is that the model names beside itself."""
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or any(mark in name for mark in "\\*:\0"):
        raise Forbidden(f"The model names a file of weights outside its folder: {PurePosixPath(name).name[:100]!r}.")
    path = folder / name
    _contained(path, root)
    if not path.is_file():
        raise ModelInvalid(f"The file of weights {name[:100]!r} is missing.")
    return path.stat().st_size


def _contained(path: Path, root: Path) -> None:
    from instructors.models import inside  # which finds models, and so imports this module

    if not inside(path, root):
        raise Forbidden(f"{path.name[:100]!r} leads out of the model's folder.")
