"""Step after a detector: `nms`, from boxes and scores to one box for each thing that is seen.

Boxes are answered as left, top, right, bottom in pixels of the picture that was sent, whatever resizing or letterboxing
came before the model; of a request without pictures, in pixels of the model's input.
"""

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy import ndarray
from pydantic import Field, model_validator

from instructors import processing
from instructors.processing import Values
from instructors.processing.classification import ValueName, array, number
from instructors.processing.images import PLACEMENTS, Placement
from instructors.processing.labels import Labelled, label
from protocol.errors import ModelInvalid

CANDIDATES_MAX = 30_000  # boxes of one item, the best ones, that are looked at
DETECTIONS_MAX = 1000  # answered of one item
EXTENT_MAX = 1e7  # pixels; no picture is as large, and far larger numbers would lose those of boxes near by

Array = ndarray[Any, Any]


class Nms(Labelled):
    """`layout`, by its shapes:

    - yolov5: `input` [items, boxes, 4 + 1 + classes]: a box, whether there is anything, what it is;
    - yolov8: `input` [items, 4 + classes, boxes];
    - boxes (SSD and its kind): `boxes` [items, boxes, 4] and `scores` [items, boxes, classes].

    A box of YOLO is of its best class; with `boxes`, of each class whose score is high enough. `format` tells what the
    four numbers are (c: centre); `normalized`: they are shares of the picture that the model sees, not pixels.
    """

    layout: Literal["yolov5", "yolov8", "boxes"]
    input: ValueName | None = None
    boxes: ValueName | None = None
    scores: ValueName | None = None
    format: Literal["cxcywh", "xyxy", "yxyx", "xywh"] = "cxcywh"
    normalized: bool = False
    background: Annotated[int, Field(ge=0)] | None = None  # a class that means nothing is there
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.25  # the least score
    iou: Annotated[float, Field(ge=0, le=1)] = 0.45  # boxes of a class that share more of their area are one
    max_detections: Annotated[int, Field(ge=1, le=DETECTIONS_MAX)] = 300
    across_classes: bool = False  # boxes of different classes may be one, too
    output: ValueName = "detections"

    @model_validator(mode="after")
    def _names_its_tensors(self) -> Self:
        pair = (self.boxes, self.scores)
        wanted, other = (pair, (self.input,)) if self.layout == "boxes" else ((self.input,), pair)
        if not all(wanted) or any(other):
            raise ValueError("give boxes and scores" if self.layout == "boxes" else "give input")
        self.names()
        return self

    @property
    def consumed(self) -> set[str | None]:
        """What is no longer answered."""
        return {self.input, self.boxes, self.scores, PLACEMENTS}


def nms(values: Values, params: Nms) -> Values:
    """The field `output`: for each item [{box, score, index, label}, …], the best first."""
    boxes, scores = _boxes_and_scores(values, params)
    corners = _corners(boxes.astype(np.float64), params.format)
    places: list[Placement] = values.get(PLACEMENTS) or []
    if params.normalized and not places:
        raise ModelInvalid("Boxes in shares need pictures: the steps before the model must make them of images.")
    if places and len(places) != len(corners):
        raise ModelInvalid(f"The model answers boxes of {len(corners)} items for {len(places)} pictures.")
    names, found = params.names(), []
    for item in range(len(corners)):
        place = places[item] if places else None
        inside = corners[item] * (np.tile(place["canvas"], 2) if place and params.normalized else 1.0)
        chosen, classes = _chosen(inside, scores[item], params)
        answered = _in_original(inside[chosen], place)
        found.append(
            [
                {
                    "box": [round(float(edge), 3) for edge in box],
                    "score": number(scores[item, index, kind]),
                    "index": int(kind),
                    "label": label(names, int(kind)),
                }
                for box, index, kind in zip(answered, chosen, classes, strict=True)
                if (box[2:] > box[:2]).all()  # none that lies beside the picture
            ]
        )
    return {**{name: value for name, value in values.items() if name not in params.consumed}, params.output: found}


def suppress(boxes: Array, scores: Array, iou: float, count_max: int) -> Array:
    """Which boxes [boxes, 4] (left, top, right, bottom) stay, at most `count_max`, the best first.

    Each takes away those after it that share more than `iou` of the area that both cover. Of equal scores the first
    box counts as better.
    """
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(order) and len(kept) < count_max:
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        order = order[shared <= iou * (areas[best] + areas[order] - shared)]
    return np.asarray(kept, int)


def _boxes_and_scores(values: Values, params: Nms) -> tuple[Array, Array]:
    """[items, boxes, 4] and [items, boxes, classes]."""
    if params.layout == "boxes":
        boxes, scores = array(values, str(params.boxes)), array(values, str(params.scores))
    else:
        output = array(values, str(params.input))
        if output.ndim == 3 and params.layout == "yolov8":
            output = output.transpose(0, 2, 1)
        boxes = output[..., :4]
        scores = output[..., 4:] if params.layout == "yolov8" else output[..., 4:5] * output[..., 5:]
    fits = boxes.ndim == scores.ndim == 3 and boxes.shape[:2] == scores.shape[:2] and boxes.shape[2] == 4
    if not fits or scores.shape[2] == 0:
        raise ModelInvalid(f"nms wants the shapes of layout {params.layout!r}, and the model's outputs have others.")
    return boxes, scores


def _corners(boxes: Array, form: str) -> Array:
    """Left, top, right, bottom."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if form == "cxcywh":
        first, second = first - second / 2, first + second / 2
    elif form == "xywh":
        second = first + second
    elif form == "yxyx":
        first, second = first[..., ::-1], second[..., ::-1]
    return np.concatenate([first, second], axis=-1)


def _chosen(boxes: Array, scores: Array, params: Nms) -> tuple[Array, Array]:
    """Which boxes of one item are answered, and their classes. Boxes without an area, or with NaN, are none."""
    usable = (np.abs(boxes) < EXTENT_MAX).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    wanted = usable[:, None] & (scores >= params.confidence)
    if params.layout == "boxes":
        indices, classes = np.nonzero(wanted)
    else:
        indices = np.flatnonzero(wanted.any(axis=1))
        classes = np.where(wanted[indices], scores[indices], -np.inf).argmax(axis=1)
    something = classes != params.background
    indices, classes = indices[something], classes[something]
    if len(indices) > CANDIDATES_MAX:
        best = np.sort(np.argsort(-scores[indices, classes], kind="stable")[:CANDIDATES_MAX])
        indices, classes = indices[best], classes[best]
    apart = boxes[indices]
    if not params.across_classes and len(apart):  # so far apart that boxes of two classes share nothing
        apart = apart + (classes * (np.ptp(apart) + 1))[:, None]
    kept = suppress(apart, scores[indices, classes], params.iou, params.max_detections)
    return indices[kept], classes[kept]


def _in_original(boxes: Array, place: Placement | None) -> Array:
    """In pixels of the picture that was sent, and not beyond its edges."""
    if place is None:
        return boxes
    back = (boxes - np.tile(place["offset"], 2)) / np.tile(place["scale"], 2)
    return np.clip(back, 0, np.tile(place["size"], 2))


processing.add("nms", Nms, nms, per_request=("confidence", "iou", "max_detections"))
