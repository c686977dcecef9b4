"""The LoRA files in the model folder: which there are, whether they may be trusted, and what their headers tell.

A LoRA is a `.safetensors` file in the model folder's `loras/`, or a folder there that holds one, named by its file's or
folder's name. Everything here is read from the header; no tensor is loaded and no library that computes imported.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import structlog

from instructors.catalogue import judge
from instructors.models import KNOWN_SHOWN, NAME, WEIGHTS_SUFFIXES, check_weights
from protocol.errors import AtelierError, Forbidden, ModelInvalid, ModelNotFound
from protocol.limits import MIB, NAME_LENGTH_MAX
from protocol.schemas.base import nearest

FOLDER = "loras"
HEADER_BYTES_MAX = 16 * MIB  # names and metadata; the largest in use are about 2 MiB
FILES_MAX = 1000  # in the folder
TENSORS_MAX = 20_000
KEY_LENGTH_MAX = 500
TRIGGER_WORDS_MAX = 20
WORD_LENGTH_MAX = 100
CONFIG = "lora_adapter_metadata"  # where diffusers writes peft's settings, as JSON
SUFFIXES = (".safetensors", *sorted(WEIGHTS_SUFFIXES - {".safetensors"}))
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
REFUSED = {  # what a tensor's name ends in or contains -> what the file is
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "lora_mid.": "LoCon with Tucker decomposition",
    "lora_controlnet": "Control-LoRA",
    "base_model.model.": "checkpoint of peft's own, without what it is for",
}
LAYOUTS = {  # how each layout names the half that a LoRA's other half is found by
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "diffusers": (".down.weight", ".up.weight"),
}

log = structlog.get_logger("instructors.lora_files")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA whose header was checked: two halves for each layer, and nothing of a kind that is not applied here.

    `shapes`: tensor's name -> shape. `config`: component -> peft's settings, where the file has them.
    """

    lora_id: str
    path: Path
    layout: str  # a key of LAYOUTS
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Mapping[str, Any]]
    ranks: tuple[int, ...]  # ascending
    targets: Mapping[str, tuple[str, ...]]  # component -> kinds of layers
    base_model: str | None  # what it was made for, as far as the file tells
    trigger_words: tuple[str, ...]
    nbytes: int  # of the file
    elements: int  # numbers in its tensors

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 in hex. Reads the whole file once: a list of many LoRAs does without. Raises ModelInvalid."""
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            raise _unreadable() from None

    def to_wire(self) -> dict[str, Any]:
        """The entry in `lora.list`."""
        return {
            "lora_id": self.lora_id,
            "format": self.layout,
            "rank": self.ranks[-1],
            "targets": list(self.targets),
            "base_model": self.base_model,
            "trigger_words": list(self.trigger_words),
            "nbytes": self.nbytes,
        }


@dataclass(slots=True)
class LoraFolder:
    """`models` is the model folder; None: there are no LoRAs. What was read is kept while a file stays the same."""

    models: Path | None
    _read: dict[Path, tuple[tuple[int, int], LoraFile]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every name that looks like a LoRA's: of a file of weights, or of a folder that holds one."""
        if self._root is None or not self._root.is_dir():
            return []
        entries = sorted(self._root.iterdir())[:FILES_MAX]
        stems = {entry.name if entry.is_dir() else entry.stem for entry in entries}
        return sorted(name for name in stems if self._path(name) is not None)

    def entry(self, lora_id: str) -> dict[str, Any]:
        """What `lora.list` says of one of `names`; of one that is not usable, its `problem` says why."""
        try:
            return self.find(lora_id).to_wire()
        except AtelierError as error:
            log.warning("not usable", lora_id=lora_id, problem=error.message)
            path = self._path(lora_id)
            nbytes = path.stat().st_size if path is not None and self._inside(path) else 0
            return {"lora_id": lora_id, "nbytes": nbytes, "problem": error.message}

    def find(self, lora_id: str) -> LoraFile:
        """The checked LoRA of this name.

        Raises ModelNotFound, Forbidden (a link out of the folder) or ModelInvalid (unsafe, damaged, or of a kind that
        is not applied).
        """
        path = self._path(lora_id)
        if path is None:
            known = self.names()
            details = {"known": known[:KNOWN_SHOWN], "nearest": nearest(lora_id, known)}
            raise ModelNotFound("There is no LoRA of this name.", details=details)
        if not self._inside(path):
            raise Forbidden("This LoRA leads out of the model folder.")
        try:
            status = path.stat()
            version = (status.st_size, status.st_mtime_ns)
            known_file = self._read.get(path)
            if known_file is None or known_file[0] != version:
                self._read[path] = (version, read(path, lora_id))
        except OSError:
            raise _unreadable() from None
        return self._read[path][1]

    @property
    def _root(self) -> Path | None:
        return self.models / FOLDER if self.models is not None else None

    def _path(self, lora_id: str) -> Path | None:
        """The file of this name, wherever a link may lead; pickles too, so that they are refused by their content."""
        if self._root is None or not NAME.fullmatch(lora_id):
            return None
        files = (self._root / f"{lora_id}{suffix}" for suffix in SUFFIXES)
        single = next((file for file in files if file.is_file()), None)
        folder = self._root / lora_id
        return _weights_in(folder) if single is None and folder.is_dir() and self._inside(folder) else single

    def _inside(self, path: Path) -> bool:
        return self.models is not None and path.resolve().is_relative_to(self.models.resolve())


