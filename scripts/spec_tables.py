"""Write the tables of `protocol/SPEC.md` that follow from the code, between their markers.

    python -m scripts.spec_tables            write them
    python -m scripts.spec_tables --check    exit 1 if a table is not what this would write

A block begins with `<!-- generated: NAME ARGUMENT -->` and ends with `<!-- end -->`. A field's meaning is the comment
at it in the source, so there is one place to say it.
"""

import argparse
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields as dataclass_fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from protocol import enums, limits, messages
from protocol.schemas import ACTIONS, ActionData, ResultData

SPEC = Path(__file__).parent.parent / "protocol" / "SPEC.md"
VECTORS = SPEC.parent / "vectors"
BLOCK = re.compile(r"<!-- generated: (\w+)(?: ([\w.]+))? -->\n.*?<!-- end -->", re.DOTALL)
WORDS = {int: "int", float: "number", str: "str", bool: "bool", bytes: "bin", Any: "any", NoneType: "null"}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def comments(cls: type) -> dict[str, str]:
    """Member -> the comment at its line, or on the lines of its own that follow it."""
    found: dict[str, str] = {}
    last = ""
    for line in inspect.getsource(cls).splitlines():
        member = re.match(r"    (\w+)(?:: | = )", line)
        comment = re.search(r"(?:^|\s)# (?!type:|fmt:)(.*)$", line)
        if member:
            last = member[1]
        if comment and last and (member or line.strip().startswith("#")):
            found[last] = " ".join(filter(None, [found.get(last), comment[1]]))
    return found


def meanings(cls: type) -> dict[str, str]:
    return {name: text for base in reversed(cls.__mro__[:-1]) if base.__module__.startswith("protocol")
            for name, text in comments(base).items()}  # fmt: skip


def type_words(annotation: Any, metadata: list[Any] | None = None) -> str:
    """`str, 1–200`, `list of int`, `Output or null`."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return type_words(inner, [*more, *(metadata or [])])
    limits_told = limit_words(annotation, metadata or [])
    return ", ".join(filter(None, [_plain_type(annotation), limits_told]))


def _plain_type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(type_words(arg) for arg in args)
    if origin is Literal:
        return " ".join(f"`{word}`" for word in args)
    if origin is list:
        return f"list of {type_words(args[0])}"
    if origin is dict or annotation is dict:
        return "map"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return " ".join(f"`{member.value}`" for member in annotation)
    return WORDS.get(annotation) or f"[{annotation.__name__}](#{annotation.__name__.lower()})"


def limit_words(annotation: Any, metadata: list[Any]) -> str:
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    low = next((part.ge for part in flat if isinstance(part, Ge)), None)
    above = next((part.gt for part in flat if isinstance(part, Gt)), None)
    high = next((part.le for part in flat if isinstance(part, Le)), None)
    short = next((part.min_length for part in flat if isinstance(part, MinLen)), None)
    long = next((part.max_length for part in flat if isinstance(part, MaxLen)), None)
    step = next((part.multiple_of for part in flat if isinstance(part, MultipleOf)), None)
    pattern = next((pattern for part in flat if (pattern := getattr(part, "pattern", None))), None)
    unit = "entries" if get_origin(annotation) is list else "bytes" if annotation is bytes else "characters"
    told = []
    if high is not None and low is not None and high != limits.INT_MAX:
        told.append(f"{low}–{high}")
    elif low is not None:
        told.append(f"≥ {low}")
    if above is not None:
        told.append(f"> {above}")
    if long is not None:
        told.append(f"{long} {unit}" if short == long else f"{short or 0}–{long} {unit}")
    if step is not None:
        told.append(f"a multiple of {step}")
    if pattern is not None:
        told.append(f"`{pattern}`")
    return ", ".join(told)


def default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return ""
    if isinstance(default, BaseModel):
        default = default.model_dump()
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def fields_of(model: type[BaseModel], *, defaults: bool = True, names: Sequence[str] = ()) -> str:
    """The table of a model's fields, or of these only."""
    told, rows = meanings(model), []
    for name in names or model.model_fields:
        field = model.model_fields[name]
        row = [f"`{name}`", type_words(field.annotation, field.metadata)]
        default = "required" if name in ("kind", "protocol") else default_words(field)  # a sender always tells these
        rows.append([*row, default, told.get(name, "")] if defaults else [*row, told.get(name, "")])
    return table(["field", "type", "default", "meaning"] if defaults else ["field", "type", "meaning"], rows)


def common_base(model: type[BaseModel]) -> type[BaseModel] | None:
    """What the data of several actions begins with, e.g. PictureData."""
    bases = [cls for cls in model.__mro__[1:] if issubclass(cls, ActionData) and cls.model_fields]
    return bases[-1] if bases else None


def fields_beyond(model: type[BaseModel], base: type[BaseModel]) -> list[str]:
    """The fields that a model adds to its base, or changes."""
    classes = model.__mro__[: model.__mro__.index(base)]
    told = {name for cls in classes for name in vars(cls).get("__annotations__", {})}
    return [name for name in model.model_fields if name in told]


