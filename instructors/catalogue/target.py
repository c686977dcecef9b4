"""From what a request calls a model to the files that are meant, and never to one outside the folders allowed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from instructors.catalogue import content
from instructors.catalogue.content import Content
from instructors.catalogue.scan import REPOSITORY, main_revision
from instructors.catalogue.settings import HUB, MODELS, folders
from instructors.manifest import onnx_file
from instructors.models import ModelFolder, inside
from protocol.errors import Forbidden, ModelNotFound
from protocol.schemas.base import nearest

WEIGHTS = (".safetensors", ".onnx")


@dataclass(frozen=True, slots=True)
class Target:
    """`path` is a file, or a folder in diffusers layout; no link of it may leave `boundary`. `name` is that of
    `model.discover`, `content` what it would say of it."""

    name: str
    path: Path
    boundary: Path
    content: Content

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()


def find(model_id: str, models: ModelFolder) -> Target:
    """By a model's id, or by the name that `model.discover` tells.

    Raises ModelNotFound, Forbidden (a link out of the folder) or ModelInvalid (wrong settings).
    """
    allowed = folders(models.root)
    label, _, rest = model_id.partition("/")
    if label not in allowed or not rest:
        versions = models.versions(model_id)
        label, rest = MODELS, (f"{model_id}:{versions[-1]}" if versions else model_id).replace(":", "/")
    path, boundary = _place(label, rest.split("/"), allowed)
    if path is not None and not inside(path, boundary):
        raise Forbidden("This model leads out of its folder.")
    chosen = None if path is None else _chosen(path)
    if chosen is None:
        known = models.names()
        details = {"known": known[:50], "nearest": nearest(model_id, known)}
        raise ModelNotFound("There is no model of this name; `model.discover` tells the names.", details=details)
    if not inside(chosen, boundary):
        raise Forbidden("This model leads out of its folder.")
    name = f"{label}/{rest}" if label == HUB else f"{label}/{chosen.relative_to(allowed[label]).as_posix()}"
    return Target(name, chosen, boundary, content_of(chosen, boundary))


def _place(label: str, parts: list[str], allowed: Mapping[str, Path]) -> tuple[Path | None, Path]:
    """(where it would lie, the folder that it may not leave)."""
    root = allowed.get(label, Path())
    if label not in allowed or not all(_is_name(part) for part in parts):
        return None, root
    if label == HUB:
        return in_cache(root, parts)
    path = root.joinpath(*parts)
    return (path if path.exists() else _single_file(path)), root.resolve()


def _single_file(path: Path) -> Path | None:
    file = path.with_name(f"{path.name}.safetensors")
    return file if file.is_file() else None


def _is_name(part: str) -> bool:
    return bool(part) and part.isprintable() and not part.startswith(".") and "\\" not in part


def in_cache(cache: Path, parts: list[str]) -> tuple[Path | None, Path]:
    """(where it lies in the hub's cache, or None; the folder that its links may not leave). `parts`: `org/name`,
    `org/name@revision`, and what lies in them; some names have no `org`."""
    for length in (2, 1):
        name, _, revision = "--".join(parts[:length]).partition("@")
        repository = cache / f"{REPOSITORY}{name}"
        if len(parts) >= length and repository.is_dir() and not repository.is_symlink():
            snapshots = repository / "snapshots"
            wanted = revision or main_revision(repository) or ""
            found = [entry for entry in sorted(snapshots.glob("*")) if wanted and entry.name.startswith(wanted)]
            return (found[0].joinpath(*parts[length:]) if found else None), repository.resolve()
    return None, cache


def _chosen(path: Path) -> Path | None:
    """A folder that is no pipeline or component stands for the one model that lies in it."""
    if not path.is_dir():
        return path if path.is_file() else None
    if content.is_model_folder({entry.name for entry in path.iterdir()}, path):
        return path
    named = path / onnx_file(path)
    if named.is_file():
        return named
    files = [file for file in path.iterdir() if file.is_file() and file.suffix.lower() in WEIGHTS]
    return files[0] if len(files) == 1 else None


def content_of(path: Path, boundary: Path) -> Content:
    """Of a file, or of a folder in diffusers layout."""
    if path.is_dir():
        return content.of_folder(path, boundary)
    found = content.of_file(path)
    nothing = Content("unknown", "unknown", path.stat().st_size, problem="Its bytes are those of no model.")
    return nothing if found is None else found
