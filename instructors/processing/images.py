"""Steps that make tensors of pictures: `resize`, `center_crop`, `to_tensor`.

They take the RGB pictures of "images". Where each of them came to lie is told in "_placements", for steps after the
model that answer in pixels of the picture that was sent.
"""

from collections.abc import Callable
from typing import Annotated, Literal, Self

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from pydantic import Field, model_validator

from instructors import processing
from instructors.images import SIDE_MAX
from instructors.processing import Params, Values
from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.limits import MIB

IMAGES, PLACEMENTS = "images", "_placements"
TENSOR_BYTES_MAX = 1024 * MIB  # of all pictures of one request
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}

Side = Annotated[int, Field(ge=1, le=SIDE_MAX)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Colour = Annotated[int, Field(ge=0, le=255)]
Placement = dict[str, tuple[float, float]]
"""Where a picture's pixels lie now: its (x, y) are at (x, y) * scale + offset of what is `canvas` wide and high. Its
own width and height are `size`."""


class Resize(Params):
    """Either `width` and `height`, or `shorter`.

    `mode`: stretch; letterbox (all of it is seen, the rest is `fill`, a grey); cover (the middle fills all).
    """

    width: Side | None = None
    height: Side | None = None
    shorter: Side | None = None  # the shorter side; the other one follows
    mode: Literal["stretch", "letterbox", "cover"] = "stretch"
    interpolation: Interpolation = "bilinear"
    fill: Colour = 114

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        both, neither = self.width and self.height, not (self.width or self.height)
        if not (neither if self.shorter else both):
            raise ValueError("give width and height, or shorter")
        return self


class CenterCrop(Params):
    """The middle of each picture; one that is smaller gets a black border."""

    width: Side
    height: Side


class ToTensor(Params):
    """The pictures, which must be of one size by now, as one array under the name `output`, the model's input.

    A float is (pixel * scale - mean) / std, with `mean` and `std` for each channel. uint8 keeps the pixels.
    """

    output: Annotated[str, Field(min_length=1, max_length=200)]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: Annotated[float, Field(gt=0)] = 1 / 255
    mean: list[float] = [0.0]
    std: list[Annotated[float, Field(gt=0)]] = [1.0]

    @model_validator(mode="after")
    def _fit_the_channels(self) -> Self:
        if not {len(self.mean), len(self.std)} <= {1, CHANNELS[self.channels]}:
            raise ValueError(f"mean and std have one number, or {CHANNELS[self.channels]} for {self.channels}")
        if self.dtype == "uint8" and (self.scale, self.mean, self.std) != (1 / 255, [0.0], [1.0]):
            raise ValueError("uint8 keeps the pixels as they are: leave out scale, mean and std")
        return self


def pictures(values: Values) -> list[Image.Image]:
    """The pictures of a request. Raises InvalidRequest where it sent none."""
    found: list[Image.Image] = values.get(IMAGES) or []
    if not found:
        raise InvalidRequest("This model takes pictures: send images.")
    return found


def placements(values: Values) -> list[Placement]:
    """Where the pictures lie; those that no step has moved lie on themselves."""
    known: list[Placement] | None = values.get(PLACEMENTS)
    if known is not None:
        return known
    sizes = [(float(image.width), float(image.height)) for image in pictures(values)]
    return [{"scale": (1.0, 1.0), "offset": (0.0, 0.0), "size": size, "canvas": size} for size in sizes]


def resize(values: Values, params: Resize) -> Values:
    """Each picture at the wanted size."""
    return _placed(values, lambda image: _resized(image, params))


def center_crop(values: Values, params: CenterCrop) -> Values:
    """The middle of each picture."""
    return _placed(values, lambda image: _middle(image, params.width, params.height))


def to_tensor(values: Values, params: ToTensor) -> Values:
    """The pictures as one array; they themselves are no longer among the values. Raises InvalidRequest."""
    images, where = pictures(values), placements(values)
    if len({image.size for image in images}) > 1:
        raise InvalidRequest("This model takes the pictures of one request at one size only: send them one by one.")
    width, height = images[0].size
    channels = CHANNELS[params.channels]
    if width * height * channels * len(images) * np.dtype(params.dtype).itemsize > TENSOR_BYTES_MAX:
        raise PayloadTooLarge(f"The pictures of one request come to more than {TENSOR_BYTES_MAX // MIB} MiB.")
    mode = "L" if params.channels == "L" else "RGB"
    pixels = np.stack([np.asarray(image.convert(mode)).reshape(height, width, channels) for image in images])
    if params.channels == "BGR":
        pixels = pixels[..., ::-1]
    if params.dtype != "uint8":
        std = np.asarray(params.std, np.float32)
        pixels = pixels.astype(np.float32)
        pixels *= np.float32(params.scale) / std
        pixels -= np.asarray(params.mean, np.float32) / std
    if params.layout == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    rest = {name: value for name, value in values.items() if name != IMAGES}
    return {**rest, PLACEMENTS: where, params.output: np.ascontiguousarray(pixels, params.dtype)}


Moved = tuple[Image.Image, tuple[float, float], tuple[float, float]]  # picture, scale, offset


def _placed(values: Values, move: Callable[[Image.Image], Moved]) -> Values:
    images, where = [], []
    for image, before in zip(pictures(values), placements(values), strict=True):
        moved, scale, offset = move(image)
        images.append(moved)
        where.append(
            {
                "scale": (before["scale"][0] * scale[0], before["scale"][1] * scale[1]),
                "offset": (
                    before["offset"][0] * scale[0] + offset[0],
                    before["offset"][1] * scale[1] + offset[1],
                ),
                "size": before["size"],
                "canvas": (float(moved.width), float(moved.height)),
            }
        )
    return {**values, IMAGES: images, PLACEMENTS: where}


def _resized(image: Image.Image, params: Resize) -> Moved:
    wanted = _wanted(image.size, params)
    size = _inner(image.size, wanted, params.mode)
    small = image.resize(size, Resampling[params.interpolation.upper()]) if size != image.size else image
    scale = (size[0] / image.width, size[1] / image.height)
    if params.mode == "cover":
        cropped, _, offset = _middle(small, *wanted)
        return cropped, scale, offset
    if size == wanted:
        return small, scale, (0.0, 0.0)
    left, top = (round((whole - part) / 2 - 0.1) for whole, part in zip(wanted, size, strict=True))  # as YOLO's own
    canvas = Image.new("RGB", wanted, (params.fill,) * 3)
    canvas.paste(small, (left, top))
    return canvas, scale, (float(left), float(top))


def _wanted(size: tuple[int, int], params: Resize) -> tuple[int, int]:
    if params.width and params.height:
        return params.width, params.height
    shorter = params.shorter or min(size)
    width, height = (min(max(1, shorter * side // min(size)), SIDE_MAX) for side in size)  # rounds as torchvision does
    return width, height


def _inner(size: tuple[int, int], wanted: tuple[int, int], mode: str) -> tuple[int, int]:
    """How large the picture itself becomes."""
    if mode == "stretch":
        return wanted
    ratios = [whole / part for whole, part in zip(wanted, size, strict=True)]
    ratio = min(ratios) if mode == "letterbox" else max(ratios)
    width, height = (max(1, round(side * ratio)) for side in size)
    return width, height


def _middle(image: Image.Image, width: int, height: int) -> Moved:
    left, top = _margin(image.width - width), _margin(image.height - height)
    moved = image.crop((left, top, left + width, top + height)) if image.size != (width, height) else image
    return moved, (1.0, 1.0), (-float(left), -float(top))


def _margin(surplus: int) -> int:
    """Of so many pixels too many, those on the first side; rounded as torchvision does."""
    return round(surplus / 2) if surplus > 0 else -(-surplus // 2)


processing.add("resize", Resize, resize)
processing.add("center_crop", CenterCrop, center_crop)
processing.add("to_tensor", ToTensor, to_tensor)