def resident_name(lora_id: str) -> str:
    """What reports of a worker's memory call it: like no model's name, and not longer than a name may be."""
    return f"lora/{lora_id}"[:NAME_LENGTH_MAX]


@cache
def folder(models: Path | None) -> LoraFolder:
    """The LoRAs of a model folder, with what this process has read of them."""
    return LoraFolder(models)


def read(path: Path, lora_id: str) -> LoraFile:
    """What a file's header tells. Raises ModelInvalid."""
    header = _header(path)
    metadata = header.pop("__metadata__", None) or {}
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    layout = _layout(shapes)
    config = _config(metadata.get(CONFIG))
    downs = _halves(shapes, layout)
    return LoraFile(
        lora_id=lora_id,
        path=path,
        layout=layout,
        shapes=shapes,
        config=config,
        ranks=tuple(sorted({shapes[name][0] for name in downs})),
        targets=_targets(shapes, downs),
        base_model=judge.base_model(shapes, metadata),
        trigger_words=_trigger_words(metadata),
        nbytes=path.stat().st_size,
        elements=sum(math.prod(shape) for shape in shapes.values()),
    )


def _unreadable() -> ModelInvalid:
    return ModelInvalid("This LoRA's file cannot be read, or has changed just now.")


def _weights_in(folder: Path) -> Path | None:
    """The one safetensors file of a folder; None where there is none, or more than one."""
    files = [file for file in folder.glob("*.safetensors") if file.is_file()]
    return files[0] if len(files) == 1 else None


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if HEADER_BYTES_MAX < length < path.stat().st_size:
            raise ModelInvalid(f"This LoRA's header has more than {HEADER_BYTES_MAX // MIB} MiB.")
        check_weights(path)
        header: dict[str, Any] = json.loads(stream.read(length))
    metadata = header.get("__metadata__") or {}
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise ModelInvalid("This LoRA's metadata is not a map of texts.")
    names = header.keys() - {"__metadata__"}
    if not 0 < len(names) <= TENSORS_MAX or max(map(len, names)) > KEY_LENGTH_MAX:
        raise ModelInvalid(f"A LoRA has up to {TENSORS_MAX} tensors, whose names have up to {KEY_LENGTH_MAX} letters.")
    return header


