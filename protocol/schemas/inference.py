"""`inference.*`: pictures from diffusion models."""

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Discriminator, Field, Tag, ValidationInfo, field_validator

from protocol.limits import INT_MAX
from protocol.messages import FIRST_FAULT, Int, Name
from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.controlnet import ControlImage, ControlNetUse
from protocol.schemas.lora import LoraUse
from protocol.schemas.values import ImageRef, ModelId, PictureInfo, Pixels, Share

SEED_MAX = 2**64 - 1
STEPS_MAX = 1000
LORAS_MAX, CONTROLNETS_MAX = 8, 4
Prompt = Annotated[str, Field(max_length=10_000)]
Seed = Annotated[Int, Field(ge=-1, le=INT_MAX)] | Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]
Sigma = Annotated[float, Field(gt=0)]
Sigmas = Annotated[
    Annotated[Literal["karras", "exponential", "beta"], Tag("(rule)")]
    | Annotated[list[Sigma], Field(min_length=1, max_length=STEPS_MAX), FIRST_FAULT, Tag("(list)")],
    Discriminator(lambda value: "(list)" if isinstance(value, list) else "(rule)"),
]
Strength = Annotated[Share, Field(validation_alias=AliasChoices("strength", "denoising_strength"))]
Border = Annotated[Int, Field(ge=0, le=2048)]


