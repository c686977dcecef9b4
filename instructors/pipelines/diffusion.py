"""Stock diffusers pipelines of any text-to-image family, loaded from a checked folder."""

import inspect
import io
from collections.abc import Callable
from copy import copy
from math import lcm
from typing import Any

import diffusers
import structlog
import torch
import transformers
from diffusers import AutoPipelineForText2Image
from PIL import Image

from instructors.memory import is_out_of_memory
from instructors.models import Model
from instructors.pipelines.schedulers import SchedulerBank
from protocol.errors import AtelierError, InvalidRequest, ModelInvalid

PREVIEW_LATENTS_MAX = 32  # latents are shrunk to this before a preview's decode: the VAE costs more than a step
PREVIEW_QUALITY = 80

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()

log = structlog.get_logger("instructors.diffusion")

OnStep = Callable[[int, int, Any], None]  # (steps done, steps in all, latents)


def dtype_for(device: str, model: Model) -> torch.dtype:
    """float32 on a CPU; on a GPU float16 for UNets, as they are published, bfloat16 for transformers, whose
    activations overflow float16."""
    if device == "cpu":
        return torch.float32
    return torch.float16 if model.components.get("unet") else torch.bfloat16


class LoadedModel:
    """A pipeline in the device's memory. `name` and `nbytes` are for the worker's residency."""

    def __init__(self, model: Model, pipeline: Any) -> None:
        self.model = model
        self.name = model.model_id
        self.nbytes = _nbytes(pipeline)
        self.dtype = str(pipeline.dtype).removeprefix("torch.")
        self.schedulers = SchedulerBank(pipeline.scheduler)
        self._pipeline = pipeline
        self._accepts = inspect.signature(pipeline.__call__).parameters
        if "callback_on_step_end" not in self._accepts:
            raise ModelInvalid("This family's pipeline cannot be stopped between steps, so it is not run.")

    @property
    def default_size(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None where the family tells it only by making a picture."""
        size = getattr(self._pipeline, "default_sample_size", None)
        if not isinstance(size, int):
            return None
        return size * self._scale_factor, size * self._scale_factor

    @property
    def size_multiple(self) -> int:
        """Width and height are multiples of this: the VAE's factor, times the patch that a transformer sees."""
        processor = getattr(self._pipeline, "image_processor", None)
        factor = processor.config.vae_scale_factor if processor is not None else 1
        patch = getattr(self._pipeline, "patch_size", None)
        return lcm(8, factor, self._scale_factor * patch if isinstance(patch, int) else 1)

    @property
    def _scale_factor(self) -> int:
        """Pixels per latent and side."""
        return int(getattr(self._pipeline, "vae_scale_factor", 8))

    def check(self, arguments: dict[str, Any]) -> None:
        """Raise InvalidRequest for what this family has no use for."""
        for name in arguments:
            if name not in self._accepts:
                raise InvalidRequest(f"Models of the family {self.model.family} take no {name}.")

    def generate(self, arguments: dict[str, Any], scheduler: Any, seed: int, on_step: OnStep) -> Image.Image:
        """One picture. `on_step` is called after each denoising step; what it raises ends the picture at once."""
        view = copy(self._pipeline)  # the weights are shared, the scheduler is not
        view.scheduler = scheduler

        def after_step(pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps = len(pipeline.scheduler.timesteps)
            if index + 1 == steps and not bool(torch.isfinite(tensors["latents"]).all()):
                raise InvalidRequest(
                    "The picture ended in values that are not numbers; try a lower guidance_scale, more steps or "
                    "another scheduler."
                )
            on_step(index + 1, steps, tensors["latents"])
            return {}

        try:
            generator = torch.Generator("cpu").manual_seed(seed)  # the same noise on every kind of device
            return view(**arguments, generator=generator, callback_on_step_end=after_step).images[0]
        finally:
            view.maybe_free_model_hooks()

    def preview(self, latents: Any, width: int | None, height: int | None) -> Callable[[], bytes] | None:
        """What makes a small JPEG of unfinished latents: the decode is done now, on the device, the rest later.

        None where the family's latents are not laid out as a picture. Early previews are noise, as the latents are.
        """
        try:
            pixels = self._decode_small(latents, width, height)
        except Exception as error:  # a preview is a courtesy: the picture goes on without it
            log.info("no preview", model_id=self.name, error=repr(error))
            return None
        return None if pixels is None else lambda: _jpeg(pixels)

    @torch.inference_mode()
    def _decode_small(self, latents: Any, width: int | None, height: int | None) -> Any:
        """[height, width, 3] bytes on the CPU, or None."""
        vae, unpack = getattr(self._pipeline, "vae", None), getattr(self._pipeline, "_unpack_latents", None)
        if latents.ndim == 3 and unpack is not None and width and height:
            latents = unpack(latents, height, width, self._scale_factor)
        scaling_factor = getattr(getattr(vae, "config", None), "scaling_factor", None)
        if vae is None or latents.ndim != 4 or scaling_factor is None:
            return None
        shrink = PREVIEW_LATENTS_MAX / max(latents.shape[-2:])
        if shrink < 1:
            latents = torch.nn.functional.interpolate(latents.float(), scale_factor=shrink, mode="area")
        latents = latents / latents.float().std().clamp(min=1)  # some schedulers' latents start enormous
        latents = latents.to(vae.dtype) / scaling_factor + (getattr(vae.config, "shift_factor", 0) or 0)
        decoded = vae.decode(latents, return_dict=False)[0][0].float().nan_to_num()
        return decoded.mul(127.5).add(127.5).clamp(0, 255).byte().permute(1, 2, 0).cpu()


def load(model: Model, device: str) -> LoadedModel:
    """Load a checked model onto a device. Raises ModelInvalid; running out of memory passes through."""
    options: dict[str, Any] = {name: None for name, there in model.components.items() if not there}
    if "safety_checker" in model.components:
        options.update(safety_checker=None, requires_safety_checker=False)
    if _only_fp16(model):
        options["variant"] = "fp16"
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(
            model.path, local_files_only=True, use_safetensors=True, dtype=dtype_for(device, model), **options
        ).to(device)
        pipeline.set_progress_bar_config(disable=True)
        return LoadedModel(model, pipeline)
    except AtelierError:
        raise
    except Exception as error:  # the libraries raise of every kind on files that do not fit together
        if is_out_of_memory(error):
            raise
        log.warning("a model cannot be loaded", model_id=model.model_id, error=repr(error))
        raise ModelInvalid("The model's files do not make a text-to-image pipeline.") from None


def _only_fp16(model: Model) -> bool:
    files = [file.name for file in model.path.rglob("*.safetensors")]
    return bool(files) and all(".fp16." in name for name in files)


def _nbytes(pipeline: Any) -> int:
    """Bytes of all parameters and buffers, shared ones counted once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for tensor in (*part.parameters(), *part.buffers())
    }
    return sum(tensors.values())


def _jpeg(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, "JPEG", quality=PREVIEW_QUALITY)
    return stream.getvalue()
