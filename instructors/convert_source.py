"""What a conversion begins with: a pipeline, a text model of transformers, or a single file, in the model folder."""

import errno
import json
from pathlib import Path

from instructors.models import INDEX, MIXING, ModelFolder, check_weights
from protocol.errors import AtelierError, InvalidRequest, ModelInvalid, ModelNotFound, Unavailable
from protocol.limits import MIB
from protocol.schemas.model_files import ModelConvert

CONFIG = "config.json"
CONFIG_BYTES_MAX = 1 * MIB
FULL = (errno.ENOSPC, errno.EDQUOT)
CLASSES = {  # component -> those that are converted
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}


def find(data: ModelConvert, models: ModelFolder) -> tuple[str, Path]:
    """(kind, path), whose files were checked. Raises ModelNotFound, Forbidden, ModelInvalid and InvalidRequest."""
    versions = models.versions(data.source)
    path = models.contained(f"{data.source}:{versions[-1]}" if versions else data.source)
    if path.is_file():
        return _single_file(data, path)
    if data.to != "onnx":
        raise InvalidRequest("Only a single file is converted to a folder in diffusers layout.")
    if (path / INDEX).exists():
        return _pipeline(data, models)
    if (path / CONFIG).exists():
        models.inspect(path)
        check_text_model(path / CONFIG)
        return "transformers", path
    raise ModelNotFound("What has this name is neither a pipeline nor a model of transformers, with a config.json.")


def _single_file(data: ModelConvert, path: Path) -> tuple[str, Path]:
    if data.to != "diffusers":
        raise InvalidRequest("Convert a single file to diffusers first, and the result to ONNX.")
    if data.precision == "int8":
        raise InvalidRequest("A folder in diffusers layout is float32 or float16.")
    if not check_weights(path):
        raise ModelInvalid("It holds no weights; only safetensors are taken.")
    return "single_file", path


def _pipeline(data: ModelConvert, models: ModelFolder) -> tuple[str, Path]:
    model = models.pipeline(data.source)
    if model.runs_onnx:
        raise InvalidRequest("This model is in ONNX already; convert the one that it was made of.")
    if model.family not in MIXING:
        raise InvalidRequest(f"Models of the family {model.family} are not converted; {' and '.join(MIXING)} are.")
    for name, classes in CLASSES.items():
        part = model.components.get(name)
        if part is not None and part[1] not in classes:
            raise InvalidRequest(f"Its {name} is of the class {part[1][:60]}, which is not converted.")
    if not {"unet", "vae", "text_encoder"} <= {name for name, part in model.components.items() if part is not None}:
        raise InvalidRequest("A pipeline without a UNet, a VAE or a first text encoder is not converted.")
    return "pipeline", model.path


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


def no_room(error: OSError) -> AtelierError:
    """What a client is told of a disk that takes no more."""
    if error.errno in FULL:
        return Unavailable("There is no room on the disk for the converted model; free some, and try again.")
    return Unavailable("The model folder of this worker cannot be written to.")
