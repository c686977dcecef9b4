"""A stock diffusers pipeline of any family, and the pictures it makes."""

import inspect
import io
from collections.abc import Callable, Sequence
from copy import copy
from math import lcm
from typing import TYPE_CHECKING, Any

import diffusers
import structlog
import torch
import transformers
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from PIL import Image

from instructors.controlnet_files import UNION
from instructors.model_settings import ModelSettings
from instructors.models import Model
from instructors.pipelines import streams
from instructors.pipelines.schedulers import SchedulerBank
from instructors.pipelines.sharing import share
from instructors.task import Padding
from protocol.errors import InvalidRequest, ModelInvalid
from protocol.schemas.inference import ChangeData

if TYPE_CHECKING:
    from instructors.pictures import Kind, Plan
    from instructors.pipelines.loading import LoadedComponent
    from protocol.schemas.inference import PictureData

PREVIEW_LATENTS_MAX = 32  # latents are shrunk to this before a preview's decode: the VAE costs more than a step
PREVIEW_QUALITY = 80

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()

log = structlog.get_logger("instructors.diffusion")

OnStep = Callable[[int, int, Any], None]  # (steps done, steps in all, latents)
DOUBLED = (  # tensors of the stock loops that have rows for the negative prompt, then for the prompt
    "prompt_embeds", "add_text_embeds", "add_time_ids", "mask", "masked_image_latents", "image", "control_image"
)  # fmt: skip
AUTO = {
    "text2img": AutoPipelineForText2Image,
    "img2img": AutoPipelineForImage2Image,
    "inpainting": AutoPipelineForInpainting,
}


