"""Components that stand beside the models in the model folder, in sub-folders of their own: ControlNets, VAEs.

A component is a folder in diffusers layout: a config.json and safetensors, named by the folder's name. No tensor is
loaded here and no library that computes imported.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructors.models import KNOWN_SHOWN, NAME, WEIGHTS_SUFFIXES, ModelFolder, check_weights, files_of, inside
from protocol.errors import Forbidden, ModelInvalid, ModelNotFound
from protocol.limits import KIB
from protocol.schemas.base import nearest

CONFIG = "config.json"
CONFIG_BYTES_MAX = 256 * KIB
FOLDERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class ComponentFiles:
    """A component whose files were checked. `config` is its config.json; `elements` counts the numbers in its
    weights."""

    name: str
    path: Path
    config: Mapping[str, Any]
    elements: int
    nbytes: int  # of all files

    @property
    def class_name(self) -> str:
        return str(self.config["_class_name"])

    @property
    def variant(self) -> str | None:
        """What diffusers is to be told of the names of its files."""
        weights = [file.name for file in self.path.glob("*.safetensors")]
        return "fp16" if weights and all(".fp16." in name for name in weights) else None


@dataclass(frozen=True, slots=True)
class Shelf:
    """One kind of component. `noun` is what messages call it; `classes` are those that are run."""

    folder: str
    noun: str
    classes: tuple[str, ...]

    def names(self, models: ModelFolder) -> list[str]:
        """Every name that looks like a component's: of a folder with a config, or of a file of weights, which is not
        usable."""
        root = None if models.root is None else models.root / self.folder
        if root is None or not root.is_dir():
            return []
        entries = [entry for entry in sorted(root.iterdir()) if NAME.fullmatch(entry.name)]
        return [entry.name for entry in entries[:FOLDERS_MAX] if _looks_like_one(entry)]

    def find(self, name: str, models: ModelFolder) -> ComponentFiles:
        """The checked component of this name.

        Raises ModelNotFound, Forbidden (a link out of the model folder) or ModelInvalid (unsafe, damaged, or of
        another kind).
        """
        path = self._contained(name, models)
        if not path.is_dir():
            check_weights(path)
            raise ModelInvalid(f"A {self.noun} is a folder in diffusers layout; this is a single file.")
        assert models.root is not None
        try:
            elements = nbytes = 0
            for file in files_of(path, models.root):
                elements += check_weights(file)
                nbytes += file.stat().st_size
        except OSError:
            raise ModelInvalid(f"This {self.noun}'s files cannot be read, or have changed just now.") from None
        return ComponentFiles(name, path, self._read_config(path / CONFIG), elements, nbytes)

    def _contained(self, name: str, models: ModelFolder) -> Path:
        """The path of a name from outside, within the model folder."""
        if models.root is not None and NAME.fullmatch(name):
            path = models.root / self.folder / name
            if not inside(path, models.root):
                raise Forbidden(f"This {self.noun} leads out of the model folder.")
            if _looks_like_one(path):
                return path
        known = self.names(models)
        details = {"known": known[:KNOWN_SHOWN], "nearest": nearest(name, known)}
        raise ModelNotFound(f"There is no {self.noun} of this name.", details=details)

    def _read_config(self, file: Path) -> dict[str, Any]:
        try:
            if file.stat().st_size > CONFIG_BYTES_MAX:
                raise ModelInvalid(f"{CONFIG} is too large.")
            config = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            raise ModelInvalid(f"{CONFIG} cannot be read.") from None
        if type(config) is not dict or config.get("_class_name") not in self.classes:
            raise ModelInvalid(f"{CONFIG} names no {self.noun} that is run here; those are {', '.join(self.classes)}.")
        return config


def _looks_like_one(path: Path) -> bool:
    if path.is_dir():
        return (path / CONFIG).exists()
    return path.is_file() and path.suffix.lower() in WEIGHTS_SUFFIXES
