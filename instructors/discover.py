"""`model.discover`: what lies in the folders that an operator allowed, a few headers a step."""

import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from instructors import controlnet_files, lora_files, single_files
from instructors.catalogue.content import Content
from instructors.catalogue.index import Index, path_in
from instructors.catalogue.scan import Scan
from instructors.catalogue.settings import MODELS, folders
from instructors.manifest import onnx_file
from instructors.models import NAME, SHELVES, VERSION, ModelFolder
from instructors.registry import Registry
from instructors.task import Context, Result, Task
from protocol.errors import InvalidRequest
from protocol.schemas import ACTIONS
from protocol.schemas.base import nearest
from protocol.schemas.model_files import ModelDiscover

STEP_S = 0.02  # a step ends after so long, or after the file at which it does
VAES = "vaes"  # the shelf whose own module computes


class Discover(Task):
    """A scan of the folders; its last step makes the answer."""

    def __init__(self, data: ModelDiscover, context: Context) -> None:
        root = context.models.root
        allowed = folders(root)
        for label in data.folders or []:
            if label not in allowed:
                details = {"known": sorted(allowed), "nearest": nearest(label, allowed)}
                raise InvalidRequest(f"This worker has no folder with the label {label[:100]!r}.", details=details)
        self._data = data
        self._models = context.models
        chosen = {label: path for label, path in allowed.items() if label in (data.folders or allowed)}
        self._scan = Scan(chosen, Index.load(path_in(context.cache_dir, root)))
        self._work = self._scan.work()

    def step(self) -> Result | None:
        until = time.monotonic() + STEP_S
        for _ in self._work:
            if time.monotonic() >= until:
                return None
        return Result(self._answer())

    def _answer(self) -> dict[str, Any]:
        data = self._data
        wanted = {
            name: found
            for name, found in self._scan.found.items()
            if found.type in (data.types or (found.type,)) and found.family in (data.families or (found.family,))
        }
        usable = Usable(self._models)
        after = [(name, found) for name, found in wanted.items() if name > data.after]
        page = list(islice(after, data.limit))
        return {
            "models": [entry(name, found, usable) for name, found in page],
            "total": len(wanted),
            "next": page[-1][0] if len(page) < len(after) else None,
            "changes": asdict(self._scan.changes),
            "complete": self._scan.complete,
        }


class Usable:
    """By which id requests name what lies in the model folder."""

    def __init__(self, models: ModelFolder) -> None:
        self._models = models
        vaes = (models.root or Path()) / VAES
        self._shelves = {
            "lora": (lora_files.FOLDER, set(lora_files.folder(models.root).names())),
            "controlnet": (controlnet_files.SHELF.folder, set(controlnet_files.SHELF.names(models))),
            "vae": (VAES, {path.name for path in vaes.glob("*") if path.is_dir()}),
        }

    def id_of(self, name: str, found: Content) -> str | None:
        """A model_id, lora_id, controlnet_id or vae_id, by its type; None where no request finds it as it lies."""
        label, *parts = name.split("/")
        if label != MODELS or found.problem is not None:
            return None
        if found.type in self._shelves:
            shelf, known = self._shelves[found.type]
            told = _folder_or_stem(parts[1:], found) if parts[0] == shelf else None
            return told if told in known else None
        return self._model_id(parts, found) if found.type in ("pipeline", "checkpoint", "onnx") else None

    def _model_id(self, parts: list[str], found: Content) -> str | None:
        """A model is a folder, in versions or not, or a file in the place of one."""
        folders = parts if found.type == "pipeline" else parts[:-1]
        name, *version = folders or [PurePosixPath(parts[0]).stem]
        if name in SHELVES or not NAME.fullmatch(name) or len(version) > 1:
            return None
        if version and not VERSION.fullmatch(version[0]):
            return None
        model_id = ":".join((name, *version))
        path, file = self._models.path_of(model_id), (self._models.root or Path()).joinpath(*parts)
        if found.type == "onnx" and file != path / onnx_file(path):
            return None
        if found.type == "checkpoint" and not (path.exists() and single_files.file_at(path) == file):
            return None
        return model_id


def _folder_or_stem(parts: list[str], found: Content) -> str | None:
    if len(parts) == 1 and found.format != "diffusers":
        return PurePosixPath(parts[0]).stem
    return parts[0] if 1 <= len(parts) <= 2 else None


def entry(name: str, found: Content, usable: Usable) -> dict[str, Any]:
    """What the answer says of one."""
    return {"name": name, **asdict(found), "variants": list(found.variants), "id": usable.id_of(name, found)}


def register(registry: Registry) -> None:
    registry.add(ACTIONS["model.discover"], Discover)
