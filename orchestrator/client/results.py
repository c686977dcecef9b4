"""What a request brings back."""

import builtins
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.client.errors import IMAGES_EXTRA
from protocol.errors import MalformedMessage, PayloadTooLarge
from protocol.messages import Attachment, Response, Timing
from protocol.recipe import PIXELS_MAX
from protocol.schemas.base import ResultData
from protocol.schemas.controlnet import ControlImage
from protocol.schemas.inference import ImageInfo
from protocol.schemas.values import PictureInfo

if TYPE_CHECKING:
    from PIL import Image as PillowImage


FORMATS = ("PNG", "JPEG", "WEBP")
M = TypeVar("M", bound=BaseModel)


class Pictures(ResultData):
    """What the actions answer that make pictures of any kind."""

    images: list[ImageInfo | ControlImage] = []
    controlnet_images: list[ControlImage] = []


class Blob(NamedTuple):
    """Bytes beside a message."""

    content: bytes
    media_type: str = "application/octet-stream"

    @staticmethod
    def of(described: Sequence[Attachment], blobs: Sequence[bytes]) -> "list[Blob]":
        return [Blob(content, entry.media_type) for entry, content in zip(described, blobs, strict=True)]


@dataclass(frozen=True)
class Image:
    """One picture, encoded. `seed` and `recipe` (all it takes to make it again) are None for what no model painted."""

    content: bytes
    media_type: str
    seed: int | None = None
    recipe: dict[str, Any] | None = None

    @classmethod
    def of(cls, data: dict[str, Any], blob: Blob) -> "Image":
        seed = data.get("seed")
        return cls(blob.content, blob.media_type, None if seed is None else int(seed), data.get("recipe"))

    @cached_property
    def pil(self) -> "PillowImage.Image":
        """The decoded picture. Raises ImportError without Pillow, PayloadTooLarge for one beyond any asked for."""
        try:
            from PIL import Image as PillowImage
        except ImportError:
            raise ImportError(f"Pictures as PIL objects need Pillow: {IMAGES_EXTRA}") from None
        image = PillowImage.open(io.BytesIO(self.content), formats=FORMATS)
        if image.width * image.height > PIXELS_MAX:  # a few KB can claim gigabytes; ask before decoding
            raise PayloadTooLarge(f"The picture has {image.width} x {image.height} pixels.")
        image.load()
        return image

    def save(self, path: str | Path) -> Path:
        """Write the picture as it came, its recipe inside; the file's name does not change its format."""
        target = Path(path)
        target.write_bytes(self.content)
        return target

    @property
    def bytes(self) -> builtins.bytes:
        return self.content


@dataclass(frozen=True)
class Result:
    """How a request ended well: the response's `data` and attachments, and the pictures in them."""

    response: Response
    attachments: list[Blob]

    @property
    def data(self) -> dict[str, Any]:
        return self.response.data

    @property
    def job_id(self) -> str | None:
        return self.response.job_id

    @property
    def timing(self) -> Timing | None:
        return self.response.timing

    @property
    def worker_id(self) -> str | None:
        return self.response.worker_id

    @property
    def attempt(self) -> int | None:
        return self.response.attempt

    @cached_property
    def images(self) -> list[Image]:
        """The pictures of an image action, in order; none for other actions."""
        return [Image.of(info.model_dump(), self._blob(info)) for info in self.parse(Pictures).images]

    @cached_property
    def controlnet_images(self) -> list[Image]:
        """What the request's ControlNets saw, in their order."""
        return [Image.of(info.model_dump(), self._blob(info)) for info in self.parse(Pictures).controlnet_images]

    def _blob(self, info: PictureInfo) -> Blob:
        if info.attachment is None or not 0 <= info.attachment < len(self.attachments):
            raise MalformedMessage("A picture's bytes did not come with the answer.")
        return self.attachments[info.attachment]

    def parse(self, schema: type[M]) -> M:
        """`data` as its action's model, e.g. `NoopResult`. Raises MalformedMessage when it is something else."""
        try:
            return schema.model_validate(self.data)
        except ValidationError as error:
            problem = f"The server's answer is no {schema.__name__}: {error.error_count()} fields are wrong."
            raise MalformedMessage(problem) from None

    def only_attachment(self) -> Blob:
        """The one attachment. Raises MalformedMessage when there is another number of them."""
        if len(self.attachments) != 1:
            raise MalformedMessage(f"The server's answer carries {len(self.attachments)} attachments, not one.")
        return self.attachments[0]

    def only_image(self) -> Image:
        """The one picture. Raises MalformedMessage when there is another number of them."""
        if len(self.images) != 1:
            raise MalformedMessage(f"The server's answer has {len(self.images)} pictures, not one.")
        return self.images[0]
