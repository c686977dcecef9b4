"""Masks of inpainting: white is painted anew, black is kept.

The order is: read (invert) -> outpaint -> blur -> crop_region -> seen, then the model's work, then paste_back. What the
model makes of the blurred mask is what the stock pipeline does: every pixel of at least half white is painted anew.
"""

from typing import TYPE_CHECKING

from instructors import images
from protocol.codec import Buffer

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside
HALF = 128  # the stock pipeline's threshold of 0.5, in 8 bits


def read(raw: Buffer, field: str, size: tuple[int, int], *, invert: bool = False) -> "Image":
    """The mask in a file, in mode L: its luminance, transparent parts black (before `invert`).

    Raises InvalidRequest where its size, upright, is not the picture's, and what `images.decode_grey` raises.
    """
    from PIL import ImageOps

    mask = images.decode_grey(raw, field)
    if mask.size != size:
        theirs, ours = (f"{width} × {height}" for width, height in (mask.size, size))
        raise images.invalid(field, f"is {theirs} and the picture is {ours}; both must have the same size")
    return ImageOps.invert(mask) if invert else mask


def outpaint(
    image: "Image", mask: "Image | None", *, left: int, top: int, right: int, bottom: int, field: str
) -> tuple["Image", "Image"]:
    """The picture on a canvas that is larger by so many pixels, and its mask: the new border white.

    Without a mask the picture itself is kept. The border shows the nearest pixels of the picture: black or noise would
    be seen by the VAE as an edge, and show up on the kept side of it. Raises PayloadTooLarge.
    """
    import numpy as np
    from PIL import Image

    images.check_size(image.width + left + right, image.height + top + bottom, field)
    border = ((top, bottom), (left, right))
    canvas = Image.fromarray(np.pad(np.asarray(image), (*border, (0, 0)), mode="edge"))
    inner = np.zeros((image.height, image.width), np.uint8) if mask is None else np.asarray(mask)
    return canvas, Image.fromarray(np.pad(inner, border, constant_values=255))


def blur(mask: "Image", radius: float, field: str) -> "Image":
    """The mask with soft edges: a Gaussian of `radius` pixels, as the stock `VaeImageProcessor.blur`.

    Raises InvalidRequest where nothing is left to paint: all black, or too little white for so much blur.
    """
    from PIL import ImageFilter

    soft = mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask
    if _brightest(soft) >= HALF:
        return soft
    if _brightest(mask) >= HALF:
        raise images.invalid(field, f"the white parts are too small for a mask_blur of {radius}; lower it")
    raise images.invalid(field, "nothing is to be painted: no part is white (invert_mask swaps black and white)")


def crop_region(mask: "Image", size: tuple[int, int], padding: int, field: str) -> Box:
    """The part of the picture to work on: around all that is not black, wider by `padding` pixels, in the shape of
    `size` (width, height) as far as the picture reaches. As the stock `get_crop_region`.

    Raises InvalidRequest where the part is too long and thin to be seen at `size`.
    """
    from diffusers.image_processor import VaeImageProcessor

    left, top, right, bottom = VaeImageProcessor.get_crop_region(mask, *size, pad=padding)
    inner = _filled((right - left, bottom - top), size)
    if inner[0] == inner[2] or inner[1] == inner[3]:
        raise images.invalid(field, f"the part of {right - left} × {bottom - top} is too long and thin; widen it")
    return left, top, right, bottom


def seen(image: "Image", size: tuple[int, int], region: Box | None = None) -> "Image":
    """What the model sees of a picture or a mask, at `size` (width, height): all of it, scaled; or `region`, in its
    own shape, and filled up to the size as the stock `padding_mask_crop` does."""
    if region is None:
        return images.resized(image, size)
    from diffusers.image_processor import VaeImageProcessor

    width, height = size
    return VaeImageProcessor().resize(image.crop(region), height, width, resize_mode="fill").convert(image.mode)


def check_seen(mask: "Image", factor: int, field: str) -> None:
    """Raise InvalidRequest where nothing is left of a mask that the model sees: it takes one pixel in `factor` of each
    row and column."""
    import numpy as np

    if not (np.asarray(mask)[::factor, ::factor] >= HALF).any():
        raise images.invalid(
            field, "the white parts are too small for the model; enlarge them or use padding_mask_crop"
        )


def paste_back(original: "Image", generated: "Image", mask: "Image", region: Box | None = None) -> "Image":
    """The generated picture where the blurred mask is white, the original where it is black, a blend between.

    `original` and `mask` have one size, and so has the result. Where the mask is 0, its pixels are the original's,
    exactly. `generated` may have the size that the model computed, or be what it made of `region`.
    """
    from PIL import Image

    if region is None:
        return Image.composite(images.resized(generated, original.size), original, mask)
    left, top, right, bottom = region
    size = right - left, bottom - top
    layer = original.copy()
    layer.paste(images.resized(generated.crop(_filled(size, generated.size)), size), (left, top))
    return Image.composite(layer, original, mask)


def _filled(size: tuple[int, int], into: tuple[int, int]) -> Box:
    """Where a picture of `size` lies within `into` after the stock `resize_mode="fill"`: as large as fits, centred."""
    width, height = into
    wide, high = width, height
    if width * size[1] < size[0] * height:
        high = size[1] * width // size[0]
    else:
        wide = size[0] * height // size[1]
    left, top = width // 2 - wide // 2, height // 2 - high // 2
    return left, top, left + wide, top + high


def _brightest(mask: "Image") -> int:
    _, brightest = mask.getextrema()
    return int(brightest)  # type: ignore[arg-type]
