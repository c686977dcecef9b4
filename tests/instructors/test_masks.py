"""Masks: what is painted, what is kept to the pixel, and that the stock pipeline sees the same mask."""

import io
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from instructors import images, masks
from protocol.errors import InvalidRequest, PayloadTooLarge

FIELD = "mask_image"
SIZES = [(64, 64), (97, 61), (200, 40)]


def file(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def blob(width: int, height: int, seed: int = 0) -> Image.Image:
    """A mask: one white box, at least 8 pixels wide and high, somewhere."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    left, top = int(generator.integers(0, width - 8)), int(generator.integers(0, height - 8))
    right, bottom = int(generator.integers(left + 8, width + 1)), int(generator.integers(top + 8, height + 1))
    mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def stock_mask_processor() -> Any:
    """As StableDiffusionInpaintPipeline makes it."""
    return VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)


def test_a_mask_is_the_pictures_luminance() -> None:
    colours = Image.new("RGB", (4, 1))
    colours.putdata([(255, 255, 255), (0, 0, 0), (0, 255, 0), (90, 90, 90)])
    mask = masks.read(file(colours), FIELD, (4, 1))
    assert mask.mode == "L"
    assert list(mask.tobytes()) == [255, 0, 150, 90]
    inverted = masks.read(file(colours), FIELD, (4, 1), invert=True)
    assert list(inverted.tobytes()) == [0, 255, 105, 165]


def test_strokes_on_a_transparent_layer_are_a_mask() -> None:
    layer = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (4, 4, 8, 8))
    mask = masks.read(file(layer), FIELD, (16, 16))
    assert mask.getbbox() == (4, 4, 8, 8)
    assert masks.read(file(layer), FIELD, (16, 16), invert=True).tobytes() == ImageOps.invert(mask).tobytes()


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"is 8 × 16 and the picture is 16 × 8") as caught:
        masks.read(file(Image.new("L", (8, 16), 255)), FIELD, (16, 8))
    assert caught.value.details["fields"][0]["field"] == FIELD


@pytest.mark.parametrize("level", [0, 127])
def test_a_mask_that_paints_nothing_is_refused(level: int) -> None:
    for radius in (0, 4):
        with pytest.raises(InvalidRequest, match="nothing is to be painted"):
            masks.blur(Image.new("L", (16, 16), level), radius, FIELD)


def test_a_mask_that_blur_wipes_out_is_refused() -> None:
    dot = Image.new("L", (64, 64))
    dot.putpixel((30, 30), 255)
    assert masks.blur(dot, 0, FIELD) is dot
    with pytest.raises(InvalidRequest, match="lower it"):
        masks.blur(dot, 4, FIELD)


def test_all_white_paints_everything() -> None:
    white = Image.new("L", (40, 24), 255)
    soft = masks.blur(white, 8, FIELD)
    assert soft.getextrema() == (255, 255)
    generated = noise(40, 24, 1)
    assert masks.paste_back(noise(40, 24), generated, soft).tobytes() == generated.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [1, 4, 9.5])
def test_blur_is_the_stock_blur_and_gives_the_model_the_same_mask(size: tuple[int, int], radius: float) -> None:
    stock = stock_mask_processor()
    for seed in range(5):
        mask = blob(*size, seed)
        try:
            ours = masks.blur(mask, radius, FIELD)
        except InvalidRequest:
            assert stock.blur(mask, radius).getextrema()[1] < 128
            continue
        assert ours.tobytes() == stock.blur(mask, radius).tobytes()
        target = {"height": 64, "width": 64}
        seen = stock.preprocess(ours, **target)
        assert set(seen.unique().tolist()) <= {0.0, 1.0}
        assert seen.equal(stock.preprocess(stock.blur(mask.convert("RGB"), radius), **target))


@pytest.mark.parametrize("size", SIZES)
def test_where_the_mask_is_black_the_original_stays_to_the_pixel(size: tuple[int, int]) -> None:
    """Whatever size the model computed at, with and without a region, in the file that goes out."""
    kept = blended = 0
    for seed in range(8):
        original, mask = noise(*size, seed), masks.blur(blob(*size, seed), seed % 4, FIELD)
        at = images.model_size(*size, 8, "image")
        region = masks.crop_region(mask, at, 8, "padding_mask_crop") if seed % 2 else None
        result = masks.paste_back(original, noise(*at, 100 + seed), mask, region)
        assert result.size == size
        with Image.open(io.BytesIO(file(result))) as written:
            pixels = np.asarray(written)
        black = np.asarray(mask) == 0
        assert np.array_equal(pixels[black], np.asarray(original)[black])
        kept += int(black.sum())
        blended += int((pixels != np.asarray(original)).any(axis=2).sum())
    assert kept > 1000
    assert blended > 1000


def test_the_blend_is_linear_in_the_mask() -> None:
    mask = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    black, white = Image.new("RGB", (256, 1)), Image.new("RGB", (256, 1), (255, 255, 255))
    result = np.asarray(masks.paste_back(black, white, mask))
    assert result[0, :, 0].tolist() == list(range(256))


def test_a_model_size_is_resized_back() -> None:
    original, generated = Image.new("RGB", (61, 35)), Image.new("RGB", (64, 32), (10, 200, 30))
    result = masks.paste_back(original, generated, Image.new("L", (61, 35), 255))
    assert result.size == (61, 35)
    assert result.getextrema() == ((10, 10), (200, 200), (30, 30))


@pytest.mark.parametrize("size", SIZES)
def test_crop_regions_are_the_stock_ones(size: tuple[int, int]) -> None:
    for seed in range(10):
        mask = blob(*size, seed)
        for padding in (0, 5, 32, 500):
            region = masks.crop_region(mask, (64, 48), padding, "padding_mask_crop")
            assert region == VaeImageProcessor.get_crop_region(mask, 64, 48, pad=padding)
            left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
            assert region[0] <= left < right <= region[2] <= size[0]
            assert region[1] <= top < bottom <= region[3] <= size[1]


@pytest.mark.parametrize("region", [(0, 0, 97, 61), (10, 20, 42, 44), (3, 1, 90, 20), (50, 0, 61, 60)])
def test_what_the_stock_fill_did_is_undone(region: tuple[int, int, int, int]) -> None:
    """A smooth picture, cropped and filled as the stock pipeline does, comes back to where it was."""
    ramp = np.zeros((61, 97, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(97)[None] * 2, np.arange(61)[:, None] * 4
    original = Image.fromarray(ramp)
    seen = VaeImageProcessor(vae_scale_factor=8).resize(original.crop(region), 256, 256, resize_mode="fill")
    blank = Image.new("RGB", original.size, (0, 0, 255))
    mask = Image.new("L", original.size)
    mask.paste(255, region)
    result = np.asarray(masks.paste_back(blank, seen, mask, region)).astype(int)
    inside = np.asarray(mask) == 255
    assert np.abs(result - ramp)[inside].max() <= 8  # less than three pixels of either ramp, at the very rim
    assert np.abs(result - ramp)[inside].mean() < 0.7
    assert (result[~inside] == (0, 0, 255)).all()


def test_a_part_too_thin_to_be_seen_is_refused() -> None:
    mask = Image.new("L", (4000, 4), 255)
    with pytest.raises(InvalidRequest, match="too long and thin"):
        masks.crop_region(mask, (64, 64), 0, "padding_mask_crop")


def test_outpainting_puts_the_picture_at_its_place_and_masks_the_border() -> None:
    image = noise(20, 12)
    canvas, mask = masks.outpaint(image, None, left=5, top=3, right=7, bottom=0, field="outpaint")
    assert canvas.size == mask.size == (32, 15)
    assert canvas.crop((5, 3, 25, 15)).tobytes() == image.tobytes()
    assert ImageOps.invert(mask).getbbox() == (5, 3, 25, 15)
    assert set(mask.tobytes()) == {0, 255}
    pixels = np.asarray(canvas)
    assert (pixels[3:, :5] == pixels[3:, 5:6]).all()  # each row goes on in its last colour
    assert (pixels[:3, 5:25] == pixels[3, 5:25]).all()
    assert (pixels[:3, :5] == pixels[3, 5]).all()


def test_outpainting_keeps_a_mask_within_the_picture() -> None:
    inner = blob(20, 12, 3)
    _, mask = masks.outpaint(noise(20, 12), inner, left=4, top=4, right=4, bottom=4, field="outpaint")
    assert mask.crop((4, 4, 24, 16)).tobytes() == inner.tobytes()


def test_outpainting_paints_the_border_and_keeps_the_middle() -> None:
    image = noise(40, 40)
    canvas, mask = masks.outpaint(image, None, left=8, top=8, right=8, bottom=8, field="outpaint")
    soft = masks.blur(mask, 2, "outpaint")
    painted = Image.new("RGB", (56, 56), (1, 2, 3))
    result = masks.paste_back(canvas, painted, soft)
    assert result.getpixel((0, 0)) == result.getpixel((55, 30)) == (1, 2, 3)
    assert result.crop((16, 16, 40, 40)).tobytes() == image.crop((8, 8, 32, 32)).tobytes()


def test_a_canvas_has_the_limit_of_a_picture() -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        masks.outpaint(noise(8, 8), None, left=8192, top=0, right=0, bottom=0, field="outpaint")
    assert caught.value.details["fields"][0]["field"] == "outpaint"
