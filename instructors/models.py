"""The model folder: which models there are, whether their files may be trusted, and what exactly they are.

A model is a folder: a pipeline in diffusers layout, or an ONNX model. Its name is the folder's, or, where it comes in
versions, that of the folder they lie in: `name/version` is called `name:version`. Nothing outside the model folder is
ever read, and weights are safetensors or ONNX, judged by content: a pickle runs code when it is loaded.
"""

import hashlib
import json
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from instructors import manifest, single_files
from instructors.catalogue import header
from instructors.catalogue.header import Damaged
from instructors.catalogue.sniff import IDENTIFIER, class_of, is_too_deep, read_json
from instructors.manifest import Manifest
from instructors.model_settings import ModelSettings, read_settings, settings_of
from instructors.onnx_layout import COMPONENT_CLASS, GRAPH_FILE, GRAPH_SUFFIXES, PREFIX
from instructors.single_files import SingleFile
from protocol.errors import AtelierError, Forbidden, InvalidRequest, ModelInvalid, ModelNotFound
from protocol.limits import KIB, MIB
from protocol.model_ids import by_age
from protocol.schemas.base import nearest

INDEX = "model_index.json"
INDEX_BYTES_MAX = 256 * KIB
CONFIG_BYTES_MAX = MIB  # of a component
FILES_MAX = 1000  # in one model
KNOWN_SHOWN = 50  # names in an error's details
VERSIONS_MAX = 1000  # of one model
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SINGLE = ".safetensors"  # the suffix of a checkpoint in one file
SHARDS = re.compile(r"\.safetensors\.index(\.[^.]+)?\.json$")  # how a list of the files that hold weights is called
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
SHARDS_BYTES_MAX = 16 * MIB
SHELVES = frozenset(
    {"controlnets", "loras", "vaes", "preprocessors", single_files.FOLDER}
)  # folders beside the models that hold none
PREDICTING = ("inference.predict", "predict.batch")
ONNX = "onnx"  # the family of models that `inference.predict` runs
WEIGHTS_SUFFIXES = frozenset({".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
HASHED_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})  # what the libraries load; no model card
CARD_SUFFIX = ".md"  # of an ONNX model all files but its card are loaded
NOT_LOADED = ("safety_checker",)
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")  # a model may name classes of

CHANGING = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion3", "flux", "qwen_image", "z_image")
"""Families that can begin with a picture: diffusers has their img2img and inpainting."""
MIXING = ("stable_diffusion", "stable_diffusion_xl")
"""Families that take LoRAs and ControlNets."""
INPAINTING_CHANNELS = 9  # of a UNet made for inpainting: latents, mask, latents of the masked picture

