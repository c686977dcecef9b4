"""Pictures and masks that no honest client sends: a clear code, the same worker, and neighbours that finish."""

import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from orchestrator.client import Blob, Client
from protocol.errors import AtelierError
from tests.e2e.house import ROOT, House
from tests.e2e.neighbour import PROMPT, beside_a_neighbour

pytestmark = pytest.mark.timeout(120)

INVALID, TOO_LARGE = "invalid_request", "payload_too_large"
IMAGE, MASK = {"attachment": 0}, {"attachment": 1}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """A server with one worker of the demo model, which stays the same process from the first test to the last, and
    finishes somebody else's pictures beside all that is refused."""
    with beside_a_neighbour(ROOT / "models", steps=300) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.endpoint, timeout_s=60) as connected:
        yield connected


def png(image: Image.Image, **options: Any) -> bytes:
    return encoded(image, "PNG", **options)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def square(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A blue square on white."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((18, 18, 46, 46), (40, 60, 220))
    return image.convert(mode)


def mask(size: tuple[int, int] = (64, 64), box: tuple[int, int, int, int] = (12, 12, 52, 52)) -> bytes:
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle(box, 255)
    return png(image)


def vast_png() -> bytes:
    """81 megapixels of one grey in a few kilobytes."""
    side, level = 9000, zlib.compressobj(9)
    rows = b"".join(level.compress(bytes(1 + side)) for _ in range(side)) + level.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animated(form: str) -> bytes:
    return encoded(square(), form, save_all=True, append_images=[Image.new("RGB", (64, 64), "red")], duration=100)


JPEG = encoded(square(), "JPEG", quality=95)
FITS = b"SIMPLE  =                    T / file conforms to FITS standard" + b" " * 2817
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'
BAD_IMAGES = {
    "one pixel": (png(square(size=(1, 1))), INVALID, "1 × 1"),
    "81 megapixels": (vast_png(), TOO_LARGE, "9000 × 9000"),
    "a side too long": (png(Image.new("1", (16_384, 8))), TOO_LARGE, "sides up to"),
    "a truncated JPEG": (JPEG[: len(JPEG) // 2], INVALID, "damaged or cut short"),
    "a truncated PNG": (png(square())[:-60], INVALID, "damaged or cut short"),
    "an animated WebP": (animated("WEBP"), INVALID, "animated"),
    "an animated PNG": (animated("PNG"), INVALID, "animated"),
    "FITS as PNG": (FITS, INVALID, "not a PNG, JPEG or WebP"),
    "SVG as PNG": (SVG, INVALID, "not a PNG, JPEG or WebP"),
    "GIF": (encoded(square("P"), "GIF"), INVALID, "not a PNG, JPEG or WebP"),
    "a PNG of nothing": (b"\x89PNG\r\n\x1a\n", INVALID, "damaged or cut short"),
    "zeros": (bytes(1000), INVALID, "not a PNG, JPEG or WebP"),
}
GOOD_IMAGES = {
    "CMYK": encoded(square("CMYK"), "JPEG"),
    "16 bits": png(Image.fromarray(np.full((64, 64), 40_000, np.uint16))),
    "a palette with alpha": png(square("RGBA").quantize(8)),
    "grey with alpha": png(square("LA")),
    "a progressive JPEG": encoded(square(), "JPEG", progressive=True),
    "lossless WebP": encoded(square("RGBA"), "WEBP", lossless=True),
}


def attempt(client: Client, action: str, files: list[bytes], **data: Any) -> Any:
    asked = {"prompt": PROMPT, "steps": 2, "seed": 1, "image": IMAGE, **data}
    blobs = [Blob(file, "image/png") for file in files]
    return client.run(f"inference.{action}", asked, attachments=blobs)


def refused(client: Client, code: str, words: str, action: str, files: list[bytes], **data: Any) -> None:
    with pytest.raises(AtelierError) as caught:
        attempt(client, action, files, **data)
    error = caught.value
    assert error.code == code, error
    assert words in error.message
    assert not error.retryable
    text = f"{error.message} {json.dumps(error.details)}"
    assert "Traceback" not in text
    assert not re.search(r"(?<![\w.])/\w", text), text  # a path
    assert len(text) < 2000


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(client: Client, name: str) -> None:
    raw, code, words = BAD_IMAGES[name]
    refused(client, code, words, "img2img", [raw])
    refused(client, code, words, "inpainting", [raw, mask()], mask_image=MASK)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_masks(client: Client, name: str) -> None:
    raw, code, words = BAD_IMAGES[name]
    if name == "one pixel":
        words = "is 1 × 1 and the picture is 64 × 64"
    refused(client, code, words, "inpainting", [png(square()), raw], mask_image=MASK)


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_unusual_images_that_are_pictures_all_the_same(client: Client, name: str) -> None:
    for action, more in (("img2img", {}), ("inpainting", {"mask_image": MASK})):
        result = attempt(client, action, [GOOD_IMAGES[name], mask()], **more)
        assert Image.open(io.BytesIO(result.attachments[0].content)).size == (64, 64)


BAD_MASKS: list[tuple[bytes, dict[str, Any], str]] = [
    (mask((32, 64)), {}, "is 32 × 64 and the picture is 64 × 64"),
    (mask((64, 64)), {"outpaint": {"left": 4000}}, "outpaint"),
    (png(Image.new("L", (64, 64))), {}, "nothing is to be painted"),
    (png(Image.new("L", (64, 64), 255)), {"invert_mask": True}, "nothing is to be painted"),
    (png(Image.new("RGBA", (64, 64), (255, 255, 255, 0))), {}, "nothing is to be painted"),
    (mask(box=(9, 9, 9, 9)), {"mask_blur": 64}, "lower it"),
    (mask(box=(9, 9, 9, 9)), {"mask_blur": 0}, "too small for the model"),
    (mask(), {"strength": 0.0}, "less than one"),
    (mask(), {"strength": 0.4}, "less than one"),
    (mask(), {"strength": float("nan")}, "strength"),
    (mask(), {"mask_blur": 65}, "mask_blur"),
    (mask(), {"padding_mask_crop": -1}, "padding_mask_crop"),
    (mask(), {"mask_image": {"attachment": 5}}, "no attachment 5"),
    (mask(), {"mask_image": None}, "mask_image"),
    (mask(), {"outpaint": {"left": 8, "up": 8}, "mask_image": None}, "outpaint.up"),
]


@pytest.mark.parametrize("index", range(len(BAD_MASKS)))
def test_what_does_not_fit_together(client: Client, index: int) -> None:
    raw, data, words = BAD_MASKS[index]
    refused(client, INVALID, words, "inpainting", [png(square()), raw], **{"mask_image": MASK, **data})


def test_all_white_is_a_mask(client: Client) -> None:
    white = png(Image.new("L", (64, 64), 255))
    assert attempt(client, "inpainting", [png(square()), white], mask_image=MASK).attachments


def test_pictures_together_have_a_limit(client: Client) -> None:
    large = png(Image.new("1", (4096, 4096), 1))
    refused(client, TOO_LARGE, "pixels", "img2img", [large], num_images=5)
    refused(client, TOO_LARGE, "pixels", "inpainting", [large], num_images=5, outpaint={"left": 8})