class LoadedModel:
    """A pipeline in the device's memory. `name`, `nbytes` and `parts` are for the worker's residency."""

    def __init__(
        self, model: Model, settings: ModelSettings, pipeline: Any, parts: dict[str, Any], padding: Padding
    ) -> None:
        self.model = model
        self.settings = settings
        self.name = model.model_id
        self.parts = parts
        self.nbytes = sum(part.nbytes for part in parts.values())
        self.dtype = str(pipeline.dtype).removeprefix("torch.")
        self.schedulers = SchedulerBank(pipeline.scheduler)
        # Several pictures may compute together, but not where the components come and go with each call.
        self.shared = settings.offload == "none" and share(pipeline, padding)
        self._pipeline = pipeline
        self._pipelines: dict[str, Any] = {"text2img": pipeline}
        if "callback_on_step_end" not in inspect.signature(pipeline.__call__).parameters:
            raise ModelInvalid("This family's pipeline cannot be stopped between steps, so it is not run.")

    @property
    def default_size(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None where the family tells it only by making a picture."""
        size = getattr(self._pipeline, "default_sample_size", None) or self._unet_config.get("sample_size")
        if not isinstance(size, int):
            return None
        return size * self.scale_factor, size * self.scale_factor

    @property
    def size_multiple(self) -> int:
        """Width and height are multiples of this: the VAE's factor, times the patch that a transformer sees."""
        processor = getattr(self._pipeline, "image_processor", None)
        factor = processor.config.vae_scale_factor if processor is not None else 1
        patch = getattr(self._pipeline, "patch_size", None)
        return lcm(8, factor, self.scale_factor * patch if isinstance(patch, int) else 1)

    @property
    def side_max(self) -> int | None:
        """In pixels; None where the family has no such limit. Transformers may know only so many places."""
        config = getattr(getattr(self._pipeline, "transformer", None), "config", {})
        places = config.get("pos_embed_max_size")
        return None if places is None else int(places * config["patch_size"] * self.scale_factor)

    @property
    def scale_factor(self) -> int:
        """Pixels per latent and side."""
        return int(getattr(self._pipeline, "vae_scale_factor", 8))

    @property
    def _unet_config(self) -> Any:
        return getattr(getattr(self._pipeline, "unet", None), "config", {})

    def component(self, name: str) -> Any:
        """The pipeline's component of this name; None where it has none."""
        return self._pipeline.components.get(name)

    def pipeline(self, kind: "Kind", controlnets: Sequence["LoadedComponent"] = ()) -> Any:
        """The family's pipeline for this kind of work, with the same components. Raises InvalidRequest."""
        if self.model.only_inpaints and kind != "inpainting":
            raise InvalidRequest(f"This model is made for inpainting alone: it cannot do {kind}.")
        if controlnets:
            return self._with_controlnets(kind, controlnets)
        found = self._pipelines.get(kind)
        if found is None:
            try:
                found = AUTO[kind].from_pipe(self._pipeline)
            except ValueError:
                raise InvalidRequest(f"Models of the family {self.model.family} cannot do {kind}.") from None
            found.set_progress_bar_config(disable=True)
            self._pipelines[kind] = found
        return found

    def _with_controlnets(self, kind: "Kind", controlnets: Sequence["LoadedComponent"]) -> Any:
        """Made anew each time, in a millisecond: one that was kept would keep ControlNets that were evicted."""
        nets = [net.module for net in controlnets]
        try:
            if any(net.class_name == UNION for net in controlnets):
                found = _with_union(self.pipeline(kind), nets)
            else:
                found = AUTO[kind].from_pipe(self._pipeline, controlnet=nets if len(nets) > 1 else nets[0])
        except ValueError:
            family = self.model.family
            raise InvalidRequest(f"Models of the family {family} cannot do {kind} with ControlNets.") from None
        found.set_progress_bar_config(disable=True)
        return found

    def takes(self, kind: "Kind", name: str, controlnets: Sequence["LoadedComponent"] = ()) -> bool:
        """Whether the pipeline for this kind of work has an argument of this name. Raises as `pipeline`."""
        return name in inspect.signature(self.pipeline(kind, controlnets).__call__).parameters

    def check(self, plan: "Plan") -> None:
        """Raise InvalidRequest for what this family has no use for."""
        for name in plan.arguments:
            if not self.takes(plan.kind, name, plan.controlnets):
                company = " with ControlNets" if plan.controlnets else ""
                raise InvalidRequest(f"Models of the family {self.model.family} take no {name}{company}.")

    def check_additions(self, noun: str) -> None:
        """Raise InvalidRequest where nothing of this kind can be laid over the model."""
        if self.model.runs_onnx:
            raise InvalidRequest(f"A model of ONNX graphs takes no {noun}; ask the one that it was made of.")

    def check_sampling(self, data: "PictureData", scheduler: Any) -> None:
        """Raise InvalidRequest for what would have no effect, or cannot be done."""
        name = type(scheduler).__name__
        if isinstance(data, ChangeData) and not (hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise")):
            raise InvalidRequest(f"The scheduler {name} cannot begin with a picture; most others can.")
        if data.eta and "eta" not in inspect.signature(scheduler.step).parameters:
            raise InvalidRequest(f"The scheduler {name} takes no eta; ddim does.")
        if data.guidance_end < 1 and not self.shared:
            raise InvalidRequest(f"Models of the family {self.model.family} take no guidance_end.")

    def generate(
        self, plan: "Plan", scheduler: Any, seed: int, on_step: OnStep, guidance_end: float = 1.0
    ) -> Image.Image:
        """One picture. `on_step` is called after each denoising step; what it raises ends the picture at once.
        Guidance stops after the share `guidance_end` of the steps."""
        view = copy(self.pipeline(plan.kind, plan.controlnets))  # the weights are shared, the scheduler is not
        view.scheduler = scheduler
        if plan.vae is not None:
            view.vae = plan.vae.module
        vae = getattr(view, "vae", None)
        vae_dtype = None if vae is None else vae.dtype
        if self.shared or plan.vae is not None:
            view.upcast_vae = _nothing  # the shared decoder sees to it, for all that it decodes together

        def after_step(pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps = pipeline.num_timesteps  # fewer than the scheduler has where a picture is only changed in part
            if index + 1 == steps and not bool(torch.isfinite(tensors["latents"]).all()):
                raise InvalidRequest(
                    "The picture ended in values that are not numbers; try a lower guidance_scale, more steps or "
                    "another scheduler."
                )
            on_step(index + 1, steps, tensors["latents"])
            self._give_way()
            ends = index + 1 >= guidance_end * steps and pipeline.do_classifier_free_guidance
            return _without_guidance(pipeline, tensors) if ends else {}

        self._give_way()
        doubled = [name for name in DOUBLED if name in view._callback_tensor_inputs] if guidance_end < 1 else []
        try:
            generator = torch.Generator("cpu").manual_seed(seed)  # the same noise on every kind of device
            if plan.controlnets and not self.shared:
                torch.manual_seed(seed)  # SD3 encodes control pictures with noise from no generator
            return view(
                **plan.arguments,
                generator=generator,
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=["latents", *doubled],
            ).images[0]
        finally:
            view.maybe_free_model_hooks()
            if vae is not None and vae.dtype != vae_dtype:  # stock encodes in float32, and failed; the VAE is shared
                vae.to(vae_dtype)

    def _give_way(self) -> None:
        """Let others have the device, where no shared module's next call does so by itself."""
        if not self.shared and streams.current():
            streams.wait(None, 1, None)

    def preview(self, latents: Any, arguments: dict[str, Any]) -> Callable[[], bytes] | None:
        """What makes a small JPEG of unfinished latents: the decode is done now, on the device, the rest later.

        None where the family's latents are not laid out as a picture. Early previews are noise, as the latents are.
        """
        try:
            pixels = self._decode_small(latents, arguments.get("width"), arguments.get("height"))
        except Exception as error:  # a preview is a courtesy: the picture goes on without it
            log.info("no preview", model_id=self.name, error=repr(error))
            return None
        return None if pixels is None else lambda: _jpeg(pixels)

    @torch.inference_mode()
    def _decode_small(self, latents: Any, width: int | None, height: int | None) -> Any:
        """[height, width, 3] bytes on the CPU, or None."""
        vae, unpack = getattr(self._pipeline, "vae", None), getattr(self._pipeline, "_unpack_latents", None)
        if latents.ndim == 3 and unpack is not None and width and height:
            latents = unpack(latents, height, width, self.scale_factor)
        scaling_factor = getattr(getattr(vae, "config", None), "scaling_factor", None)
        if vae is None or latents.ndim != 4 or scaling_factor is None:
            return None
        shrink = PREVIEW_LATENTS_MAX / max(latents.shape[-2:])
        if shrink < 1:
            latents = torch.nn.functional.interpolate(latents.float(), scale_factor=shrink, mode="area")
        latents = latents / latents.float().std().clamp(min=1)  # some schedulers' latents start enormous
        latents = latents.to(vae.dtype) / scaling_factor + (getattr(vae.config, "shift_factor", 0) or 0)
        decoded = type(vae).decode(vae, latents, return_dict=False)[0][0].float().nan_to_num()
        return decoded.mul(127.5).add(127.5).clamp(0, 255).byte().permute(1, 2, 0).cpu()


def _with_union(pipeline: Any, nets: list[Any]) -> Any:
    """The same pipeline for a ControlNet-Union, which takes several control pictures itself. Raises InvalidRequest."""
    if any(net is not nets[0] for net in nets):
        raise InvalidRequest("A ControlNet-Union works alone: give it all control pictures, or leave it out.")
    name = type(pipeline).__name__.replace("StableDiffusionXL", "StableDiffusionXLControlNetUnion")
    union = getattr(diffusers, name, None)
    if union is None or "Union" not in name:
        raise ValueError(name)
    components = {
        key: value for key, value in pipeline.components.items() if key in inspect.signature(union).parameters
    }
    return union(**components, controlnet=nets[0])


def _without_guidance(pipeline: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """From the next step on the pipeline runs the prompt's rows only, which are the second half of each tensor."""
    pipeline._guidance_scale = 1.0
    rows = 2 * tensors["latents"].shape[0]
    return {name: _second_half(value, rows) for name, value in tensors.items() if name != "latents"}


def _second_half(value: Any, rows: int) -> Any:
    if isinstance(value, list):  # of control pictures
        return [_second_half(item, rows) for item in value]
    return value.chunk(2)[1] if value.shape[0] == rows else value


def _nothing() -> None:
    pass


def _jpeg(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, "JPEG", quality=PREVIEW_QUALITY)
    return stream.getvalue()