def _layout(shapes: Mapping[str, Any]) -> str:
    for mark, kind in REFUSED.items():
        if any(mark in name for name in shapes):
            raise ModelInvalid(f"This file is a {kind}, and those are not applied; plain LoRA and LoCon are.")
    for layout, (down, _) in LAYOUTS.items():
        if any(name.endswith(down) for name in shapes):
            return layout
    raise ModelInvalid("This file is not a LoRA of kohya, diffusers or peft.")


def _halves(shapes: Mapping[str, tuple[int, ...]], layout: str) -> list[str]:
    """The names of the first halves. Raises ModelInvalid where the two halves of a layer do not make one."""
    down, up = LAYOUTS[layout]
    others = [name for name in shapes if not name.endswith((down, up, ".alpha"))]
    if others:
        raise ModelInvalid(f"This LoRA has a tensor of no known use: {min(others)[:100]!r}.")
    stems = [name.removesuffix(down) for name in shapes if name.endswith(down)]
    alone = {name.removesuffix(up) for name in shapes if name.endswith(up)}.symmetric_difference(stems)
    if alone:
        raise ModelInvalid(f"Half of this LoRA's layer {min(alone)[:100]!r} is missing.")
    for stem in stems:
        first, second = shapes[stem + down], shapes[stem + up]
        if len(first) not in (2, 4) or len(second) != len(first) or not first[0] == second[1] > 0:
            raise ModelInvalid(
                f"The halves of this LoRA's layer {stem[:100]!r} do not have one rank: {first}, {second}."
            )
    return [stem + down for stem in stems]


def _config(text: str | None) -> dict[str, dict[str, Any]]:
    """peft's settings by component, from `{"unet.lora_alpha": 4, ...}`."""
    if text is None:
        return {}
    try:
        settings = json.loads(text)
        config: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            component, _, setting = name.partition(".")
            config.setdefault(component, {})[setting] = value
    except (ValueError, AttributeError, RecursionError):
        raise ModelInvalid(f"This LoRA's {CONFIG} cannot be read.") from None
    if any(settings.get("use_dora") for settings in config.values()):
        raise ModelInvalid("This file is a DoRA, and those are not applied; plain LoRA and LoCon are.")
    return config


def _targets(shapes: Mapping[str, tuple[int, ...]], downs: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for name in downs:
        found.setdefault(_component(name), set()).add(_kind(name, shapes[name]))
    return {component: tuple(sorted(found[component])) for component in sorted(found)}


def _component(name: str) -> str:
    """Which part of a pipeline a tensor changes, by the layouts' prefixes."""
    if name.startswith(("lora_te2_", "text_encoder_2.")):
        return "text_encoder_2"
    if name.startswith(("lora_te_", "lora_te1_", "text_encoder.")):
        return "text_encoder"
    return "transformer" if name.startswith("transformer.") else "unet"


def _kind(name: str, shape: tuple[int, ...]) -> str:
    if re.search(r"attn", name):
        return "attention"
    if re.search(r"[._](ff|mlp)[._]", name):
        return "feed_forward"
    if re.search(r"proj_(in|out)", name):
        return "projection"
    return "convolution" if len(shape) == 4 else "other"


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What its author says calls it up; else the words that stood most often in its training pictures' captions."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    words = phrase.split(",") if phrase else _frequent_tags(metadata.get("ss_tag_frequency", ""))
    clean = [word.strip()[:WORD_LENGTH_MAX] for word in words]
    return tuple(dict.fromkeys(word for word in clean if word.isprintable() and word))[:TRIGGER_WORDS_MAX]


def _frequent_tags(text: str) -> list[str]:
    """`text`: {"folder of pictures": {"tag": how often}} as JSON. A damaged one tells nothing."""
    counts: Counter[str] = Counter()
    try:
        for tags in json.loads(text or "{}").values():
            for tag, count in tags.items():
                counts[tag] += int(count)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return []
    return [tag for tag, _ in counts.most_common(TRIGGER_WORDS_MAX)]