def nested_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Models that stand inside this one's fields, depth first, each once."""
    found: list[type[BaseModel]] = []

    def visit(annotation: Any) -> None:
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            for inner in [annotation, *nested_models(annotation)]:
                if inner not in found:
                    found.append(inner)
        for arg in get_args(annotation):
            visit(arg)

    for field in model.model_fields.values():
        visit(field.annotation)
    return found


def described(model: type[BaseModel], *, defaults: bool, title: str) -> str:
    if not model.model_fields:
        return f"{title} {prose(model)}"
    if base := common_base(model):
        told = f"{title} {prose(model)} It has the fields of [{base.__name__}](#{base.__name__.lower()})"
        names = fields_beyond(model, base)
        return f"{told}, and these:\n\n{fields_of(model, names=names)}" if names else f"{told}."
    return "\n\n".join(filter(None, [f"{title} {prose(model)}".strip(), fields_of(model, defaults=defaults)]))


def prose(model: type) -> str:
    """The docstring; of this class only, not of a base."""
    return inspect.cleandoc(model.__doc__ or "") if "__doc__" in vars(model) else ""


def message(name: str) -> str:
    return fields_of(getattr(messages, name))


def result(name: str) -> str:
    """A result that answers in more places than one action, as domain.Class."""
    domain, cls = name.split(".")
    return fields_of(getattr(importlib.import_module(f"protocol.schemas.{domain}"), cls), defaults=False)


def errors() -> str:
    rows = [[f"`{code.value}`", code.meaning, str(code.http_status), "yes" if code.retryable else "no"]
            for code in enums.ErrorCode]  # fmt: skip
    return table(["code", "meaning", "HTTP", "retryable"], rows)


def words(name: str) -> str:
    cls = getattr(enums, name)
    told = comments(cls)
    return table(["word", "meaning"], [[f"`{member.value}`", told.get(member.name, "")] for member in cls])


def wire_limits() -> str:
    told, rows = comments(limits.WireLimits), []
    for field in dataclass_fields(limits.WireLimits):
        rows.append([f"`{field.name}`", f"{field.default:,}", told.get(field.name, "")])
    return table(["limit", "default", "meaning"], rows)


def action_index() -> str:
    rows = [[f"[`{action.name}`](#{action.name.replace('.', '')})", action.answered_by, action.summary]
            for action in ACTIONS.values()]  # fmt: skip
    return table(["action", "answered by", "what it does"], rows)


def actions() -> str:
    """Each action with its request and result; a shape that several use is told after them, once."""
    inner = [
        model for action in ACTIONS.values() for model in nested_models(action.data) + nested_models(action.result)
    ]
    results = [action.result for action in ACTIONS.values() if action.result.model_fields]
    bases = {base for action in ACTIONS.values() if (base := common_base(action.data))}
    shared = set(inner) | bases | {model for model in results if results.count(model) > 1}
    parts = []
    for action in ACTIONS.values():
        parts.append(f"#### {action.name}\n\n{action.summary}")
        parts.append(described(action.data, defaults=True, title="Request `data`:"))
        if action.result is ResultData:  # no shape of its own
            parts.append("Result `data`: the job's, see [Asking for a result](#asking-for-a-result).")
        elif action.result in shared:
            parts.append(f"Result `data`: {_plain_type(action.result)}.")
        else:
            parts.append(described(action.result, defaults=False, title="Result `data`:"))
    for model in sorted(shared, key=lambda cls: cls.__name__):
        parts.append(f"#### {model.__name__}")
        parts.append(described(model, defaults=not issubclass(model, ResultData), title=""))
    return "\n\n".join(parts)


def example(name: str) -> str:
    """Frames of a golden vector in hex, with the header they stand for."""
    file, vector_name = name.split(".")
    vector = next(item for item in json.loads((VECTORS / f"{file}.json").read_text()) if item["name"] == vector_name)
    shown = ["```", json.dumps(vector["header"], ensure_ascii=False), ""]
    for index, frame in enumerate(vector["frames"]):
        title = "header" if index == 0 else f"attachment {index - 1}"
        shown += [f"{title}, {len(frame) // 2} bytes:", *textwrap.wrap(frame, 96), ""]
    return "\n".join([*shown[:-1], "```"])


BLOCKS: dict[str, Callable[..., str]] = {
    "message": message,
    "result": result,
    "errors": errors,
    "words": words,
    "wire_limits": wire_limits,
    "action_index": action_index,
    "actions": actions,
    "example": example,
}


def filled(text: str) -> str:
    """The spec with every generated block as the code has it now."""

    def block(match: re.Match[str]) -> str:
        name, argument = match.groups()
        body = BLOCKS[name](argument) if argument else BLOCKS[name]()
        marker = f"<!-- generated: {name}{f' {argument}' if argument else ''} -->"
        return f"{marker}\n{body}\n<!-- end -->"

    return BLOCK.sub(block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated tables of protocol/SPEC.md.")
    parser.add_argument("--check", action="store_true", help="only tell whether they are up to date")
    check = parser.parse_args().check
    text = SPEC.read_text()
    new = filled(text)
    if check and new != text:
        print("protocol/SPEC.md is stale: run python -m scripts.spec_tables", file=sys.stderr)
        return 1
    if new != text:
        SPEC.write_text(new)
        print("wrote protocol/SPEC.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
