"""The ControlNets in the model folder: which there are, whether they may be trusted, and what models they suit.

A ControlNet is a folder in the model folder's `controlnets/`, named by the folder's name, in diffusers layout: a
config.json and safetensors. No tensor is loaded here and no library that computes imported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from instructors.models import KNOWN_SHOWN, NAME, WEIGHTS_SUFFIXES, ModelFolder, _files, _inside, check_weights
from protocol.errors import AtelierError, Forbidden, ModelInvalid, ModelNotFound
from protocol.limits import KIB, NAME_LENGTH_MAX
from protocol.schemas.base import nearest

FOLDER = "controlnets"
CONFIG = "config.json"
CONFIG_BYTES_MAX = 256 * KIB
FOLDERS_MAX = 1000
UNION = "ControlNetUnionModel"
CLASSES = ("ControlNetModel", UNION, "SD3ControlNetModel", "FluxControlNetModel")

log = structlog.get_logger("instructors.controlnet_files")


@dataclass(frozen=True, slots=True)
class ControlNetFiles:
    """A ControlNet whose files were checked. `config` is its config.json; `elements` counts the numbers in its
    weights."""

    controlnet_id: str
    path: Path
    config: Mapping[str, Any]
    elements: int
    nbytes: int  # of all files

    @property
    def class_name(self) -> str:
        """One of CLASSES."""
        return str(self.config["_class_name"])

    @property
    def family(self) -> str:
        """Of the models that it suits."""
        if self.class_name in ("ControlNetModel", UNION):
            return "sdxl" if self.config.get("addition_embed_type") == "text_time" else "sd"
        return self.class_name.removesuffix("ControlNetModel").lower()

    @property
    def resident_name(self) -> str:
        """What reports of a worker's memory call it: like no model's name, and not longer than a name may be."""
        return f"controlnet/{self.controlnet_id}"[:NAME_LENGTH_MAX]

    def to_wire(self) -> dict[str, Any]:
        """The entry in `controlnet.list`."""
        return {"controlnet_id": self.controlnet_id, "family": self.family, "nbytes": self.nbytes}


def names(folder: ModelFolder) -> list[str]:
    """Every name that looks like a ControlNet's: of a folder with a config, or of a file of weights, which is not
    usable."""
    root = None if folder.root is None else folder.root / FOLDER
    if root is None or not root.is_dir():
        return []
    return [entry.name for entry in sorted(root.iterdir())[:FOLDERS_MAX] if _looks_like_one(entry)]


def entry(controlnet_id: str, folder: ModelFolder) -> dict[str, Any]:
    """What `controlnet.list` says of one of `names`; of one that is not usable, its `problem` says why."""
    try:
        return find(controlnet_id, folder).to_wire()
    except AtelierError as error:
        log.warning("not usable", controlnet_id=controlnet_id, problem=error.message)
        return {"controlnet_id": controlnet_id, "nbytes": 0, "problem": error.message}


def find(controlnet_id: str, folder: ModelFolder) -> ControlNetFiles:
    """The checked ControlNet of this name.

    Raises ModelNotFound, Forbidden (a link out of the model folder) or ModelInvalid (unsafe, damaged, or not a
    ControlNet).
    """
    path = _contained(controlnet_id, folder)
    if not path.is_dir():
        check_weights(path)
        raise ModelInvalid("A ControlNet is a folder in diffusers layout; this is a single file.")
    assert folder.root is not None
    try:
        elements = nbytes = 0
        for file in _files(path, folder.root):
            elements += check_weights(file)
            nbytes += file.stat().st_size
    except OSError:
        raise ModelInvalid("This ControlNet's files cannot be read, or have changed just now.") from None
    return ControlNetFiles(controlnet_id, path, _read_config(path / CONFIG), elements, nbytes)


def _contained(controlnet_id: str, folder: ModelFolder) -> Path:
    """The path of a name from outside, within the model folder."""
    if folder.root is not None and NAME.fullmatch(controlnet_id):
        path = folder.root / FOLDER / controlnet_id
        if not _inside(path, folder.root):
            raise Forbidden("This ControlNet leads out of the model folder.")
        if _looks_like_one(path):
            return path
    known = names(folder)
    details = {"known": known[:KNOWN_SHOWN], "nearest": nearest(controlnet_id, known)}
    raise ModelNotFound("There is no ControlNet of this name.", details=details)


def _looks_like_one(path: Path) -> bool:
    if path.is_dir():
        return (path / CONFIG).exists()
    return path.is_file() and path.suffix.lower() in WEIGHTS_SUFFIXES


def _read_config(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > CONFIG_BYTES_MAX:
            raise ModelInvalid(f"{CONFIG} is too large.")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise ModelInvalid(f"{CONFIG} cannot be read.") from None
    if type(config) is not dict or config.get("_class_name") not in CLASSES:
        raise ModelInvalid(f"{CONFIG} names no ControlNet that is run here; those are {', '.join(CLASSES)}.")
    return config
