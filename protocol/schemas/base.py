"""What every action's `data` schema shares, and how a wrong one is told."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError

from protocol.errors import InvalidRequest
from protocol.messages import field_errors

WORDS_ALLOWED = "Input should be '"  # how the problem begins where a word is none of those allowed


class ActionData(BaseModel):
    """Base of the `data` of requests: exact types, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ResultData(BaseModel):
    """Base of the `data` of results: a newer server may add fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its name, who answers it, and the schemas of its request and result `data`.

    `light`: it takes little of a worker, and many of them run at a time beside its slots.
    """

    name: str
    answered_by: Literal["orchestrator", "worker"]
    data: type[ActionData]
    result: type[ResultData]
    summary: str
    light: bool = False


def validate(schema: type[ActionData], data: dict[str, Any]) -> ActionData:
    """`data` as its schema's model. Raises InvalidRequest that names each bad field, and the nearest known name."""
    try:
        return schema.__pydantic_validator__.validate_python(data)
    except ValidationError as error:
        details = field_errors(error)
        _suggest(details["fields"], schema, data)
        summary = "; ".join(_sentence(item) for item in details["fields"][:3])
        raise InvalidRequest(f"The data is not valid: {summary}.", details=details) from None


def with_defaults(schema: type[ActionData], data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`data` with a session's defaults, where the schema has the field and `data` names it by none of its names."""
    said = {known_as for name in data for known_as in (name, aliases(schema).get(name))}
    return {**{name: defaults[name] for name in defaults if name in schema.model_fields and name not in said}, **data}


def aliases(schema: type[ActionData]) -> dict[str, str]:
    """Other names of fields -> the name."""
    return {
        str(alias): name
        for name, field in schema.model_fields.items()
        if isinstance(field.validation_alias, AliasChoices)
        for alias in field.validation_alias.choices
        if alias != name
    }


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be: the first that begins or ends with it, or one like it."""
    names, short = list(known), name[:100]
    longer = [other for other in names if short and (other.startswith(f"{short}_") or other.endswith(f"_{short}"))]
    matches = longer or get_close_matches(short, names, n=1, cutoff=0.5)
    return matches[0] if matches else None


def _suggest(fields: list[dict[str, Any]], schema: type[ActionData], data: dict[str, Any]) -> None:
    for item in fields:
        item["problem"] = item["problem"].removeprefix("Value error, ")
        path, _, name = item["field"].rpartition(".")
        if item["problem"].startswith("Extra inputs"):
            twice = aliases(schema).get(name) if not path else None
            item["problem"] = f"is another name of {twice}, which is given too" if twice else "unknown field"
            item["nearest"] = twice or nearest(name, _fields_at(schema, path))
        elif item["problem"].startswith(WORDS_ALLOWED):
            item["nearest"] = nearest(_value_at(data, item["field"]), re.findall(r"'([^']*)'", item["problem"]))


def _fields_at(schema: type[BaseModel], path: str) -> list[str]:
    """The fields of the models that may stand at a path, e.g. `output`, `loras.0`."""
    models = [schema]
    for name in filter(None, path.split(".")):
        if not name.isdigit():
            fields = [model.model_fields[name].annotation for model in models if name in model.model_fields]
            models = [model for annotation in fields for model in _models_in(annotation)]
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _value_at(data: Any, path: str) -> str:
    """The word at a path; empty where something else stands there."""
    for part in path.split("."):
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list):
            data = data[int(part)]
    return data if isinstance(data, str) else ""


def _sentence(item: dict[str, Any]) -> str:
    hint = f" (did you mean {item['nearest']}?)" if item.get("nearest") else ""
    return f"{item['field'][:60]}: {item['problem'].rstrip('.')}{hint}"
