"""Steps after a classifier: `softmax`, `sigmoid`, `top_k`."""

from typing import Annotated, Any, Self

import numpy as np
from numpy import ndarray
from pydantic import Field, model_validator

from instructors import processing
from instructors.processing import Params, Values
from instructors.processing.labels import Labelled, label
from protocol.errors import ModelInvalid

Array = ndarray[Any, Any]
ValueName = Annotated[str, Field(min_length=1, max_length=200)]
CLASSES_TOLD_MAX = 1000  # of one item


class Softmax(Params):
    """Scores that sum up to 1 along the last axis, in place of `input` or as `output`."""

    input: ValueName
    output: ValueName | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0


class Sigmoid(Params):
    """A score from 0 to 1 of each number, in place of `input` or as `output`."""

    input: ValueName
    output: ValueName | None = None


class TopK(Labelled):
    """The best classes of each item, as the field `output`: [{index, score, label}, …], the best first.

    `input` has the shape [items, classes] and is no longer answered itself, unless `keep`.
    """

    input: ValueName
    output: ValueName = "classes"
    k: Annotated[int, Field(ge=1, le=CLASSES_TOLD_MAX)] = 5
    threshold: float | None = None  # of the score; null: none
    keep: bool = False

    @model_validator(mode="after")
    def _labels_are_there(self) -> Self:
        self.names()
        return self


def array(values: Values, name: str) -> Array:
    """The array of this name. Raises ModelInvalid where there is none: the manifest asks for it."""
    found = values.get(name)
    if not isinstance(found, np.ndarray):
        known = ", ".join(key for key, value in values.items() if isinstance(value, np.ndarray))
        raise ModelInvalid(f"The manifest's step wants {name!r}, and there is: {known or 'nothing'}.")
    return found


def softmax(values: Values, params: Softmax) -> Values:
    """In float32 at the least. The largest number is taken away first, so nothing overflows."""
    numbers = _floats(array(values, params.input)) / params.temperature
    powers = np.exp(numbers - numbers.max(axis=-1, keepdims=True))
    return {**values, params.output or params.input: powers / powers.sum(axis=-1, keepdims=True)}


def sigmoid(values: Values, params: Sigmoid) -> Values:
    """In float32 at the least; written so that nothing overflows."""
    numbers = _floats(array(values, params.input))
    small = np.exp(-np.abs(numbers))
    return {**values, params.output or params.input: np.where(numbers >= 0, 1, small) / (1 + small)}


def top_k(values: Values, params: TopK) -> Values:
    """Of equal scores the lower index comes first; one that is NaN comes last, with the score null."""
    scores = array(values, params.input)
    if scores.ndim == 0 or any(size != 1 for size in scores.shape[2:]):
        raise ModelInvalid(
            f"top_k wants scores of the shape [items, classes]; {params.input!r} has {scores.ndim} axes."
        )
    scores = scores.reshape(len(scores), -1)
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    names = params.names()
    best = [_best(row, params) for row in ranked]
    told = [
        [{"index": index, "score": number(scores[item, index]), "label": label(names, index)} for index in indices]
        for item, indices in enumerate(best)
    ]
    if not params.keep:
        values = {name: value for name, value in values.items() if name != params.input}
    return {**values, params.output: told}


def number(value: Any) -> float | None:
    """A number for JSON, which has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None


def _best(scores: Array, params: TopK) -> list[int]:
    count = min(params.k, len(scores))
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= last)
    found = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
    if params.threshold is not None:
        found = found[scores[found] >= params.threshold]
    indices: list[int] = found.tolist()
    return indices


def _floats(numbers: Array) -> Array:
    return numbers.astype(np.result_type(numbers.dtype, np.float32), copy=False)


processing.add("softmax", Softmax, softmax)
processing.add("sigmoid", Sigmoid, sigmoid)
processing.add("top_k", TopK, top_k, per_request=("k", "threshold"))