log = structlog.get_logger("instructors.models")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that was checked. `components`: name -> (library, class), None where the index says it is not there.

    `elements` counts the numbers in each component's weights; `content_hash` is SHA-256 in hex of all files that are
    loaded, `hashes` that of each component: models with an equal one can share it.
    """

    model_id: str
    path: Path
    family: str  # "stable_diffusion": the pipeline's class in snake case; "onnx"
    components: dict[str, tuple[str, str] | None]
    elements: dict[str, int]
    hashes: dict[str, str]
    content_hash: str
    only_inpaints: bool = False
    manifest: Manifest = manifest.EMPTY
    weights_nbytes: int = 0  # of an ONNX model's files, or of a pipeline's graphs
    single: SingleFile | None = None  # where `path` is a checkpoint in one file

    @property
    def runs_onnx(self) -> bool:
        """Whether it is a pipeline whose components are ONNX graphs."""
        return self.components.get("unet") == COMPONENT_CLASS

    @property
    def version(self) -> str | None:
        """None: it comes in no versions."""
        return self.model_id.partition(":")[2] or None

    @property
    def actions(self) -> list[str]:
        """What can be asked of it."""
        if self.family == ONNX:
            return list(PREDICTING)
        if self.only_inpaints:
            return ["inference.inpainting"]
        kinds = ["text2img"]
        kinds += ["img2img", "inpainting"] if self.family in CHANGING else []
        kinds += ["lora", "controlnet"] if self.family in MIXING and not self.runs_onnx else []
        return [f"inference.{kind}" for kind in kinds]

    def dtype(self, device: str, settings: ModelSettings) -> str:
        """Around ONNX graphs, float32; else as the settings say; else float32 on a CPU, on a GPU float16 for UNets, as
        they are published, and bfloat16 for transformers, whose activations overflow float16."""
        if self.runs_onnx:
            return "float32"
        if settings.dtype is not None:
            return settings.dtype
        if device == "cpu":
            return "float32"
        return "float16" if self.components.get("unet") else "bfloat16"

    def nbytes(self, device: str, settings: ModelSettings) -> int | None:
        """What its weights take on the device; None where they are not all there at a time."""
        if self.family == ONNX or self.runs_onnx:
            return self.weights_nbytes
        if settings.offload != "none":
            return None
        loaded = [name for name, kind in self.components.items() if kind is not None and name not in NOT_LOADED]
        return ITEMSIZES[self.dtype(device, settings)] * sum(self.elements.get(name, 0) for name in loaded)

    def to_wire(self, device: str, settings: ModelSettings) -> dict[str, Any]:
        """The entry in the capabilities of a worker with this device."""
        return {
            "model_id": self.model_id,
            "family": self.family,
            "actions": self.actions,
            "content_hash": self.content_hash,
            "nbytes": self.nbytes(device, settings),
        }


@dataclass(slots=True)
class ModelFolder:
    """`root` None: there are no models. Hashes are kept in memory while a file's size and time stay the same."""

    root: Path | None
    digests: dict[Path, tuple[tuple[int, ...], bytes, int]] = field(
        default_factory=dict
    )  # (what it was, hash, numbers)

    def names(self) -> list[str]:
        """Every name in the folder that looks like a model: a folder with an index or an ONNX file, `name:version` for
        one a folder further down, or a file of weights."""
        if self.root is None:
            return []
        if not self.root.is_dir():
            log.warning("the model folder is not there")
            return []
        found = set()
        for entry in self.root.iterdir():
            if entry.name in SHELVES or not NAME.fullmatch(entry.name) or not inside(entry, self.root):
                continue
            if _looks_like_model(entry):
                found.add(entry.name.removesuffix(SINGLE) if entry.is_file() else entry.name)
            else:
                found.update(f"{entry.name}:{version}" for version in self.versions(entry.name))
        return sorted(found)

    def versions(self, name: str) -> list[str]:
        """Of a model that comes in versions, the newest last."""
        if self.root is None or not NAME.fullmatch(name) or name in SHELVES:
            return []
        path = self.root / name
        if not path.is_dir() or not inside(path, self.root) or _looks_like_model(path):
            return []
        folders = list(islice(path.iterdir(), VERSIONS_MAX))
        found = [e.name for e in folders if VERSION.fullmatch(e.name) and inside(e, self.root) and _is_model_folder(e)]
        return sorted(found, key=by_age)

    def settings(self, model_id: str) -> ModelSettings:
        """How this model is to be loaded. Raises ModelInvalid where the file that says so is wrong."""
        return settings_of(model_id, self._all_settings())

    def kept(self) -> list[str]:
        """The models that are to be loaded at the start and kept. Raises ModelInvalid as `settings` does."""
        settings = self._all_settings()
        return [name for name in self.names() if settings_of(name, settings).keep]

    def _all_settings(self) -> dict[str, ModelSettings]:
        return {} if self.root is None else read_settings(self.root)

    def entries(self, device: str) -> list[dict[str, Any]]:
        """What the capabilities of a worker with this device say: usable models, and those whose files are not (their
        `problem` says why).

        The latter are listed so that a request for one reaches the worker and is told `model_invalid`.
        """
        found, settings = [], self._all_settings()
        can_inspect = find_spec("numpy") is not None
        for name in self.names():
            try:
                model = self.find(name)
                if model.family == ONNX and can_inspect:
                    _check_graph(model)
                found.append(model.to_wire(device, settings_of(name, settings)))
            except AtelierError as error:
                log.warning("not usable", model_id=name, problem=error.message)
                pictures = (self.path_of(name) / INDEX).exists()
                actions = ["inference.text2img"] if pictures else list(PREDICTING)
                entry = {"model_id": name, "family": "unknown", "actions": actions, "content_hash": None}
                found.append({**entry, "problem": error.message})
        return found

    def find(self, model_id: str | None) -> Model:
        """The checked model of this name; the only one there is, where no name is given.

        Raises ModelNotFound, Forbidden (a link out of the folder) or ModelInvalid (unsafe or damaged files).
        """
        if model_id is None:
            names = self.names()
            if len(names) != 1:
                raise self._not_found("Name a model by model_id: there is not exactly one.", None)
            model_id = names[0]
        versions = self.versions(model_id)
        if versions:
            model_id = f"{model_id}:{versions[-1]}"
        path = self._contained(model_id)
        if (file := single_files.file_at(path)) is not None:
            return self._single(model_id.removesuffix(SINGLE), file)
        said = manifest.read(path)
        if not (path / INDEX).exists():
            digest, nbytes = self._inspect_onnx(path)
            return Model(model_id, path, ONNX, {}, {}, {}, digest, manifest=said, weights_nbytes=nbytes)
        index, graphs = _read_index(path), graphs_of(path)
        # where there are graphs, nothing else that computes is loaded, whatever the index says it was
        components = _check_index({**index, **{name: list(COMPONENT_CLASS) for name in graphs}})
        digest, hashes, elements = self.inspect(path)
        _check_configs(path, components)
        family, only_inpaints = _family(index["_class_name"]), _only_inpaints(path / "unet/config.json")
        nbytes = sum(file.stat().st_size for name in graphs for file in (path / name).iterdir())
        return Model(model_id, path, family, components, elements, hashes, digest, only_inpaints, said, nbytes)

    def _single(self, model_id: str, file: Path) -> Model:
        """Its content is that of the file and of the configs that its pipeline is made by."""
        assert self.root is not None
        try:
            digest, _ = self._digest(file)
        except OSError:
            raise ModelInvalid("Its file cannot be read, or has changed just now.") from None
        found = single_files.read(file, self.root, self.settings(model_id).config)
        components = _check_index(dict(found.index))
        said, _, elements = self.inspect(found.config) if not found.is_shipped else (found.config.name, {}, {})
        content_hash = hashlib.sha256(digest + said.encode()).hexdigest()
        return Model(
            model_id=model_id,
            path=file,
            family=_family(str(found.index["_class_name"])),
            components=components,
            elements={**elements, **found.elements()},
            hashes=dict.fromkeys(components, content_hash),
            content_hash=content_hash,
            only_inpaints=found.only_inpaints,
            single=found,
        )

    def pipeline(self, model_id: str | None) -> Model:
        """The checked model that makes pictures; the only one there is, where no name is given. Raises as `find` does,
        and InvalidRequest for a model of another kind."""
        model = self.find(model_id or self._only(onnx=False))
        if model.family == ONNX:
            raise InvalidRequest("This model makes no pictures; ask it by inference.predict.")
        return model

    def onnx(self, model_id: str | None) -> Model:
        """The checked model that predicts, like `pipeline`."""
        model = self.find(model_id or self._only(onnx=True))
        if model.family != ONNX:
            raise InvalidRequest("This model predicts nothing: it makes pictures.")
        return model

    def _only(self, onnx: bool) -> str | None:
        names = [name for name in self.names() if _is_onnx(self.path_of(name)) == onnx]
        return names[0] if len(names) == 1 else None

    def path_of(self, model_id: str) -> Path:
        """Where the model of this name lies, or would: a folder, or a single file without its suffix."""
        assert self.root is not None
        path = self.root.joinpath(*model_id.split(":", 1))
        file = path.with_name(f"{path.name}{SINGLE}")
        return file if file.is_file() and not path.exists() else path

    def contained(self, model_id: str) -> Path:
        """Where what has this name lies, whatever it is. The one place that turns a name from outside into a path, and
        never into one outside the root. Raises as `find` does."""
        name, colon, version = model_id.partition(":")
        named = NAME.fullmatch(name) and (VERSION.fullmatch(version) if colon else True)
        if self.root is None or not named or name in SHELVES:
            raise self._not_found("There is no model of this name.", model_id)
        path = self.path_of(model_id)
        if not inside(path, self.root):
            raise Forbidden("This model leads out of the model folder.")
        if not path.exists():
            raise self._not_found("There is no model of this name.", model_id)
        return path

    def _contained(self, model_id: str) -> Path:
        path = self.contained(model_id)
        if not (_is_model_folder(path) if ":" in model_id else _looks_like_model(path)):
            raise self._not_found("There is no model of this name.", model_id)
        return path

    def _not_found(self, message: str, model_id: str | None) -> ModelNotFound:
        known = self.names()
        details: dict[str, Any] = {"known": known[:KNOWN_SHOWN]}
        if model_id is not None:
            details["nearest"] = nearest(model_id, known)
        return ModelNotFound(message, details=details)

    def inspect(self, path: Path) -> tuple[str, dict[str, str], dict[str, int]]:
        """The content hash of what is loaded, that of each component, and how many numbers each component's weights
        hold. May raise as `find` does."""
        whole, parts, elements = hashlib.sha256(), defaultdict[str, Any](hashlib.sha256), defaultdict[str, int](int)
        suffixes = HASHED_SUFFIXES | GRAPH_SUFFIXES if graphs_of(path) else HASHED_SUFFIXES
        try:
            for file in files_of(path, self.root or path):
                digest, count = self._digest(file)
                relative = file.relative_to(path)
                elements[relative.parts[0]] += count
                if file.suffix in suffixes:
                    whole.update(relative.as_posix().encode() + b"\0" + digest)
                    parts[relative.parts[0]].update("/".join(relative.parts[1:]).encode() + b"\0" + digest)
        except OSError:  # a link to nowhere, a file that may not be read
            raise ModelInvalid("Its files cannot be read, or have changed just now.") from None
        return whole.hexdigest(), {name: part.hexdigest() for name, part in parts.items()}, dict(elements)

    def _inspect_onnx(self, path: Path) -> tuple[str, int]:
        """The content hash of all that may be loaded, and how many bytes it is. May raise as `find` does."""
        whole, nbytes = hashlib.sha256(), 0
        try:
            for file in files_of(path, self.root or path):
                if file.suffix.lower() != CARD_SUFFIX:
                    digest, _ = self._digest(file)
                    whole.update(file.relative_to(path).as_posix().encode() + b"\0" + digest)
                    nbytes += file.stat().st_size
        except OSError:
            raise ModelInvalid("Its files cannot be read, or have changed just now.") from None
        return whole.hexdigest(), nbytes

    def _digest(self, file: Path) -> tuple[bytes, int]:
        status = file.stat()
        version = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        known = self.digests.get(file)
        if known is not None and known[0] == version:
            return known[1], known[2]
        elements = check_weights(file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
        self.digests[file] = (version, digest, elements)
        return digest, elements


def check_weights(file: Path) -> int:
    """How many numbers a file of weights holds, 0 for another kind of file. Raises ModelInvalid for a pickle under
    any name, for safetensors whose header does not describe the file, and for a list of files that lie elsewhere."""
    if SHARDS.search(file.name):
        _check_shards(file)
    with file.open("rb") as stream:
        start = stream.read(8)
        if file.suffix.lower() not in WEIGHTS_SUFFIXES and not _is_pickle(start):
            return 0
        if file.suffix.lower() != ".safetensors" or _is_pickle(start):
            raise ModelInvalid(f"{_label(file)} is a pickle or may be one; only safetensors are taken.")
        stream.seek(0)
        try:
            return header.read_from(stream).elements
        except Damaged as damaged:
            raise ModelInvalid(f"{_label(file)} is not a whole safetensors file: {damaged}") from None


def _check_shards(file: Path) -> None:
    """The libraries open what such a list names, wherever that is."""
    told = (read_json(file, SHARDS_BYTES_MAX) or {}).get("weight_map")
    if type(told) is not dict:
        raise ModelInvalid(f"{_label(file)} is no list of weights that can be read.")
    for name in told.values():
        if type(name) is not str or not SHARD.fullmatch(name):
            raise ModelInvalid(f"{_label(file)} names weights elsewhere than beside it, or that are no safetensors.")


def _is_pickle(start: bytes) -> bool:
    """By the first bytes: a zip (torch's format since 1.6) or the pickle protocol's own mark."""
    return start.startswith(b"PK\x03\x04") or (len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5)


def _check_graph(model: Model) -> None:
    """Raise ModelInvalid or Forbidden for an ONNX file that cannot be run, without loading it."""
    from instructors.pipelines.onnx import graph

    graph.inspect(model.path / model.manifest.onnx.file, model.path)


def _looks_like_model(path: Path) -> bool:
    return _is_model_folder(path) or (path.is_file() and path.suffix.lower() in WEIGHTS_SUFFIXES)


def _is_model_folder(path: Path) -> bool:
    return path.is_dir() and ((path / INDEX).exists() or _is_onnx(path) or single_files.file_at(path) is not None)


def _is_onnx(path: Path) -> bool:
    return not (path / INDEX).exists() and (path / manifest.onnx_file(path)).exists()


def inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def files_of(path: Path, root: Path) -> Iterator[Path]:
    """The model's files in a fixed order, each of them a plain file within `root`."""
    for number, file in enumerate(sorted(path.rglob("*"))):
        if number >= FILES_MAX:
            raise ModelInvalid(f"The model has more than {FILES_MAX} files.")
        if not inside(file, root):
            raise Forbidden(f"{_label(file)} leads out of the model folder.")
        mode = file.stat().st_mode
        if stat.S_ISREG(mode):
            yield file
        elif not stat.S_ISDIR(mode) or file.is_symlink():  # what lies behind a linked folder would go unchecked
            raise ModelInvalid(f"{_label(file)} is neither a file nor a folder.")


def graphs_of(path: Path) -> list[str]:
    """The components of a pipeline's folder that are ONNX graphs; none where its UNet has weights for torch."""
    unet = path / "unet"
    if not (unet / GRAPH_FILE).is_file() or any(unet.glob("*.safetensors")):
        return []
    return sorted(file.parent.name for file in path.glob(f"*/{GRAPH_FILE}"))


def _read_index(path: Path) -> dict[str, Any]:
    file = path / INDEX
    try:
        if not inside(file, path.parent) or file.stat().st_size > INDEX_BYTES_MAX:
            raise ModelInvalid(f"{INDEX} is too large or elsewhere.")
        index = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise ModelInvalid(f"{INDEX} cannot be read.") from None
    if type(index) is not dict or class_of(index) is None:
        raise ModelInvalid(f"{INDEX} does not name a pipeline of diffusers.")
    return index


def _check_index(index: dict[str, Any]) -> dict[str, tuple[str, str] | None]:
    """The components, as in `Model`. The libraries import by name what stands here, so only their own classes may."""
    components: dict[str, tuple[str, str] | None] = {}
    for name, value in index.items():
        if name.startswith("_") or type(value) is not list:
            continue
        if len(value) != 2 or value[0] not in LIBRARIES or not IDENTIFIER.fullmatch(name):
            raise ModelInvalid(f"{INDEX} wants code of its own for {name[:60]!r}, and that is not run.")
        components[name] = None if value[0] is None else (str(value[0]), str(value[1]))
    return components


def _check_configs(path: Path, components: Iterable[str]) -> None:
    """A component is made as large as its config says, before its weights are looked at."""
    for name in components:
        file = path / name / "config.json"
        if file.is_file() and (file.stat().st_size > CONFIG_BYTES_MAX or is_too_deep(read_json(file) or {})):
            raise ModelInvalid(f"The config of {name!r} is too large, or asks for more layers than any model has.")


def _family(class_name: str) -> str:
    """`StableDiffusionXLPipeline`, `OnnxStableDiffusionXLInpaintPipeline` -> `stable_diffusion_xl`."""
    name = re.sub(r"(Inpaint|Img2Img)?Pipeline$", "", PREFIX.sub("", class_name))
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _only_inpaints(unet: Path) -> bool:
    """Whether the UNet of this configuration wants mask and masked picture, too."""
    return (read_json(unet) or {}).get("in_channels") == INPAINTING_CHANNELS  # else files that loading will refuse


def _label(file: Path) -> str:
    """A file's name for messages: within its component, never its path."""
    return f"{file.name[:100]!r} of {file.parent.name[:100]!r}"
