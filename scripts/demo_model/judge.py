"""Say what is in a picture of one shape on a plain background, by geometry alone: nothing is learned."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from scripts.demo_model.shapes import COLOURS, KINDS, PALETTE, coverage

UNKNOWN = "unknown"
# Below this overlap with the best of the three outlines the mask is called none of them.
MIN_OVERLAP = 0.6
# A shape covers at least this part of the picture, else nothing was drawn.
MIN_AREA = 0.02
# An outline encloses at least this part of the whole; whole shapes with a flaw inside stay far below.
MIN_HOLE = 0.15

_PALETTE = np.array([PALETTE[name] for name in COLOURS], np.float32)


@dataclass(frozen=True)
class Judgement:
    """What a picture shows; the names are from `shapes`, or `unknown`. `hollow`: only the outline is drawn."""

    shape_kind: str
    shape_colour: str
    background_colour: str
    hollow: bool = False


def judge(image: Image.Image) -> Judgement:
    """Judge a picture of any size (all lengths are relative to it).

    The background is the palette colour nearest to the median of the picture's rim; the shape's colour is the
    most frequent other palette colour; the kind is the outline that overlaps best with the pixels nearer to
    the shape's colour than to the background's. It is hollow if those enclose enough of the background.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    background, colour, mask = _separate(pixels)
    if colour is None:
        return Judgement(UNKNOWN, UNKNOWN, COLOURS[background])
    hole = _hole(mask)
    whole = mask | hole
    hollow = bool(hole.sum() >= MIN_HOLE * whole.sum())
    hollow = hollow and int(_nearest(np.median(pixels[hole], axis=0)[None])[0]) == background
    return Judgement(_kind(whole if hollow else mask), COLOURS[colour], COLOURS[background], hollow)


def shape_mask(image: Image.Image) -> NDArray[np.bool_]:
    """Which of the picture's pixels the shape covers, (h, w); none, if nothing was drawn."""
    return _separate(np.asarray(image.convert("RGB"), np.float32))[2]


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks that are not both empty."""
    return float((a & b).sum() / (a | b).sum())


def _separate(pixels: NDArray[np.float32]) -> tuple[int, int | None, NDArray[np.bool_]]:
    """Index of the background's colour, of the shape's (None: nothing was drawn), and the shape's pixels."""
    rim = max(1, min(pixels.shape[:2]) // 32)
    inner = np.zeros(pixels.shape[:2], bool)
    inner[rim:-rim, rim:-rim] = True
    background = int(_nearest(np.median(pixels[~inner], axis=0)[None])[0])

    names = _nearest(pixels.reshape(-1, 3))
    counts = np.bincount(names, minlength=len(COLOURS))
    counts[background] = 0
    colour = int(counts.argmax())
    if counts[colour] < MIN_AREA * names.size:
        return background, None, np.zeros(pixels.shape[:2], bool)
    distances = np.linalg.norm(pixels[..., None, :] - _PALETTE[[background, colour]], axis=-1)
    return background, colour, distances[..., 1] < distances[..., 0]


def _hole(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest region that the mask encloses; empty, if there is none."""
    regions, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    if not count:
        return np.zeros_like(mask)
    return regions == 1 + np.bincount(regions.ravel())[1:].argmax()


def _nearest(colours: NDArray[np.float32]) -> NDArray[np.intp]:
    """Index of the palette colour nearest to each of (n, 3) RGB values."""
    distances = np.linalg.norm(colours[:, None] - _PALETTE[None], axis=2)
    return distances.argmin(axis=1)


def _kind(mask: NDArray[np.bool_]) -> str:
    """Kind of shape whose outline, stretched to the mask's bounding box, overlaps best with a (h, w) mask."""
    rows, columns = _extent(mask.sum(axis=1)), _extent(mask.sum(axis=0))
    box = Image.fromarray(mask[rows, columns]).resize((64, 64), Image.Resampling.NEAREST)
    seen = np.asarray(box, bool)
    overlaps = {kind: overlap(seen, outline) for kind, outline in _OUTLINES.items()}
    best = max(overlaps, key=lambda kind: overlaps[kind])
    return best if overlaps[best] >= MIN_OVERLAP else UNKNOWN


def _extent(lengths: NDArray[np.int_]) -> slice:
    """Range of the lines in which the mask is wider than stray pixels would be."""
    wide = np.flatnonzero(lengths >= max(1, lengths.max() // 12))
    return slice(int(wide[0]), int(wide[-1]) + 1)


def _outlines() -> dict[str, NDArray[np.bool_]]:
    """Each kind as a 64x64 mask that fills its bounding box."""
    found = {}
    for kind in KINDS:
        mask = coverage(kind, 128, 128, 100, size=256) > 0.5
        box = Image.fromarray(mask[_extent(mask.sum(axis=1)), _extent(mask.sum(axis=0))])
        found[kind] = np.asarray(box.resize((64, 64), Image.Resampling.NEAREST), bool)
    return found


_OUTLINES = _outlines()
