"""What an operator allows beside the model folder: `catalogue.toml` in it.

[scan]                       # a label -> a folder of models; requests name it by the label only
webui = "/srv/stable-diffusion-webui/models"

[hub]
cache = true                 # tell of what the hub's cache on this machine holds; register models from it
download = true              # fetch models from the hub itself, when one is to be registered

[sources]                    # where models may be registered from, beside the model folder and uploads
urls = ["s3://models/", "file:///srv/incoming/"]
mlflow = "http://127.0.0.1:5000"
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from protocol.errors import ModelInvalid
from protocol.limits import KIB
from protocol.messages import field_errors

FILE = "catalogue.toml"
FILE_BYTES_MAX = 64 * KIB
MODELS, HUB = "models", "hub"  # the labels of the model folder and of the hub's cache

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]


class Hub(BaseModel):
    """Of Hugging Face. All of it is off: nothing outside the model folder is read, and no network used, unasked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache: bool = False
    download: bool = False


class Sources(BaseModel):
    """Of models that are to be registered. Credentials are the environment's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: list[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9+.-]*://[^/]*/")]] = []
    # what a request's URL may begin with
    mlflow: Annotated[str, StringConstraints(pattern=r"^https?://")] | None = None  # null: MLFLOW_TRACKING_URI


class CatalogueSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    scan: dict[Label, Annotated[str, Field(min_length=1)]] = {}
    hub: Hub = Hub()
    sources: Sources = Sources()


def read_settings(root: Path) -> CatalogueSettings:
    """Those in a model folder. Raises ModelInvalid that says what is wrong where."""
    file = root / FILE
    if not file.is_file():
        return CatalogueSettings()
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise ModelInvalid(f"{FILE} is too large.")
        settings = CatalogueSettings.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = field_errors(error)["fields"][0]
        raise ModelInvalid(f"{FILE}, {wrong['field'][:100]}: {wrong['problem']}") from None
    except (ValueError, OSError, RecursionError):
        raise ModelInvalid(f"{FILE} cannot be read.") from None
    if reserved := {MODELS, HUB} & settings.scan.keys():
        raise ModelInvalid(f"{FILE}, scan: {min(reserved)!r} is no label for a folder; it means another one.")
    return settings


def folders(root: Path | None) -> dict[str, Path]:
    """Label -> folder, of all that may be looked into. Raises ModelInvalid."""
    if root is None:
        return {}
    settings = read_settings(root)
    found = {MODELS: root, **{label: root / Path(told).expanduser() for label, told in settings.scan.items()}}
    return {**found, HUB: hub_cache()} if settings.hub.cache else found


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
