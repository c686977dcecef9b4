"""Forwards that several pictures share: a module's calls wait in lanes and are computed together, row by row.

What one forward must share makes the lane: the module, and of its arguments the shapes but for the rows, the dtypes and
everything that is not a tensor. All else belongs to a row. Two ways of filling a forward (`Padding`):

- fast: the rows that wait, as they are. A call alone is passed on untouched, and so equals stock bit for bit; in
  company the kernels' choice by batch size moves the last bits.
- reproducible: always the same number of rows, filled up where too few wait. Each row's result is then the same in
  any company, for kernels choose by size, never by place or neighbours.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from instructors.memory import is_out_of_memory
from instructors.pipelines import streams
from instructors.pipelines.streams import Stream
from instructors.task import Lane, Padding

LANES_MAX = 256  # per module; shapes that nobody asks for any more are forgotten
Mix = tuple[Any, ...]  # a row's LoRAs with their scales, as the module's adapters take them
NO_MIX: Mix = ()
Adapters = Callable[[list[Mix]], AbstractContextManager[Any]]  # puts a mix on each row for the time of a forward


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a module's arguments need, by name, so that rows of several calls fit in one."""

    per_row: dict[str, tuple[int, ...]] = field(default_factory=dict)  # scalars -> shape of a row's own value
    optional: frozenset[str] = frozenset()  # rows that lack these get zeros, which change nothing
    ignored: frozenset[str] = frozenset()  # without effect on the result


@dataclass(slots=True)
class Call:
    """A forward that waits: its arguments as given, and apart by row."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: Any  # the arguments by name, with a `_Slot` in place of each tensor
    tensors: dict[str, torch.Tensor]  # by slot, [rows, ...]
    rows: int
    mix: Mix
    exact: bool = True  # after its forward: the result is what it would be without company


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str


class SharedForward:
    """Stands in place of a module's forward. Called within a stream it waits for company; elsewhere it computes."""

    def __init__(
        self,
        forward: Callable[..., Any],
        sharing: Sharing,
        padding: Padding,
        adapters: Adapters | None = None,
    ) -> None:
        self._forward = forward
        self._signature = inspect.signature(forward)
        # one pipeline says None where another says nothing; the forward is the same
        self._omissible = {name for name, one in self._signature.parameters.items() if one.default is None}
        self._sharing = sharing
        self._padding = padding
        self._adapters = adapters
        self._lanes: OrderedDict[Hashable, ForwardLane] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stream = streams.current()
        if stream is None:
            return self._invoke(*args, **kwargs)
        call, key = self._call(args, kwargs, stream.mix)
        return self._wait(call, key)

    def rows_max(self, call: Call) -> int:
        """How many rows may be computed together with this call's."""
        return self._padding.rows_max

    def fixed_rows(self, call: Call) -> int | None:
        """How many rows each forward of calls like this one has; None: as many as wait."""
        return self._padding.fixed_rows

    def _invoke(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def _wait(self, call: Call, key: Hashable) -> Any:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = ForwardLane(self, self.rows_max(call), self.fixed_rows(call) or 1)
            if len(self._lanes) > LANES_MAX:
                self._lanes.popitem(last=False)
        self._lanes.move_to_end(key)
        return streams.wait(lane, call.rows, call)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], mix: Mix) -> tuple[Call, Hashable]:
        given = self._signature.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        values = {name: value for name, value in given.items() if value is not None or name not in self._omissible}
        first = next(iter(values.values()))
        rows = int(first.shape[0])
        for name, row_shape in self._sharing.per_row.items():
            if name in values and not (row_shape and values.get("guess_mode")):  # there, a scale differs by layer
                values[name] = _per_row(values[name], rows, row_shape, first)
        tensors: dict[str, torch.Tensor] = {}
        shape = {
            name: _take_apart(value, name, tensors)
            for name, value in values.items()
            if name not in self._sharing.ignored
        }
        call = Call(args, kwargs, shape, tensors, rows, mix)
        return call, self._key(call)

    def _key(self, call: Call) -> Hashable:
        optional = self._sharing.optional
        slots = tuple(
            (name, tensor.shape[1:], tensor.dtype, 0 if tensor.shape[:1] == (call.rows,) else id(tensor))
            for name, tensor in call.tensors.items()
            if name.partition(".")[0] not in optional
        )
        rest = tuple((name, _static(value)) for name, value in call.shape.items() if name not in optional)
        return slots, rest

    def compute(self, calls: Sequence[Call]) -> list[Any]:
        """Each call's result."""
        fixed_rows = self.fixed_rows(calls[0])
        if fixed_rows is None and len(calls) == 1:
            with self._mixed([calls[0].mix] * calls[0].rows):
                return [self._invoke(*calls[0].args, **calls[0].kwargs)]
        for call in calls:
            call.exact = fixed_rows is not None
        shape, tensors, mixes = self._together(calls)
        rows = len(mixes)
        if fixed_rows is None:
            result = self._run(shape, tensors, mixes)
        else:
            parts = [self._run_fixed(shape, tensors, mixes, at, fixed_rows) for at in range(0, rows, fixed_rows)]
            result = _cat(parts)
        results, at = [], 0
        for call in calls:
            results.append(_rows_of(result, at, at + call.rows))
            at += call.rows
        return results

    def _together(self, calls: Sequence[Call]) -> tuple[Any, dict[str, torch.Tensor], list[Mix]]:
        fullest = max(calls, key=lambda call: len(call.tensors))
        tensors = {}
        for name, like in fullest.tensors.items():
            if like.shape[0] != fullest.rows:
                tensors[name] = like  # one tensor for all rows; the lane's key saw to it that all calls have it
                continue
            parts = [
                call.tensors[name] if name in call.tensors else like.new_zeros((call.rows, *like.shape[1:]))
                for call in calls
            ]
            tensors[name] = torch.cat(parts)
        return fullest.shape, tensors, [call.mix for call in calls for _ in range(call.rows)]

    def _run_fixed(self, shape: Any, tensors: dict[str, torch.Tensor], mixes: list[Mix], at: int, count: int) -> Any:
        """Rows from `at` on, filled up to `count` with copies of the first.

        Always in one memory layout, for kernels choose by that as well, and rows joined have that of all, if it is one.
        """
        rows = min(count, len(mixes) - at)

        def padded(tensor: torch.Tensor) -> torch.Tensor:
            filling = tensor[at : at + 1].expand(count - rows, *tensor.shape[1:])
            return torch.cat([tensor[at : at + rows], filling]).contiguous()

        full = {name: padded(tensor) if tensor.shape[0] == len(mixes) else tensor for name, tensor in tensors.items()}
        return _rows_of(self._run(shape, full, mixes[at : at + rows] + [NO_MIX] * (count - rows)), 0, rows)

    def _run(self, shape: Any, tensors: dict[str, torch.Tensor], mixes: list[Mix]) -> Any:
        with self._mixed(mixes):
            return self._invoke(**_put_together(shape, tensors))

    def _mixed(self, mixes: list[Mix]) -> AbstractContextManager[Any]:
        return nullcontext() if self._adapters is None else self._adapters(mixes)


