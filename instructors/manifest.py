"""The manifest: what a model's folder says of it, in `model.toml`. All of it may be left out.

description = "Where a transmitter is"
license = "Apache-2.0"

[batching]
max_batch_size = 64

[[preprocess]]
step = "iq_features"
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ModelInvalid
from protocol.limits import KIB
from protocol.messages import field_errors
from protocol.schemas.base import nearest

FILE = "model.toml"
FILE_BYTES_MAX = 256 * KIB
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

Text = Annotated[str, Field(max_length=2000)]


class Table(BaseModel):
    """Base of all tables: an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Onnx(Table):
    """How the ONNX model is run."""

    file: Annotated[str, Field(pattern=FILE_NAME)] = "model.onnx"
    providers: list[Literal["tensorrt", "cuda", "cpu"]] | None = None  # in order of preference; null: by the device
    intra_op_threads: Annotated[int, Field(ge=1, le=256)] | None = None  # of one run; null: the cores, by instances
    inter_op_threads: Annotated[int, Field(ge=1, le=256)] = 1
    arena: bool = True  # keep freed memory for the next run
    graph_optimization: Literal["none", "basic", "extended", "all"] = "all"
    memory_mb_max: Annotated[int, Field(ge=1)] | None = None  # of the arena on a GPU
    run_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 60_000


class Batching(Table):
    """How requests are computed together. A batch counts items, not requests."""

    max_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32  # 1: the model's first axis may be anything
    max_queue_delay_us: Annotated[int, Field(ge=0, le=10_000_000)] = 0  # a request waits so long for company
    preferred_batch_sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=16)] = []
    # a batch of such a size starts at once
    instances: Annotated[int, Field(ge=1, le=64)] = 1  # batches that are computed at a time
    pad: dict[str, float] = {}  # input -> what fills it up, where requests differ in the length of an axis


class Cache(Table):
    """Whether equal requests are computed once."""

    enabled: bool = True
    ttl_s: Annotated[float, Field(gt=0)] = 3600.0


class Manifest(Table):
    description: Text = ""
    license: Text = ""
    tags: Annotated[list[Text], Field(max_length=64)] = []
    trigger_words: Annotated[list[Text], Field(max_length=64)] = []
    defaults: dict[str, Any] = {}  # of requests that do not say; only fields of its actions
    onnx: Onnx = Onnx()
    batching: Batching = Batching()
    cache: Cache = Cache()
    preprocess: list[dict[str, Any]] = []  # steps before the model, see instructors/processing
    postprocess: list[dict[str, Any]] = []  # and after it
    then: Annotated[str, Field(max_length=265)] | None = None  # the model that takes what this one leaves


EMPTY = Manifest()


def read(folder: Path) -> Manifest:
    """The manifest in a model's folder. Raises ModelInvalid that says what is wrong where."""
    tables = _tables(folder)
    try:
        return Manifest.model_validate(tables) if tables else EMPTY
    except ValidationError as error:
        first = field_errors(error)["fields"][0]
        path, _, key = first["field"].rpartition(".")
        near = nearest(key, _known_at(path)) if first["problem"].startswith("Extra") else None
        hint = f"; did you mean {near}?" if near else ""
        raise ModelInvalid(f"{FILE}, {first['field']}: {first['problem']}{hint}") from None


def onnx_file(folder: Path) -> str:
    """The name of the ONNX file in a model's folder, by its manifest; whether it is there is another question."""
    try:
        return read(folder).onnx.file
    except ModelInvalid:  # told when the model is used
        return EMPTY.onnx.file


def _tables(folder: Path) -> Mapping[str, Any]:
    file = folder / FILE
    if not file.is_file():
        return {}
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ModelInvalid(f"{FILE} leads out of the model's folder.")
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise ModelInvalid(f"{FILE} is too large.")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelInvalid(f"{FILE} cannot be read: {error}") from None
    except (OSError, RecursionError):  # whose words tell the path
        raise ModelInvalid(f"{FILE} cannot be read.") from None


def _known_at(path: str) -> list[str]:
    tables: dict[str, type[Table]] = {"onnx": Onnx, "batching": Batching, "cache": Cache}
    return list(tables.get(path, Manifest).model_fields)
