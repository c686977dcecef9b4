"""What every action's `data` schema shares, and how a wrong one is told."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import InvalidRequest
from protocol.messages import field_errors


class ActionData(BaseModel):
    """Base of the `data` of requests: exact types, unknown fields refused, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ResultData(BaseModel):
    """Base of the `data` of results: a newer server may add fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its name, who answers it, and the schemas of its request and result `data`."""

    name: str
    answered_by: Literal["orchestrator", "worker"]
    data: type[ActionData]
    result: type[ResultData]
    summary: str


def validate(schema: type[ActionData], data: dict[str, Any]) -> ActionData:
    """`data` as its schema's model. Raises InvalidRequest that names each bad field, and the nearest known name."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        details = field_errors(error)
        _suggest(details["fields"], schema)
        summary = "; ".join(_sentence(item) for item in details["fields"][:3])
        raise InvalidRequest(f"The data is not valid: {summary}.", details=details) from None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    matches = get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def _suggest(fields: list[dict[str, Any]], schema: type[ActionData]) -> None:
    for item in fields:
        if item["problem"].startswith("Extra inputs"):
            item["problem"] = "unknown field"
            item["nearest"] = nearest(item["field"].rpartition(".")[2], schema.model_fields)


def _sentence(item: dict[str, Any]) -> str:
    hint = f" (did you mean {item['nearest']}?)" if item.get("nearest") else ""
    return f"{item['field'][:60]}: {item['problem'].rstrip('.')}{hint}"
