"""`inference.*`: pictures from diffusion models."""

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


class Output(ActionData):
    """How pictures are encoded. `quality` (1-100) is for jpeg and webp; webp at 100 is lossless."""

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[Int, Field(ge=1, le=100)] = 90


class Preview(ActionData):
    """Stream a small picture of the unfinished latents every `every_steps` steps."""

    every_steps: Annotated[Int, Field(ge=1, le=1000)] = 5


class Text2ImgData(ActionData):
    """A picture for a prompt. Sizes in pixels; `seed` absent or -1: random, told in the result."""

    model_id: ModelId | None = None
    prompt: Prompt
    negative_prompt: Prompt = ""
    width: Pixels | None = None  # None: the model's own size
    height: Pixels | None = None
    steps: Annotated[Int, Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 7.5
    num_images: Annotated[Int, Field(ge=1, le=16)] = 1
    seed: Seed | None = None
    scheduler: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # None: the model's own
    output: Output = Output()
    preview: Preview | None = None

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

    attachment: int | None = None
    artifact_id: str | None = None
    media_type: str
    width: int
    height: int
    seed: int | str
    recipe: dict[str, Any]


class ImagesResult(ResultData):
    images: list[ImageInfo]


ACTIONS = [
    Action("inference.text2img", "worker", Text2ImgData, ImagesResult, "Pictures for a prompt."),
]
