"""`inference.*`: pictures from diffusion models."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from protocol.limits import INT_MAX
from protocol.messages import Int
from protocol.schemas.base import Action, ActionData, ResultData

SEED_MAX = 2**64 - 1
Prompt = Annotated[str, Field(max_length=10_000)]
ModelId = Annotated[str, Field(min_length=1, max_length=200)]
Pixels = Annotated[Int, Field(ge=8, le=8192, multiple_of=8)]
Seed = Annotated[Int, Field(ge=-1, le=INT_MAX)] | Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]


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


class Text2ImgData(ActionData):
    """Sizes are in pixels. A random seed is told in the result."""

    model_id: ModelId | None = None  # null: the server's default
    prompt: Prompt  # what to paint
    negative_prompt: Prompt = ""  # what to keep away from
    width: Pixels | None = None  # null: the model's own size
    height: Pixels | None = None  # null: the model's own size
    steps: Annotated[Int, Field(ge=1, le=1000)] = 20  # denoising steps
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.5  # how closely to follow the prompt
    num_images: Annotated[Int, Field(ge=1, le=16)] = 1  # image i has seed + i
    seed: Seed | None = None  # null or -1: random; above 2^53 - 1 as a decimal string, up to 2^64 - 1
    scheduler: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # null: the model's own
    output: Output = Output()
    preview: Preview | None = None  # null: no previews

    @field_validator("seed")
    @classmethod
    def _in_64_bits(cls, seed: int | str | None) -> int | str | None:
        if isinstance(seed, str) and int(seed) > SEED_MAX:
            raise ValueError(f"a seed is at most {SEED_MAX}")
        return seed

    @property
    def seed_number(self) -> int | None:
        """The seed as an int, None where a random one is wanted."""
        number = None if self.seed is None else int(self.seed)
        return None if number == -1 else number


class ImageInfo(ResultData):
    """One picture of a result: where its bytes are, and how to make it again."""

    attachment: int | None = None  # index of the attachment that holds it
    artifact_id: str | None = None  # or the artifact that does
    media_type: str
    width: int
    height: int
    seed: int | str  # a string above 2^53 - 1
    recipe: dict[str, Any]  # what made it; also embedded in the file


class ImagesResult(ResultData):
    images: list[ImageInfo]


ACTIONS = [
    Action("inference.text2img", "worker", Text2ImgData, ImagesResult, "Pictures for a prompt."),
]
