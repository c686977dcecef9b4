"""Control pictures: what a ControlNet goes by, made of a picture.

Edges and tiles are made by OpenCV, without model files. `softedge` and `scribble` stand for the networks of that name
(HED, PiDiNet): they follow contrast alone, where those have learnt what an outline is, so texture shows more, and an
outline between parts of one colour not at all. `depth` and `pose` need a model (instructors.estimators).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from instructors import estimators, images
from instructors.models import ModelFolder
from protocol.errors import InvalidRequest
from protocol.schemas.base import nearest

if TYPE_CHECKING:
    from PIL.Image import Image

CANNY_LOW, CANNY_HIGH = 100, 200  # gradients: an edge is above the higher one, or joins such an edge above the lower
SOFTEDGE_SIGMA = 2.0  # pixels
SOFTEDGE_GAIN = 2.0  # half of the full contrast is white already
SCRIBBLE_SIGMA = 3.0  # pixels
SCRIBBLE_LOW, SCRIBBLE_HIGH = 50, 100
SCRIBBLE_WIDTH = 5  # pixels of a stroke
TILE_SHRINK = 4

Pixels = Any  # numpy array [height, width, 3] of uint8, RGB


def names(folder: ModelFolder) -> list[str]:
    """The preprocessors that run here: those that need a model only where its files are in the model folder."""
    return ["none", *_SIMPLE, *(name for name in estimators.NAMES if estimators.is_there(name, folder))]


def check(name: str) -> None:
    """Raise InvalidRequest for a preprocessor that there is not."""
    known = ["none", *_SIMPLE, *estimators.NAMES]
    if name not in known:
        near = nearest(name, known)
        problem = f"there is no {name[:60]!r}; known are {', '.join(known)}"
        details = {"fields": [{"field": "preprocessor", "problem": problem, "nearest": near}]}
        raise InvalidRequest(f"preprocessor: {problem}.", details=details)


def run(
    name: str,
    image: "Image",
    *,
    size: tuple[int, int],
    resolution: int | None = None,
    estimator: Callable[[Pixels], Pixels] | None = None,
) -> "Image":
    """The control picture of `size` (width, height), RGB. The same picture gives the same pixels.

    The preprocessor sees the picture with its shorter side at `resolution` pixels, or at `size` without one. `depth`
    and `pose` take the `estimator` that instructors.estimators loads. Raises InvalidRequest, PayloadTooLarge (the
    picture would be too large at this resolution) and what the estimator raises.
    """
    import numpy as np
    from PIL import Image

    check(name)
    if name == "none":
        return images.resized(image, size)
    make = _SIMPLE.get(name, estimator)
    if make is None:
        raise ValueError(f"{name} needs an estimator")
    seen = images.resized(image, size if resolution is None else _seen_size(image, resolution))
    return images.resized(Image.fromarray(make(np.asarray(seen))), size)


def _seen_size(image: "Image", resolution: int) -> tuple[int, int]:
    shorter = min(image.size)
    width, height = (max(1, round(side * resolution / shorter)) for side in image.size)
    images.check_size(width, height, "preprocessor_resolution")
    return width, height


def _canny(pixels: Pixels) -> Pixels:
    """Thin white edges on black; of the three colours, the one that changes most counts."""
    import cv2

    return _grey_to_rgb(cv2.Canny(pixels, CANNY_LOW, CANNY_HIGH))


def _softedge(pixels: Pixels) -> Pixels:
    """How much the blurred picture changes, in the colour that changes most: wide, soft edges, white on black."""
    import cv2
    import numpy as np

    soft = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), SOFTEDGE_SIGMA)
    across = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    slope = np.hypot(across, down).max(axis=2)
    steepest = 255 / (SOFTEDGE_SIGMA * np.sqrt(2 * np.pi))  # of a blurred edge between black and white
    return _grey_to_rgb(np.clip(slope * (SOFTEDGE_GAIN * 255 / steepest), 0, 255).round().astype(np.uint8))


def _scribble(pixels: Pixels) -> Pixels:
    """Strokes of one width along the edges that survive a strong blur, white on black."""
    import cv2

    soft = cv2.GaussianBlur(pixels, (0, 0), SCRIBBLE_SIGMA)
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (SCRIBBLE_WIDTH, SCRIBBLE_WIDTH))
    return _grey_to_rgb(cv2.dilate(cv2.Canny(soft, SCRIBBLE_LOW, SCRIBBLE_HIGH), pen))


def _tile(pixels: Pixels) -> Pixels:
    """The picture without its detail: shrunk, and enlarged again."""
    import cv2

    height, width = pixels.shape[:2]
    small = max(1, width // TILE_SHRINK), max(1, height // TILE_SHRINK)
    return cv2.resize(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), (width, height))


def _grey_to_rgb(grey: Any) -> Pixels:
    return grey[:, :, None].repeat(3, axis=2)


_SIMPLE: dict[str, Callable[[Pixels], Pixels]] = {
    "canny": _canny,
    "scribble": _scribble,
    "softedge": _softedge,
    "tile": _tile,
}
