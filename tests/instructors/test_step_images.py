"""The steps from pictures to tensors, against PIL and plain arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from instructors.processing import Values, chain
from instructors.processing.images import PLACEMENTS
from protocol.errors import InvalidRequest, ModelInvalid, PayloadTooLarge

HERE = Path(__file__).parent
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def run(values: Values, *tables: dict[str, Any]) -> Values:
    return chain(tables, HERE).run(values, {})


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def resized(image: Image.Image, **params: Any) -> Image.Image:
    made: Image.Image = run({"images": [image]}, {"step": "resize", **params})["images"][0]
    return made


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resize_is_pils(interpolation: str) -> None:
    image = noise(37, 23)
    made = resized(image, width=20, height=30, interpolation=interpolation)
    expected = image.resize((20, 30), Image.Resampling[interpolation.upper()])
    assert np.array_equal(np.asarray(made), np.asarray(expected))


def test_a_letterboxed_picture_lies_in_the_middle_of_grey() -> None:
    made = np.asarray(resized(noise(40, 20), width=20, height=20, mode="letterbox"))
    assert np.array_equal(made[5:15], np.asarray(noise(40, 20).resize((20, 10), Image.Resampling.BILINEAR)))
    assert (made[:5] == 114).all()
    assert (made[15:] == 114).all()


def test_of_an_odd_rest_the_smaller_half_comes_first() -> None:
    """As the training of YOLO has it."""
    made = np.asarray(resized(noise(10, 5), width=10, height=10, mode="letterbox"))
    assert np.array_equal(made[2:7], np.asarray(noise(10, 5)))
    assert (made[[0, 1, 7, 8, 9]] == 114).all()


def test_a_part_that_is_enlarged_lies_where_it_came_from() -> None:
    """Pixel (3, 4) of the picture, white, after its middle was cut out and made three times as large."""
    image = Image.new("RGB", (10, 10))
    image.putpixel((3, 4), (255, 255, 255))
    crop = {"step": "center_crop", "width": 6, "height": 4}
    values = run({"images": [image]}, crop, {"step": "resize", "width": 18, "height": 12, "interpolation": "nearest"})
    assert values["images"][0].getbbox() == (3, 3, 6, 6)
    (place,) = values[PLACEMENTS]
    assert place == {"scale": (3, 3), "offset": (-6, -9), "size": (10, 10), "canvas": (18, 12)}


def test_a_covering_picture_keeps_its_middle() -> None:
    made = np.asarray(resized(noise(40, 20), width=10, height=10, mode="cover"))
    whole = np.asarray(noise(40, 20).resize((20, 10), Image.Resampling.BILINEAR))
    assert np.array_equal(made, whole[:, 5:15])


@pytest.mark.parametrize(
    ("size", "expected"), [((301, 200), (385, 256)), ((200, 301), (256, 385)), ((9, 9), (256, 256))]
)
def test_the_shorter_side_leads(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(noise(*size), shorter=256).size == expected


@pytest.mark.parametrize(("size", "left", "top"), [((9, 8), 2, 2), ((10, 7), 3, 2), ((4, 4), 0, 0)])
def test_the_middle_is_cut_out(size: tuple[int, int], left: int, top: int) -> None:
    image = noise(*size)
    made = run({"images": [image]}, {"step": "center_crop", "width": 4, "height": 4})["images"][0]
    assert np.array_equal(np.asarray(made), np.asarray(image)[top : top + 4, left : left + 4])


def test_a_picture_that_is_too_small_gets_a_black_border() -> None:
    made = run({"images": [noise(2, 3)]}, {"step": "center_crop", "width": 5, "height": 4})["images"][0]
    expected = np.zeros((4, 5, 3), np.uint8)
    expected[0:3, 1:3] = np.asarray(noise(2, 3))
    assert np.array_equal(np.asarray(made), expected)


def test_pixels_are_normalised_by_channel() -> None:
    images = [noise(5, 4, seed) for seed in range(3)]
    made = run({"images": images}, {"step": "to_tensor", "output": "x", "mean": MEAN, "std": STD})
    pixels = np.stack([np.asarray(image, np.float64) for image in images])
    expected = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    assert made["x"].dtype == np.float32
    assert made["x"].flags.c_contiguous
    np.testing.assert_allclose(made["x"], expected, atol=2e-6)
    assert "images" not in made


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
def test_layouts_and_channels(layout: str, channels: str) -> None:
    image = noise(5, 4)
    made = run({"images": [image]}, {"step": "to_tensor", "output": "x", "layout": layout, "channels": channels,
                                     "dtype": "uint8"})["x"]  # fmt: skip
    pixels = np.asarray(image)
    expected = {"RGB": pixels, "BGR": pixels[..., ::-1], "L": np.asarray(image.convert("L"))[..., None]}[channels]
    assert made.dtype == np.uint8
    assert np.array_equal(made[0] if layout == "NHWC" else made[0].transpose(1, 2, 0), expected)


def test_half_precision_and_another_scale() -> None:
    made = run({"images": [noise(3, 3)]}, {"step": "to_tensor", "output": "x", "dtype": "float16", "scale": 1.0})["x"]
    assert made.dtype == np.float16
    assert np.array_equal(made[0].transpose(1, 2, 0), np.asarray(noise(3, 3)))


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    wanted=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    mode=st.sampled_from(["stretch", "letterbox", "cover"]),
    crop=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_a_place_in_the_picture_is_found_again(
    size: tuple[int, int], wanted: tuple[int, int], mode: str, crop: tuple[int, int]
) -> None:
    """Where the corners of the original come to lie: a white picture ends there, to a pixel."""
    if mode == "cover":  # what it cuts off is not there to be seen in a larger crop
        crop = min(crop[0], wanted[0]), min(crop[1], wanted[1])
    resize = {"step": "resize", "width": wanted[0], "height": wanted[1], "mode": mode, "fill": 0}
    values = run({"images": [Image.new("RGB", size, "white")]}, resize,
                 {"step": "center_crop", "width": crop[0], "height": crop[1]})  # fmt: skip
    made, (place,) = values["images"][0], values[PLACEMENTS]
    assert made.size == crop == place["canvas"]
    assert place["size"] == size
    left, top = place["offset"]
    right, bottom = (start + scale * side for start, scale, side in zip((left, top), place["scale"], size, strict=True))
    box = made.getbbox()
    expected = (max(0, left), max(0, top), min(crop[0], right), min(crop[1], bottom))
    assert box is not None
    assert all(abs(a - b) < 1e-6 for a, b in zip(box, expected, strict=True))


def test_an_untouched_picture_lies_on_itself() -> None:
    place = run({"images": [noise(5, 4)]}, {"step": "to_tensor", "output": "x"})[PLACEMENTS]
    assert place == [{"scale": (1, 1), "offset": (0, 0), "size": (5, 4), "canvas": (5, 4)}]


@pytest.mark.parametrize("step", [{"step": "resize", "shorter": 8}, {"step": "center_crop", "width": 8, "height": 8},
                                  {"step": "to_tensor", "output": "x"}])  # fmt: skip
def test_without_pictures_the_request_is_wrong(step: dict[str, Any]) -> None:
    for values in ({}, {"images": []}):
        with pytest.raises(InvalidRequest, match="send images"):
            run(values, step)


def test_pictures_of_several_sizes_need_a_resize() -> None:
    with pytest.raises(InvalidRequest, match="one by one"):
        run({"images": [noise(4, 4), noise(4, 5)]}, {"step": "to_tensor", "output": "x"})


def test_more_pictures_than_memory_is_for_are_refused() -> None:
    image = Image.new("RGB", (8192, 8192))
    with pytest.raises(PayloadTooLarge, match="1024 MiB"):
        run({"images": [image] * 2}, {"step": "to_tensor", "output": "x"})


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"step": "resize"}, "width and height, or shorter"),
        ({"step": "resize", "width": 8}, "width and height, or shorter"),
        ({"step": "resize", "width": 8, "height": 8, "shorter": 8}, "width and height, or shorter"),
        ({"step": "resize", "width": 8, "height": 100_000}, "height"),
        ({"step": "resize", "shorter": 8, "interpolation": "magic"}, "interpolation"),
        ({"step": "to_tensor"}, "output"),
        ({"step": "to_tensor", "output": "x", "mean": [1.0, 2.0]}, "mean and std"),
        ({"step": "to_tensor", "output": "x", "std": [0.0]}, "std"),
        ({"step": "to_tensor", "output": "x", "dtype": "uint8", "mean": [0.5]}, "leave out"),
        ({"step": "to_tensor", "output": "x", "channels": "L", "std": MEAN}, "mean and std"),
    ],
)
def test_a_wrong_manifest_is_told(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelInvalid, match=problem):
        chain([table], HERE)
