"""How models are to be loaded: `models.toml` in the model folder, a table a model, `"*"` for all.

["*"]
vae_slicing = true

[sdxl-base]
dtype = "bfloat16"
keep = true
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.errors import ModelInvalid
from protocol.limits import KIB
from protocol.schemas.base import nearest

FILE = "models.toml"
FILE_BYTES_MAX = 256 * KIB
ALL = "*"

log = structlog.get_logger("instructors.models")


class ModelSettings(BaseModel):
    """Of one model. What is not said follows the device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # null: float32 on a CPU, half precision on a GPU
    channels_last: bool = False  # memory layout of the UNet and the VAE; quicker on many GPUs
    vae_tiling: bool = False  # decode large pictures in tiles: less memory, seams at times
    vae_slicing: bool = False  # decode pictures one after another: less memory
    offload: Literal["none", "model", "group"] = "none"  # keep weights in the machine's memory until they are needed
    compile: bool = False  # torch.compile of the repeated blocks: a slow first step for each shape, then quicker ones
    config: str | None = None  # of a single file: the folder in `configs/` that holds its pipeline's configs
    keep: bool = False  # loaded at the start, and never evicted


def read_settings(root: Path) -> dict[str, ModelSettings]:
    """By model, with `"*"` mixed in already. Raises ModelInvalid that says what is wrong where."""
    file = root / FILE
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise ModelInvalid(f"{FILE} is too large.")
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelInvalid(f"{FILE} cannot be read: {error}") from None
    except (OSError, RecursionError):  # whose words tell the path
        raise ModelInvalid(f"{FILE} cannot be read.") from None
    common = tables.pop(ALL, {})
    return {ALL: _settings(ALL, {}, common), **{name: _settings(name, common, own) for name, own in tables.items()}}


def settings_of(model_id: str, settings: dict[str, ModelSettings]) -> ModelSettings:
    """Those that `read_settings` found for this model."""
    return settings.get(model_id) or settings.get(ALL) or ModelSettings()


def _settings(name: str, common: Any, own: Any) -> ModelSettings:
    try:
        return ModelSettings.model_validate({**common, **own} if isinstance(own, dict) else own)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        near = nearest(key, ModelSettings.model_fields) if first["type"] == "extra_forbidden" else None
        hint = f"; did you mean {near}?" if near else ""
        raise ModelInvalid(f"{FILE}, [{name[:100]}] {key[:100]}: {first['msg']}{hint}") from None
