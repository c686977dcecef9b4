"""Skeletons as ControlNets for poses have learnt to read them: OpenPose's 18 points, in its colours, on black."""

import colorsys
from collections.abc import Sequence
from typing import Any

COCO_POINTS = 17
SURE = 0.3  # points below this score are left out
LIMB_SHARE = 0.6  # of a limb's colour; joints have it in full

# OpenPose's points as indices of COCO's; the neck is the middle of the shoulders.
NECK = (5, 6)
POINTS = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip


def draw(points: Any, scores: Any, width: int, height: int) -> Any:
    """The skeleton as [height, width, 3] of uint8, RGB.

    `points` [17, 2] holds COCO's points as x, y in pixels, `scores` [17] how sure each is. What is not sure is left
    out; with nobody in the picture it is black.
    """
    import cv2
    import numpy as np

    stick = max(1, round(min(width, height) / 128))
    joints = [_joint(place, points, scores) for place in POINTS]
    canvas = np.zeros((height, width, 3), np.uint8)
    for (start, end), colour in zip(LIMBS, _colours(), strict=False):
        a, b = joints[start], joints[end]
        if a is not None and b is not None:
            centre = round((a[0] + b[0]) / 2), round((a[1] + b[1]) / 2)
            along = b[0] - a[0], b[1] - a[1]
            axes = round(float(np.hypot(*along)) / 2), stick
            angle = float(np.degrees(np.arctan2(along[1], along[0])))
            cv2.ellipse(canvas, centre, axes, angle, 0, 360, colour, -1)
    canvas = (canvas * LIMB_SHARE).round().astype(np.uint8)
    for joint, colour in zip(joints, _colours(), strict=True):
        if joint is not None:
            cv2.circle(canvas, (round(joint[0]), round(joint[1])), stick, colour, -1)
    return canvas


def _joint(place: int | tuple[int, int], points: Any, scores: Any) -> Sequence[float] | None:
    indices = (place,) if isinstance(place, int) else place
    if min(float(scores[index]) for index in indices) < SURE:
        return None
    return [sum(float(points[index][axis]) for index in indices) / len(indices) for axis in (0, 1)]


def _colours() -> list[tuple[int, int, int]]:
    """Once round the colour wheel, from red."""
    count = len(POINTS)
    wheel = [colorsys.hsv_to_rgb(step / count, 1, 1) for step in range(count)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in wheel]
