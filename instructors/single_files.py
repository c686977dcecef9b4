"""Checkpoints in one file: what they hold, and which configs their pipeline is made by.

The configs of SD 1, SD 2 and SDXL, and CLIP's vocabulary, are shipped in `configs/`, so that no network is asked for
them. Those of other families lie in the model folder's `configs/`, and `models.toml` names them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from instructors.catalogue import header, judge
from instructors.catalogue.header import Damaged, Header
from instructors.catalogue.judge import Kind
from instructors.catalogue.sniff import read_json
from protocol.errors import Forbidden, ModelInvalid

SHIPPED = Path(__file__).parent / "configs"
FOLDER = "configs"  # in the model folder
INDEX = "model_index.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
CHOSEN = {  # (family, what it is made for) -> the shipped configs
    ("sd1", None): "sd1",
    ("sd1", "epsilon"): "sd1",
    ("sd1", "inpainting"): "sd1-inpainting",
    ("sd2", None): "sd2",
    ("sd2", "epsilon"): "sd2-base",
    ("sd2", "inpainting"): "sd2-inpainting",
    ("sdxl", None): "sdxl",
    ("sdxl", "epsilon"): "sdxl",
    ("sdxl", "inpainting"): "sdxl-inpainting",
}
PARTS = {  # how the tensors of a component begin
    "unet": ("model.diffusion_model.",),
    "transformer": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": (
        "cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."
    ),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SingleFile:
    """A checkpoint whose header was checked. `config`: the folder of its pipeline's configs, in diffusers layout."""

    path: Path
    config: Path
    kind: Kind
    header: Header

    @property
    def is_shipped(self) -> bool:
        """Whether the configs are those that come with the program."""
        return self.config.parent == SHIPPED

    @property
    def index(self) -> Mapping[str, object]:
        """Of its pipeline."""
        return read_json(self.config / INDEX) or {}

    @property
    def only_inpaints(self) -> bool:
        return "inpainting" in self.kind.variants and self.kind.family != "flux"

    def elements(self) -> dict[str, int]:
        """How many numbers each component's weights have; what belongs to none counts as the denoiser's."""
        components = [name for name in self.index if not name.startswith("_")]
        denoiser = "unet" if "unet" in components else "transformer"
        found: dict[str, int] = {}
        for name, tensor in self.header.tensors.items():
            starts = {part: PARTS[part] for part in components if part in PARTS and part != denoiser}
            part = next((part for part, prefixes in starts.items() if name.startswith(prefixes)), denoiser)
            found[part] = found.get(part, 0) + (tensor.end - tensor.begin) * 8 // header.BITS[tensor.dtype]
        return found


def file_at(path: Path) -> Path | None:
    """The checkpoint that a model's path is, or that lies alone in its folder."""
    if not path.is_dir():
        return path
    if (path / INDEX).exists() or (path / "config.json").exists():
        return None
    files = [file for file in path.glob("*.safetensors") if file.is_file()]
    return files[0] if len(files) == 1 and _is_checkpoint(files[0]) else None


def _is_checkpoint(file: Path) -> bool:
    try:
        status = file.stat()
        return _type(file, status.st_size, status.st_mtime_ns) in ("checkpoint", "diffusion_model")
    except OSError:
        return False


@lru_cache(maxsize=1000)
def _type(file: Path, nbytes: int, mtime_ns: int) -> str:
    try:
        found = header.read(file)
    except Damaged:
        return "checkpoint"  # what is wrong with it is told when it is used
    return judge.judge(found.shapes, found.metadata).type


def read(path: Path, root: Path, config: str | None) -> SingleFile:
    """`root` is the model folder, `config` what the model's settings say.

    Raises ModelInvalid (damaged, no whole checkpoint, or of a family whose configs are not known) and Forbidden.
    """
    try:
        found = header.read(path)
    except Damaged as damaged:
        raise ModelInvalid(f"Its file is not a whole safetensors file: {damaged}") from None
    except OSError:
        raise ModelInvalid("Its file cannot be read, or has changed just now.") from None
    kind = judge.judge(found.shapes, found.metadata)
    if config is None and kind.type != "checkpoint":
        what = kind.type.replace("_", " ")
        raise ModelInvalid(f"This file is no whole checkpoint, but: {what}. A model is a pipeline with all its parts.")
    return SingleFile(path, config_folder(kind, root, config), kind, found)


def config_folder(kind: Kind, root: Path, config: str | None) -> Path:
    """The configs that such a checkpoint is loaded with. Raises ModelInvalid that says what to give, and Forbidden."""
    if config is None:
        made_for = next((variant for variant in kind.variants if variant != "v_prediction"), None)
        chosen = CHOSEN.get((kind.family or "", made_for))
        if chosen is not None:
            return SHIPPED / chosen
        family = " ".join((kind.family or "an unknown family", *kind.variants))
        raise ModelInvalid(
            f"The configs of {family} are not shipped. Put those of its pipeline (model_index.json and the folders of "
            f'the components, without weights) into the model folder\'s {FOLDER}/<name>, and say config = "<name>" for '
            "this model in models.toml."
        )
    folder = root / FOLDER / config
    if not NAME.fullmatch(config):
        raise ModelInvalid(f"models.toml, config: {config[:100]!r} is no name of a folder in {FOLDER}/.")
    if not folder.is_dir() and (SHIPPED / config / INDEX).is_file():
        return SHIPPED / config
    if not folder.resolve().is_relative_to(root.resolve()):
        raise Forbidden(f"{FOLDER}/{config} leads out of the model folder.")
    if type((read_json(folder / INDEX) or {}).get("_class_name")) is not str:
        raise ModelInvalid(f"models.toml, config: there is no pipeline's {INDEX} in {FOLDER}/{config}.")
    return folder