class ForwardLane(Lane):
    """Calls of one shape of one module. See `instructors.task.Lane`."""

    def __init__(self, shared: SharedForward, rows_max: int, rows_min: int) -> None:
        self._shared = shared
        self.rows_max, self.rows_min = rows_max, rows_min

    def step(self, units: Sequence[Stream]) -> None:
        """A forward that fails, for want of memory or because of one of its calls, is done again by halves."""
        results = self._compute(units)
        if results is not None:
            for unit, result in zip(units, results, strict=True):
                unit.resume(result)
        elif len(units) > 1:
            half = len(units) // 2
            self.step(units[:half])
            self.step(units[half:])

    def _compute(self, units: Sequence[Stream]) -> list[Any] | None:
        """A call of its own, so that an error's traceback, which holds tensors, is gone when it returns."""
        try:
            with torch.no_grad():
                return self._shared.compute([unit.call for unit in units])
        except Exception as error:
            if len(units) == 1:
                units[0].throw(error)
            elif is_out_of_memory(error):  # so many need not be tried again at every step
                self.rows_max = min(self.rows_max, max(1, sum(unit.rows for unit in units) // 2))
            return None


def _per_row(value: Any, rows: int, row_shape: tuple[int, ...], first: torch.Tensor) -> torch.Tensor:
    """A scalar, or a tensor of one value a row, as [rows, *row_shape]."""
    dtype = torch.float32 if not row_shape else first.dtype
    tensor = torch.as_tensor(value, device=first.device).to(dtype)
    return tensor.reshape(-1, *row_shape).expand(rows, *row_shape)


def _take_apart(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim:
        tensors[name] = value
        return _Slot(name)
    if isinstance(value, dict):
        return {key: _take_apart(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take_apart(item, f"{name}.{index}", tensors) for index, item in enumerate(value))
    return value


def _put_together(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.name]
    if isinstance(value, dict):
        return {key: _put_together(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_together(item, tensors) for item in value)
    return value


def _static(value: Any) -> Hashable:
    """What two calls must have in common; objects nobody knows are in common with themselves only."""
    if isinstance(value, dict):
        return tuple((key, _static(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_static(item) for item in value)
    return value if isinstance(value, str | int | float | _Slot | None) else id(value)


def _rows_of(result: Any, start: int, end: int) -> Any:
    return over_tensors(lambda tensor: tensor[start:end], result)


def over_tensors(change: Callable[[torch.Tensor], torch.Tensor], result: Any) -> Any:
    """The same structure with each of its tensors changed."""
    if isinstance(result, torch.Tensor):
        return change(result)
    if isinstance(result, dict):  # the libraries' model outputs are dicts, and are made by keyword
        return type(result)(**{key: over_tensors(change, item) for key, item in result.items()})
    if isinstance(result, list | tuple):
        return type(result)(over_tensors(change, item) for item in result)
    return result


def _cat(results: Sequence[Any]) -> Any:
    first = results[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(results))
    if isinstance(first, dict):
        return type(first)(**{key: _cat([result[key] for result in results]) for key in first})
    if isinstance(first, list | tuple):
        return type(first)(_cat(items) for items in zip(*results, strict=True))
    return first
