"""Recipes in files: read without torch, from files of every kind, good and bad."""

import io
import json
import zlib
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from protocol import recipe as recipes
from protocol.errors import InvalidRequest, PayloadTooLarge

RECIPE = {"version": 1, "prompt": 'a "red" ☃ \\ 😀', "seed": str(2**64 - 1), "guidance_scale": 7.5, "steps": 20}


def picture() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((32, 24))


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


@pytest.mark.parametrize("output", ["png", "jpeg", "webp"])
def test_round_trip(output: str) -> None:
    raw = recipes.encode(picture(), RECIPE, output, 90)
    assert recipes.read(raw) == RECIPE
    assert recipes.encode(picture(), dict(reversed(RECIPE.items())), output, 90) == raw
    assert Image.open(io.BytesIO(raw)).size == (32, 24)


@pytest.mark.parametrize("output", ["PNG", "JPEG", "WEBP"])
def test_a_picture_without_recipe(output: str) -> None:
    stream = io.BytesIO()
    picture().save(stream, output)
    assert recipes.read(stream.getvalue()) is None


def test_an_exif_comment_of_somebody_else() -> None:
    exif = Image.Exif()
    exif.get_ifd(recipes.EXIF_IFD)[recipes.USER_COMMENT] = b"ASCII\0\0\0my holiday"
    stream = io.BytesIO()
    picture().save(stream, "JPEG", exif=exif)
    assert recipes.read(stream.getvalue()) is None


@pytest.mark.parametrize("output", ["png", "jpeg", "webp"])
def test_the_longest_recipe_a_file_holds(output: str) -> None:
    limit = recipes.RECIPE_BYTES_MAX[output]
    recipe = {"version": 1, "prompt": ""}
    recipe["prompt"] = "x" * (limit - len(recipes.dumps(recipe)))
    recipes.check_size(recipe, output)
    assert recipes.read(recipes.encode(picture(), recipe, output, 50)) == recipe
    with pytest.raises(PayloadTooLarge):
        recipes.check_size({**recipe, "more": 1}, output)


def with_text(text: str) -> bytes:
    stream = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_itxt(recipes.PNG_KEY, text)
    picture().save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


GIF = io.BytesIO()
picture().save(GIF, "GIF")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not a picture",
        GIF.getvalue(),
        with_text("{"),
        with_text("[]"),
        with_text('{"version": 2}'),
        with_text("[" * 100_000),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)),
    ],
)
def test_bad_files(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        recipes.read(raw)


def test_a_picture_of_a_hundred_thousand_pixels_a_side_is_not_decoded() -> None:
    header = (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises((InvalidRequest, PayloadTooLarge)):
        recipes.read(raw)


def test_too_large_a_file_and_too_large_a_recipe() -> None:
    with pytest.raises(PayloadTooLarge):
        recipes.read(bytes(recipes.FILE_BYTES_MAX + 1))
    with pytest.raises(PayloadTooLarge):
        recipes.read(with_text(json.dumps({"version": 1, "prompt": "x" * 600_000})))


def test_request_data_holds_what_a_request_may_say() -> None:
    data: dict[str, Any] = recipes.request_data({**RECIPE, "device": "cpu", "libraries": {}})
    assert data == {"prompt": RECIPE["prompt"], "seed": RECIPE["seed"], "guidance_scale": 7.5, "steps": 20}