def scheduler_key(name: str) -> str:
    """Two names of a scheduler mean the same if their keys are equal: "DPM++ 2M Karras" and "dpmpp_2m_karras"."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold()).replace("dpmpp", "dpm++")


class Output(ActionData):
    """How pictures are encoded."""

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[Int, Field(ge=1, le=100)] = 90  # of jpeg and webp; webp at 100 is lossless


class Preview(ActionData):
    """Stream small pictures of the unfinished latents, as `preview` events."""

    every_steps: Annotated[Int, Field(ge=1, le=1000)] = 5  # one picture every so many steps


class PictureData(ActionData):
    """What every action that makes pictures takes."""

    model_id: ModelId | None = None  # null: the server's default
    prompt: Prompt  # what to paint
    negative_prompt: Prompt = ""  # what to keep away from
    width: Pixels | None = None  # null: the model's own size
    height: Pixels | None = None  # null: the model's own size
    steps: Annotated[Int, Field(ge=1, le=STEPS_MAX)] = 20  # denoising steps
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.5  # how closely to follow the prompt
    guidance_rescale: Share = 0.0  # how much of the contrast that guidance adds is taken back
    guidance_end: Share = 1.0
    # share of the steps after which guidance stops, the rest run without it, quicker; 1 where a mask and ControlNets
    # come together, and with a ControlNet-Union
    num_images: Annotated[Int, Field(ge=1, le=16)] = 1  # image i has seed + i
    seed: Seed | None = None  # null or -1: random; above 2^53 - 1 as a decimal string, up to 2^64 - 1
    scheduler: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # null: the model's own
    sigmas: Sigmas | None = None
    # the schedule of noise: a rule, or one number above 0 for each step, falling; null: the scheduler's own
    eta: Share = 0.0  # noise that DDIM and its kind add at each step
    vae_id: ModelId | None = None  # decodes in place of the model's own VAE; null: the model's own
    loras: Annotated[list[LoraUse], Field(max_length=LORAS_MAX)] = []  # mixed in together, each once
    controlnets: Annotated[list[ControlNetUse], Field(max_length=CONTROLNETS_MAX)] = []  # followed together
    output: Output = Output()
    preview: Preview | None = None  # null: no previews

    @field_validator("seed")
    @classmethod
    def _in_64_bits(cls, seed: int | str | None) -> int | str | None:
        if isinstance(seed, str) and int(seed) > SEED_MAX:
            raise ValueError(f"a seed is at most {SEED_MAX}")
        return seed

    @field_validator("loras")
    @classmethod
    def _each_once(cls, loras: list[LoraUse]) -> list[LoraUse]:
        if len({lora.lora_id for lora in loras}) < len(loras):
            raise ValueError("a LoRA stands in the list once; add up its scales")
        return loras

    @field_validator("sigmas")
    @classmethod
    def _one_falling_sigma_a_step(cls, sigmas: str | list[float] | None, info: ValidationInfo) -> Any:
        if isinstance(sigmas, list):
            steps = info.data.get("steps", len(sigmas))
            if len(sigmas) != steps:
                raise ValueError(
                    f"has {len(sigmas)} numbers for {steps} steps; give one a step, without the 0 at the end"
                )
            if any(after >= before for before, after in pairwise(sigmas)):
                raise ValueError("must fall from each number to the next")
        return sigmas

    @property
    def seed_number(self) -> int | None:
        """The seed as an int, None where a random one is wanted."""
        number = None if self.seed is None else int(self.seed)
        return None if number == -1 else number


class Text2ImgData(PictureData):
    """Sizes are in pixels. A random seed is told in the result."""


class LoraData(Text2ImgData):
    """`inference.text2img` with at least one LoRA."""

    loras: Annotated[list[LoraUse], Field(min_length=1, max_length=LORAS_MAX)]  # mixed in together, each once


class ControlNetData(Text2ImgData):
    """`inference.text2img` with at least one ControlNet."""

    controlnets: Annotated[list[ControlNetUse], Field(min_length=1, max_length=CONTROLNETS_MAX)]  # followed together


class ChangeData(PictureData):
    """What the actions that change a picture take."""

    width: Pixels | None = None  # the image is scaled to it; null, as height then is: the image's own size
    height: Pixels | None = Field(default=None, validate_default=True)  # as width
    image: ImageRef  # the picture to change

    @field_validator("height")
    @classmethod
    def _both_or_neither(cls, height: int | None, info: ValidationInfo) -> int | None:
        if "width" in info.data and (height is None) != (info.data["width"] is None):
            raise ValueError("give both width and height, or neither for the image's own size")
        return height


class Img2ImgData(ChangeData):
    """A share `strength` of the steps is run, from a noisy version of the image."""

    strength: Strength = 0.8  # how much to change; also taken as `denoising_strength`


class Outpaint(ActionData):
    """Pixels to add at each side; they are painted."""

    left: Border = 0
    right: Border = 0
    top: Border = 0
    bottom: Border = 0

    @property
    def widens(self) -> bool:
        return bool(self.left or self.right or self.top or self.bottom)


class InpaintingData(ChangeData):
    """Repaints a part of a picture, and keeps the pixels of the rest."""

    outpaint: Outpaint | None = None  # widen the image first (width and height are those after it); null: no
    mask_image: ImageRef | None = Field(default=None, validate_default=True)
    # of the image's size: white is repainted; null: only what `outpaint` adds
    strength: Strength = 1.0  # how much to change; 1: what was there is forgotten; also taken as `denoising_strength`
    mask_blur: Annotated[Int, Field(ge=0, le=64)] = 4  # softens the mask's edge, in pixels of the image
    invert_mask: bool = False  # black is repainted instead
    padding_mask_crop: Annotated[Int, Field(ge=0, le=512)] | None = None
    # work on the mask's surroundings only, so many pixels around it, at the model's own size; null: on the whole image

    @field_validator("mask_image")
    @classmethod
    def _something_to_paint(cls, mask_image: Any, info: ValidationInfo) -> Any:
        outpaint = info.data.get("outpaint")
        if mask_image is None and not (outpaint and outpaint.widens):
            raise ValueError("is missing; it may be left out where outpaint adds pixels")
        return mask_image


class ValidateData(ActionData):
    """Session, priority, `wait`, `device_id` and `worker_id` are those of this request. Its attachments need not be
    sent."""

    action: Name  # of the request in question; one that workers run
    data: dict[str, Any] = {}  # its `data`


class ImageInfo(PictureInfo):
    """One picture of a result: where its bytes are, and how to make it again."""

    seed: int | str  # a string above 2^53 - 1
    recipe: dict[str, Any]  # what made it; also embedded in the file


class ImagesResult(ResultData):
    images: list[ImageInfo]
    controlnet_images: list[ControlImage] = []  # what the ControlNets saw, in the order of `controlnets`


class WorkerEstimate(ResultData):
    """How the request would fare on one worker."""

    worker_id: str
    device_id: str
    start_ms: int  # from now, by what waits and runs; 0: a slot is free
    load_ms: int  # to load the model; 0: it is loaded, or none is needed
    run_ms: int  # without loading
    memory_bytes: int | None = None  # what the model's weights take on the device; pictures at work take more, by
    # their size; null: not known, or no model is needed
    warm: bool  # nothing is to be loaded


class ValidateResult(ResultData):
    """Times are estimates; nothing is run or loaded for them."""

    runs: bool  # whether the request would be taken
    error: dict[str, Any] | None = None  # what it would be answered, see Errors; null where `runs` is true
    data: dict[str, Any] = {}  # as it would run: with the session's defaults and the default model; empty if not valid
    estimate_measured: bool = False  # false: a guess, no such job has run yet
    workers: list[WorkerEstimate] = []  # connected ones that could run it, the one that would end it soonest first;
    # none: it would wait for one


ACTIONS = [
    Action("inference.text2img", "worker", Text2ImgData, ImagesResult, "Pictures for a prompt."),
    Action("inference.img2img", "worker", Img2ImgData, ImagesResult, "Pictures from a picture and a prompt."),
    Action("inference.inpainting", "worker", InpaintingData, ImagesResult, "Repaint or widen a picture."),
    Action("inference.lora", "worker", LoraData, ImagesResult, "Pictures for a prompt, with LoRAs."),
    Action(
        "inference.controlnet", "worker", ControlNetData, ImagesResult, "Pictures that follow the outline of another."
    ),
    Action(
        "inference.validate",
        "orchestrator",
        ValidateData,
        ValidateResult,
        "Would this request run, where and how long?",
    ),
]
