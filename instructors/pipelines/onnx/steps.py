"""The lane of the steps before and after a model: requests with the same steps, parameters and shapes go through them
together, for most of what a step costs it costs once, however many items there are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from instructors.processing import Chain, Values
from instructors.task import Lane
from protocol.errors import AtelierError, InternalError

if TYPE_CHECKING:
    from instructors.pipelines.onnx.serving import Request

ITEMS_MAX = 64  # in one quantum

log = structlog.get_logger("instructors.steps")


class StepsLane(Lane):
    """See `instructors.task.Lane`. Its units are requests whose `values` are to go through the steps."""

    rows_max, rows_min = ITEMS_MAX, 1

    def __init__(self, chain: Chain, parameters: Mapping[str, Any]) -> None:
        self._chain = chain
        self._parameters = parameters

    def step(self, units: Sequence["Request"]) -> None:
        """Together; each alone where that fails, to learn whose fault it is, or where a step does not keep to items."""
        parts = self._together(units) if len(units) > 1 else None
        for number, unit in enumerate(units):
            unit.pass_steps(self._alone(unit) if parts is None else parts[number])

    def _together(self, units: Sequence["Request"]) -> list[Values] | None:
        counts = [unit.items for unit in units]
        joined = _joined([unit.values for unit in units], counts)
        if joined is None:
            return None
        try:
            return _split(self._chain.run(joined, self._parameters), counts)
        except Exception:
            return None

    def _alone(self, unit: "Request") -> Values | AtelierError:
        try:
            return self._chain.run(unit.values, self._parameters)
        except AtelierError as error:
            return error
        except Exception:
            log.exception("a step failed")
            return InternalError()


def items_of(values: Values) -> int:
    """How many items a request's values are of; 1 where they do not agree in that, and each is for itself."""
    counts = {len(value) for value in values.values() if isinstance(value, list) or (_is_array(value) and value.ndim)}
    return counts.pop() if len(counts) == 1 else 1


def key_of(parameters: Mapping[str, Any], values: Values) -> tuple[Any, ...]:
    """What requests must have in common to go through steps together."""
    kinds = ((n, v.dtype.str, v.shape[1:]) if _is_array(v) else (n, type(v)) for n, v in sorted(values.items()))
    return (repr(sorted(parameters.items())), *kinds)


def _joined(parts: Sequence[Values], counts: Sequence[int]) -> Values | None:
    """All items of all requests; None where some value has another number of them."""
    joined: Values = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, list):
            joined[name] = [item for value in values for item in value]
        elif _is_array(first) and first.ndim:
            joined[name] = np.concatenate(values)
        else:
            return None
        if any(len(value) != count for value, count in zip(values, counts, strict=True)):
            return None
    return joined


def _split(values: Values, counts: Sequence[int]) -> list[Values] | None:
    """Each request's items; None where a step has changed their number."""
    total = sum(counts)
    if any(not (isinstance(v, list) or (_is_array(v) and v.ndim)) or len(v) != total for v in values.values()):
        return None
    ends = np.cumsum(counts)
    return [
        {name: value[end - count : end] for name, value in values.items()}
        for end, count in zip(ends.tolist(), counts, strict=True)
    ]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
