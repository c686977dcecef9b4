"""Control pictures without model files: what is white in them, their sizes, and that they are always the same."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from instructors import preprocessors
from instructors.models import ModelFolder
from protocol.errors import InvalidRequest, PayloadTooLarge

EDGES = ["canny", "scribble", "softedge"]
SIMPLE = [*EDGES, "tile"]


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def square(side: int = 128, colour: str = "white", ground: str = "black") -> Image.Image:
    """A square in the middle, half as wide as the picture."""
    image = Image.new("RGB", (side, side), ground)
    ImageDraw.Draw(image).rectangle((side // 4, side // 4, side * 3 // 4 - 1, side * 3 // 4 - 1), fill=colour)
    return image


def rim_distance(side: int) -> np.ndarray:
    """How many pixels each pixel is from the square's outline."""
    at = np.arange(side) + 0.5 - side / 2
    across, down = np.abs(at)[None], np.abs(at)[:, None]
    return np.abs(np.maximum(across, down) - side / 4)


@pytest.mark.parametrize("name", ["none", *SIMPLE])
@pytest.mark.parametrize("resolution", [None, 32, 96])
def test_the_result_has_the_size_asked_for_and_is_always_the_same(name: str, resolution: int | None) -> None:
    image = noise(60, 45)
    results = [preprocessors.run(name, image, size=(64, 48), resolution=resolution) for _ in range(3)]
    assert {(result.size, result.mode) for result in results} == {((64, 48), "RGB")}
    assert len({result.tobytes() for result in results}) == 1


def test_none_leaves_the_picture_as_it_is() -> None:
    image = noise(64, 48)
    assert preprocessors.run("none", image, size=(64, 48), resolution=16) is image


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize(("colour", "ground"), [("white", "black"), ("black", "white"), ("red", "blue")])
def test_edges_are_white_where_the_outline_is_and_black_elsewhere(name: str, colour: str, ground: str) -> None:
    result = preprocessors.run(name, square(128, colour, ground), size=(128, 128))
    pixels = np.asarray(result)
    assert (pixels == pixels[..., :1]).all()
    grey, distance = pixels[..., 0], rim_distance(128)
    assert (grey[distance > 8] == 0).all()
    row = grey[64]
    assert row[28:36].max() > 200
    assert row[92:100].max() > 200
    assert (grey.max(axis=0)[40:88] > 200).all()  # top and bottom have no holes


def test_canny_edges_are_one_pixel_wide() -> None:
    grey = np.asarray(preprocessors.run("canny", square(), size=(128, 128)))[..., 0]
    assert set(np.unique(grey)) == {0, 255}
    assert [int((grey[row] == 255).sum()) for row in (50, 64, 80)] == [2, 2, 2]


def test_canny_is_opencvs_with_the_usual_thresholds() -> None:
    import cv2

    image = noise(64, 48)
    expected = cv2.Canny(np.asarray(image), 100, 200)
    assert 0.1 < (expected > 0).mean() < 0.9
    assert np.array_equal(np.asarray(preprocessors.run("canny", image, size=(64, 48)))[..., 1], expected)


def test_soft_edges_tell_how_strong_an_edge_is() -> None:
    def peak(level: int) -> int:
        image = square(128, f"rgb({level},{level},{level})")
        return int(np.asarray(preprocessors.run("softedge", image, size=(128, 128))).max())

    levels = [peak(level) for level in (0, 16, 32, 64, 128, 255)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert abs(levels[3] - 128) < 16  # a quarter of the full contrast is half white
    assert levels[-1] == 255


@pytest.mark.parametrize("name", EDGES)
def test_a_plain_picture_has_no_edges(name: str) -> None:
    assert preprocessors.run(name, Image.new("RGB", (64, 64), "orange"), size=(64, 64)).getbbox() is None


def test_scribbles_are_wide_strokes_that_leave_detail_out() -> None:
    image = square()
    ImageDraw.Draw(image).point([(10, 10), (20, 100), (64, 64)], fill="grey")
    grey = np.asarray(preprocessors.run("scribble", image, size=(128, 128)))[..., 0]
    assert 5 <= (grey[64, :64] > 0).sum() <= 7
    assert (grey[rim_distance(128) > 8] == 0).all()


def test_a_tile_keeps_colours_and_loses_detail() -> None:
    image = noise(64, 64)
    before, after = (np.asarray(p).astype(float) for p in (image, preprocessors.run("tile", image, size=(64, 64))))
    assert np.abs(before.mean(axis=(0, 1)) - after.mean(axis=(0, 1))).max() < 2
    assert after.std() < before.std() / 3
    plain = Image.new("RGB", (64, 64), "orange")
    assert preprocessors.run("tile", plain, size=(64, 64)).tobytes() == plain.tobytes()


def test_the_resolution_is_the_shorter_side_that_the_preprocessor_sees() -> None:
    """A line of two pixels is gone where four pixels become one, and an edge is wider when it is enlarged."""
    seen: list[tuple[int, ...]] = []

    def estimator(pixels: np.ndarray) -> np.ndarray:
        seen.append(pixels.shape)
        return pixels

    for resolution in (None, 32, 96):
        preprocessors.run("depth", noise(60, 45), size=(64, 48), resolution=resolution, estimator=estimator)
    assert seen == [(48, 64, 3), (32, 43, 3), (96, 128, 3)]


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (8, 8)])
def test_tiny_pictures(name: str, size: tuple[int, int]) -> None:
    assert preprocessors.run(name, noise(*size), size=(16, 16), resolution=8).size == (16, 16)


def test_a_resolution_that_makes_the_picture_too_large_is_refused() -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        preprocessors.run("canny", noise(100, 1), size=(64, 64), resolution=512)
    assert caught.value.details["fields"][0]["field"] == "preprocessor_resolution"


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="known are none, canny") as caught:
        preprocessors.run("cany", noise(8, 8), size=(8, 8))
    [field] = caught.value.details["fields"]
    assert (field["field"], field["nearest"]) == ("preprocessor", "canny")


def test_what_runs_here_depends_on_model_files(tmp_path: Path) -> None:
    assert preprocessors.names(ModelFolder(None)) == ["none", *SIMPLE]
    (tmp_path / "preprocessors").mkdir()
    (tmp_path / "preprocessors/depth.onnx").touch()
    assert preprocessors.names(ModelFolder(tmp_path)) == ["none", *SIMPLE, "depth"]
