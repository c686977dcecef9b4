"""What a file or a folder of a model is: its type, family, variants and dtype, by its content."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructors.catalogue import header as headers
from instructors.catalogue import judge
from instructors.catalogue.header import Damaged, Header, Tensor
from instructors.catalogue.judge import Kind
from instructors.catalogue.sniff import ONNX, PICKLE, REMEDY_PICKLE, SAFETENSORS, UNKNOWN, class_of, read_json, sniff
from instructors.models import INDEX, WEIGHTS_SUFFIXES, files_of
from protocol.errors import AtelierError

CONFIG = "config.json"
DENOISERS = ("unet", "transformer", "prior", "decoder")  # the component that makes a pipeline what it is
CLASSES = {  # how the pipeline's class begins -> the family; where the tensors do not tell. The first counts
    "StableDiffusionXL": "sdxl", "StableDiffusion3": "sd3", "StableCascade": "cascade", "Flux2": "flux2",
    "Flux": "flux", "Chroma": "chroma", "QwenImage": "qwen_image", "ZImage": "z_image", "AuraFlow": "auraflow",
    "PixArt": "pixart", "Sana": "sana", "Lumina2": "lumina2", "HiDream": "hidream", "HunyuanVideo": "hunyuan_video",
    "Wan": "wan", "LTX": "ltx_video", "LatentConsistency": "sd1",
}  # fmt: skip
ACTIVATIONS = {"quick_gelu": "sd1", "gelu": "sd2"}  # of the text encoder: the two families share their pipeline
TYPES = {"ControlNet": "controlnet", "Autoencoder": "vae", "UNet": "diffusion_model", "Transformer": "diffusion_model"}


@dataclass(frozen=True, slots=True)
class Content:
    """`problem` says why it cannot be used, `remedy` what to do about it."""

    type: str
    format: str  # diffusers, safetensors, onnx, pickle, unknown
    nbytes: int
    family: str | None = None
    variants: tuple[str, ...] = ()
    dtype: str | None = None
    class_name: str | None = None  # as a config says, of diffusers or transformers
    facts: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None
    remedy: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """Without what is empty."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name))}

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> "Content":
        """Raises TypeError for what is none."""
        return Content(**{**plain, "variants": tuple(plain.get("variants", ()))})


def of_file(path: Path) -> Content | None:
    """None: it is no model's. Raises OSError."""
    found, nbytes = sniff(path), path.stat().st_size
    if found.format == PICKLE:
        return Content("pickle", PICKLE, nbytes, problem="It is a pickle, and those run code.", remedy=REMEDY_PICKLE)
    if found.format == ONNX:
        return _onnx(path, nbytes)
    if found.header is not None:
        kind = judge.judge(found.header.shapes, found.header.metadata)
        problem = "Its tensors are of no kind that is known here." if kind.type == UNKNOWN else None
        return _content(kind, SAFETENSORS, nbytes, dtype=found.header.dtype, problem=problem)
    if found.damaged is not None:
        return _broken(SAFETENSORS, nbytes, str(found.damaged), "Get the file anew; compare its size and checksum.")
    if path.suffix.lower() in WEIGHTS_SUFFIXES:
        return _broken(UNKNOWN, nbytes, "Its bytes are neither safetensors nor ONNX.", "Get the file anew.")
    return None


def _onnx(path: Path, nbytes: int) -> Content:
    from instructors.pipelines.onnx import graph

    try:
        told = graph.inspect(path, path.parent)
    except AtelierError as error:
        return Content("onnx", ONNX, nbytes, problem=error.message, remedy="Export the model anew.")
    return Content("onnx", ONNX, told.nbytes, facts={"opset": told.opset})


def is_model_folder(names: set[str], path: Path) -> bool:
    """Whether a folder with entries of these names is one thing: a pipeline, or a component with its config."""
    if INDEX in names:
        return True
    if CONFIG not in names or not any(Path(name).suffix.lower() in WEIGHTS_SUFFIXES for name in names):
        return False
    config = read_json(path / CONFIG) or {}
    return "_class_name" in config or "architectures" in config or "model_type" in config


def of_folder(path: Path, boundary: Path) -> Content:
    """Of one that `is_model_folder`. Nothing outside of `boundary` is read. Raises OSError."""
    nbytes, is_pipeline = 0, (path / INDEX).is_file()
    kind = "pipeline" if is_pipeline else UNKNOWN
    try:
        files = list(files_of(path, boundary))
        nbytes = sum(file.stat().st_size for file in files)
        return _pipeline(path, files, nbytes) if is_pipeline else _component(path, files, nbytes)
    except Damaged as damaged:
        remedy = "Get the damaged file anew; `atelier models validate` tells which it is."
        return Content(kind, "diffusers", nbytes, problem=str(damaged), remedy=remedy)
    except AtelierError as error:  # too many files, or one that leads elsewhere
        remedy = "Move it, with all of its files, into a folder of its own."
        return Content(kind, "diffusers", nbytes, problem=error.message, remedy=remedy)


