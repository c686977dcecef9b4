"""Named steps before and after a model, as its manifest lists them.

A step takes and gives the values of one request: arrays whose first axis are its items, and lists with one plain value
an item ("images": PIL pictures). What the last step after the model leaves as arrays are the answer's tensors; lists
become fields of each item's prediction.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import InvalidRequest, ModelInvalid
from protocol.messages import field_errors
from protocol.schemas.base import nearest

BUILT_IN: tuple[str, ...] = (
    "instructors.processing.images",
    "instructors.processing.classification",
    "instructors.processing.detection",
    "instructors.processing.localisation",
    "instructors.processing.naming",
)
STEPS_MAX = 16  # in one chain

Values = dict[str, Any]


class Params(BaseModel):
    """Base of the parameters of a step, as a manifest gives them. `folder`: where the model's own files lie."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    folder: Path


Run = Callable[[Values, Any], Values]  # (values, the step's parameters)


@dataclass(frozen=True, slots=True)
class Step:
    """`per_request`: parameters that a request may set otherwise."""

    name: str
    params: type[Params]
    run: Run
    per_request: frozenset[str]


_steps: dict[str, Step] = {}


def add(name: str, params: type[Params], run: Run, per_request: Sequence[str] = ()) -> None:
    """Make a step known. `run` raises InvalidRequest for values that a client sent, ModelInvalid for the manifest's."""
    _steps[name] = Step(name, params, run, frozenset(per_request))


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps in order, each with its parameters. `per_request`: those that a request may set."""

    steps: tuple[tuple[Step, Params], ...]
    per_request: frozenset[str]

    def run(self, values: Values, parameters: Mapping[str, Any]) -> Values:
        """The values after all steps. Raises InvalidRequest."""
        for step, params in self.steps:
            said = {name: parameters[name] for name in step.per_request if name in parameters}
            values = step.run(values, _with(params, said) if said else params)
        return values


def chain(tables: Sequence[Mapping[str, Any]], folder: Path) -> Chain:
    """The chain that a manifest lists. Raises ModelInvalid that says what is wrong where."""
    if len(tables) > STEPS_MAX:
        raise ModelInvalid(f"A manifest may list {STEPS_MAX} steps before and {STEPS_MAX} after the model.")
    steps = tuple(_step(table, folder) for table in tables)
    return Chain(steps, frozenset[str]().union(*(step.per_request for step, _ in steps)))


def _step(table: Mapping[str, Any], folder: Path) -> tuple[Step, Params]:
    for module in BUILT_IN:
        importlib.import_module(module)
    name = str(table.get("step"))
    step = _steps.get(name)
    if step is None:
        near = nearest(name, _steps)
        raise ModelInvalid(f"The manifest names an unknown step {name[:60]!r}" + (f"; meant {near}?" if near else "."))
    said = {key: value for key, value in table.items() if key != "step"}
    try:
        return step, step.params.model_validate({**said, "folder": folder})
    except ValidationError as error:
        first = field_errors(error)["fields"][0]
        raise ModelInvalid(f"The manifest's step {name!r}, {first['field']}: {first['problem']}.") from None


def _with(params: Params, said: Mapping[str, Any]) -> Params:
    try:
        return type(params).model_validate({**params.model_dump(), **said})
    except ValidationError as error:
        fields = field_errors(error)["fields"]
        told = [{**field, "field": f"parameters.{field['field']}"} for field in fields]
        message = f"{told[0]['field']}: {told[0]['problem']}."
        raise InvalidRequest(f"The data is not valid: {message}", details={"fields": told}) from None
