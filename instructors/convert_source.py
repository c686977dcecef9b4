"""What a conversion begins with: a pipeline, a text model of transformers, or a single file, in the model folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from instructors.models import INDEX, MIXING, Model, ModelFolder
from instructors.single_files import file_at
from protocol.errors import InvalidRequest, ModelInvalid, ModelNotFound
from protocol.limits import MIB
from protocol.schemas.model_files import ModelConvert

CONFIG = "config.json"
CONFIG_BYTES_MAX = 1 * MIB
RECORD = "conversion.json"  # in the new model's folder: what it was made of, and how far it is from that
CLASSES = {  # component -> those that are converted
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be converted, and how. `kind`: pipeline, transformers or single_file; `content_hash`: SHA-256, hex."""

    kind: str
    name: str
    path: Path
    content_hash: str
    to: str
    precision: str

    def to_wire(self) -> dict[str, str]:
        """Equal for equal conversions."""
        return {name: getattr(self, name) for name in ("name", "content_hash", "to", "precision")}

    def to_process(self) -> dict[str, str]:
        """All of it, for the process that converts."""
        return {name: str(getattr(self, name)) for name in self.__slots__}

    @staticmethod
    def from_process(wire: Mapping[str, str]) -> "Source":
        """What `to_process` gave."""
        return Source(**{**wire, "path": Path(wire["path"])})  # type: ignore[arg-type]


def find(data: ModelConvert, models: ModelFolder) -> Source:
    """The source, its files checked. Raises ModelNotFound, Forbidden, ModelInvalid and InvalidRequest."""
    versions = models.versions(data.source)
    name = f"{data.source}:{versions[-1]}" if versions else data.source
    path = models.contained(name)
    if file_at(path) is not None or (path / INDEX).exists():
        model = models.pipeline(name)
        check_pipeline(model, data)
        kind = "pipeline" if model.single is None else "single_file"
        return Source(kind, model.model_id, model.path, model.content_hash, data.to, data.precision)
    if not (path / CONFIG).exists():
        raise ModelNotFound("What has this name is no pipeline, and no model of transformers, with a config.json.")
    if data.to != "onnx":
        raise InvalidRequest("Only a single file is converted to a folder in diffusers layout.")
    check_text_model(path / CONFIG)
    return Source("transformers", name, path, models.inspect(path)[0], data.to, data.precision)


def check_pipeline(model: Model, data: ModelConvert) -> None:
    """Raise InvalidRequest for what is not converted, or not so."""
    if model.runs_onnx:
        raise InvalidRequest("This model is in ONNX already; convert the one that it was made of.")
    if model.single is None and data.to != "onnx":
        raise InvalidRequest("Only a single file is converted to a folder in diffusers layout.")
    if model.single is not None and data.to != "diffusers":
        raise InvalidRequest("Convert a single file to diffusers first, and the result to ONNX.")
    if data.to == "diffusers" and data.precision == "int8":
        raise InvalidRequest("A folder in diffusers layout is in float32 or float16.")
    if model.family not in MIXING:
        raise InvalidRequest(f"Models of the family {model.family} are not converted; {' and '.join(MIXING)} are.")
    for component, classes in CLASSES.items():
        part = model.components.get(component)
        if part is not None and part[1] not in classes:
            raise InvalidRequest(f"Its {component} is of the class {part[1][:60]}, which is not converted.")
    if not {"unet", "vae", "text_encoder"} <= {name for name, part in model.components.items() if part is not None}:
        raise InvalidRequest("A pipeline without a UNet, a VAE or a first text encoder is not converted.")


def check_text_model(config: Path) -> str:
    """The class that its config names. Raises ModelInvalid or InvalidRequest."""
    try:
        if config.stat().st_size > CONFIG_BYTES_MAX:
            raise ModelInvalid(f"{CONFIG} is too large.")
        told = json.loads(config.read_bytes())
        names = told.get("architectures") or []
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ModelInvalid(f"{CONFIG} cannot be read.") from None
    if told.get("auto_map"):
        raise ModelInvalid(f"{CONFIG} wants code of its own, and that is not run.")
    if len(names) != 1 or type(names[0]) is not str or told.get("is_encoder_decoder"):
        raise InvalidRequest("Only encoders and classifiers of text are converted, and their config names one class.")
    return str(names[0])