def _pipeline(path: Path, files: list[Path], nbytes: int) -> Content:
    class_name = class_of(read_json(path / INDEX) or {})
    if class_name is None:
        return Content(
            "pipeline", "diffusers", nbytes,
            problem=f"{INDEX} does not name a pipeline of diffusers.", remedy=f"Restore {INDEX}.",
        )  # fmt: skip
    part = next((name for name in DENOISERS if (path / name).is_dir()), "")
    weights = [file for file in files if file.parent == path / part]
    tensors = tensors_of(weights)
    tensors_of([file for file in files if file not in weights])  # those of the other components are whole, too
    kind = judge.denoiser({name: tensor.shape for name, tensor in tensors.items()}, {}) or judge.UNKNOWN
    family = kind.family or _family(path, class_name)
    variants = (*kind.variants, *_told(path, class_name, kind.variants))
    problem: str | None = None
    remedy: str | None = None
    if not tensors and (pickles := [file.name for file in files if _is_pickle(file)]):
        problem, remedy = f"Its weights are pickles, and those run code: {pickles[0][:100]!r}.", REMEDY_PICKLE
    has_onnx = any(file.suffix == ".onnx" for file in weights)
    if not tensors and not problem and not has_onnx:
        problem, remedy = "It has no weights that can be read.", "Get its safetensors files, too."
    return Content(
        "pipeline", ONNX if has_onnx else "diffusers", nbytes, family, variants, _dtype(tensors), class_name,
        kind.facts, problem, remedy,
    )  # fmt: skip


def _component(path: Path, files: list[Path], nbytes: int) -> Content:
    config = read_json(path / CONFIG) or {}
    class_name = class_of(config)
    tensors = tensors_of([file for file in files if file.parent == path])
    if not tensors and any(_is_pickle(file) for file in files):
        problem = "Its weights are a pickle, and those run code."
        return Content("pickle", PICKLE, nbytes, class_name=class_name, problem=problem, remedy=REMEDY_PICKLE)
    kind = judge.judge({name: tensor.shape for name, tensor in tensors.items()})
    if kind.type == UNKNOWN and class_name is not None:
        kind = Kind(next((told for mark, told in TYPES.items() if mark in class_name), UNKNOWN))
    unknown = "Its tensors are of no kind that is known here." if kind.type == UNKNOWN else None
    return _content(kind, "diffusers", nbytes, dtype=_dtype(tensors), class_name=class_name, problem=unknown)


def tensors_of(files: list[Path]) -> dict[str, Tensor]:
    """Of all safetensors among the files: the parts of one model, or one of its variants. Raises Damaged, OSError."""
    found: dict[str, Tensor] = {}
    for file in sorted(files, key=lambda file: (file.name.count("."), file.name)):  # a variant's name has one dot more
        if file.suffix.lower() == ".safetensors":
            found = {**headers.read(file).tensors, **found}
    return found


def _dtype(tensors: Mapping[str, Tensor]) -> str | None:
    return Header(tensors, {}, 0).dtype


def _family(path: Path, class_name: str) -> str | None:
    told = next((family for start, family in CLASSES.items() if class_name.startswith(start)), None)
    if told is None and class_name.startswith("StableDiffusion"):
        config = read_json(path / "text_encoder" / CONFIG) or {}
        told = ACTIVATIONS.get(str(config.get("hidden_act", "quick_gelu")))
    return told


def _told(path: Path, class_name: str, judged: tuple[str, ...]) -> Iterator[str]:
    """What the configs tell and the tensors cannot."""
    if "Inpaint" in class_name and "inpainting" not in judged:
        yield "inpainting"
    scheduler = read_json(path / "scheduler" / "scheduler_config.json") or {}
    if scheduler.get("prediction_type") == "v_prediction" and "v_prediction" not in judged:
        yield "v_prediction"


def _is_pickle(file: Path) -> bool:
    return file.suffix.lower() in WEIGHTS_SUFFIXES and sniff(file).format == PICKLE


def _content(kind: Kind, form: str, nbytes: int, **more: Any) -> Content:
    return Content(kind.type, form, nbytes, kind.family, kind.variants, facts=kind.facts, **more)


def _broken(form: str, nbytes: int, problem: str, remedy: str) -> Content:
    return Content(UNKNOWN, form, nbytes, problem=problem, remedy=remedy)
