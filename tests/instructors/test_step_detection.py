"""`nms`, against a suppression written out pair by pair, and against boxes drawn into pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from instructors.processing import Values, chain, detection
from instructors.processing.detection import suppress
from protocol.errors import InvalidRequest, ModelInvalid

EDGE = st.integers(0, 12)


def run(values: Values, *tables: dict[str, Any], **parameters: Any) -> Values:
    return chain(tables, Path()).run(values, parameters)


def shared(a: list[float], b: list[float]) -> float:
    """The area of both over the area of either."""
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def one_by_one(boxes: list[list[float]], scores: list[float], iou: float, most: int) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if len(kept) < most and all(shared(boxes[index], boxes[other]) <= iou + 1e-12 for other in kept):
            kept.append(index)
    return kept


BOXES = st.lists(st.tuples(EDGE, EDGE, st.integers(1, 8), st.integers(1, 8)), max_size=14).map(
    lambda found: [[x, y, x + w, y + h] for x, y, w, h in found]
)
IOUS = st.sampled_from([0.0, 0.11, 0.23, 0.47, 0.71, 1.0])  # no two such boxes share just that


@given(BOXES, st.data(), IOUS, st.integers(1, 14))
def test_suppression_is_that_of_pairs(boxes: list[list[float]], data: Any, iou: float, most: int) -> None:
    scores = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(boxes), max_size=len(boxes)))
    found = suppress(np.array(boxes, float).reshape(-1, 4), np.array(scores), iou, most)
    assert found.tolist() == one_by_one(boxes, scores, iou, most)


@given(BOXES, st.data(), IOUS, st.booleans())
def test_classes_are_kept_apart(boxes: list[list[float]], data: Any, iou: float, across: bool) -> None:
    count = len(boxes)
    kinds = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    sure = data.draw(st.lists(st.sampled_from([0.1, 0.3, 0.6, 0.9]), min_size=count, max_size=count))
    scores = np.zeros((1, count, 3))
    for index, (kind, score) in enumerate(zip(kinds, sure, strict=True)):
        scores[0, index, kind] = score
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": "xyxy", "iou": iou,
            "across_classes": across}  # fmt: skip
    values = {"b": np.array(boxes, np.float32).reshape(1, -1, 4), "s": scores}
    (told,) = run(values, step)["detections"]
    usable = [index for index in range(count) if sure[index] >= 0.25]
    expected = []
    for group in [usable] if across else [[i for i in usable if kinds[i] == kind] for kind in range(3)]:
        kept = one_by_one([boxes[i] for i in group], [sure[i] for i in group], iou, 300)
        expected += [(*boxes[group[i]], kinds[group[i]], sure[group[i]]) for i in kept]
    assert sorted((*entry["box"], entry["index"], entry["score"]) for entry in told) == sorted(expected)
    assert [entry["score"] for entry in told] == sorted((entry["score"] for entry in told), reverse=True)


def drawn(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    return image


RESIZES = [
    {"step": "resize", "width": 64, "height": 64, "mode": "letterbox", "fill": 0},
    {"step": "resize", "width": 64, "height": 32, "mode": "stretch"},
    {"step": "resize", "shorter": 48},
]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("layout", ["yolov5", "yolov8", "boxes"])
@pytest.mark.parametrize("normalized", [False, True])
def test_boxes_are_those_of_the_picture_that_was_sent(resize: dict[str, Any], layout: str, normalized: bool) -> None:
    """A "model" that finds the white pixels of what it sees: its box comes back as the one that was drawn."""
    boxes = [(20, 30, 60, 80), (100, 10, 140, 90)]
    images = [drawn((200, 100), box) for box in boxes]
    seen = run({"images": images}, resize, {"step": "to_tensor", "output": "x"})
    found = []
    for picture in seen["x"]:
        ys, xs = np.nonzero(picture[0] > 0.5)
        found.append([(xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, np.ptp(xs) + 1, np.ptp(ys) + 1])
    height, width = seen["x"].shape[2:]
    rows = np.array(found, np.float32)[:, None] / ([width, height, width, height] if normalized else 1)
    scores = np.array([[[0.1, 0.8]], [[0.9, 0.2]]], np.float32)
    outputs = {
        "yolov5": {"y": np.concatenate([rows, np.ones((2, 1, 1)), scores], axis=2)},
        "yolov8": {"y": np.concatenate([rows, scores], axis=2).transpose(0, 2, 1)},
        "boxes": {"b": rows, "s": scores},
    }[layout]
    names = {"boxes": "b", "scores": "s"} if layout == "boxes" else {"input": "y"}
    step = {"step": "nms", "layout": layout, **names, "normalized": normalized, "labels": ["cat", "dog"]}
    answer = run({**seen, **outputs}, step)
    assert answer.keys() == {"x", "detections"}
    for told, box, label in zip(answer["detections"], boxes, ["dog", "cat"], strict=True):
        assert (len(told), told[0]["label"]) == (1, label)
        assert np.abs(np.array(told[0]["box"]) - box).max() <= 3.5  # a pixel of what the model sees
    json.dumps(answer["detections"])


def test_a_score_of_yolov5_counts_whether_there_is_anything() -> None:
    rows = np.array([[[10, 10, 4, 4, 0.5, 0.9, 0.1], [30, 30, 4, 4, 0.1, 0.9, 0.9]]])
    (told,) = run({"y": rows}, {"step": "nms", "layout": "yolov5", "input": "y"})["detections"]
    assert told == [{"box": [8, 8, 12, 12], "score": 0.45, "index": 0, "label": None}]


@pytest.mark.parametrize(
    ("form", "row"),
    [("xyxy", [1, 2, 5, 8]), ("yxyx", [2, 1, 8, 5]), ("xywh", [1, 2, 4, 6]), ("cxcywh", [3, 5, 4, 6])],
)
def test_formats(form: str, row: list[float]) -> None:
    values = {"b": np.array([[row]]), "s": np.ones((1, 1, 1))}
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": form}
    assert run(values, step)["detections"][0][0]["box"] == [1, 2, 5, 8]


def test_several_classes_of_a_box_and_a_background() -> None:
    values = {"b": np.array([[[0, 0, 1, 1]]]), "s": np.array([[[0.9, 0.6, 0.7]]])}
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": "xyxy", "background": 0}
    assert [entry["index"] for entry in run(values, step)["detections"][0]] == [2, 1]
    yolo = {"y": np.array([[[2, 2, 2, 2, 0.6, 0.7, np.nan]]]).transpose(0, 2, 1)}
    for background, best in ((None, [1]), (0, [1]), (1, [])):
        found = run(yolo, {"step": "nms", "layout": "yolov8", "input": "y", "background": background})["detections"][0]
        assert [entry["index"] for entry in found] == best


def test_boxes_end_at_the_pictures_edges() -> None:
    """A picture of 20 x 10, letterboxed to 20 x 20: one box hangs over its edges, one lies beside it."""
    letterbox = {"step": "resize", "width": 20, "height": 20, "mode": "letterbox"}
    seen = run({"images": [Image.new("RGB", (20, 10))]}, letterbox, {"step": "to_tensor", "output": "x"})
    rows = np.array([[[-5, 0, 30, 8], [0, 16, 9, 20]]])
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": "xyxy"}
    (told,) = run({**seen, "b": rows, "s": np.ones((1, 2, 1))}, step)["detections"]
    assert [entry["box"] for entry in told] == [[0, 0, 20, 3]]


def test_boxes_that_are_none_are_left_out() -> None:
    rows = [[0, 0, 4, 4], [np.nan, 0, 4, 4], [0, 0, np.inf, 4], [3, 3, 3, 9], [5, 5, 1, 9], [-1e30, 0, 1e30, 1]]
    values = {"b": np.array([rows]), "s": np.ones((1, 6, 1))}
    values["s"][0, 0] = 0.5
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": "xyxy"}
    assert [entry["box"] for entry in run(values, step)["detections"][0]] == [[0, 0, 4, 4]]
    values["s"][:] = np.nan
    assert run(values, step)["detections"] == [[]]


def test_what_a_request_may_set() -> None:
    boxes = np.array([[[index * 10, 0, index * 10 + 5, 5] for index in range(5)]])
    values = {"b": boxes, "s": np.array([[[0.1], [0.2], [0.5], [0.6], [0.9]]])}
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": "xyxy"}
    assert len(run(values, step)["detections"][0]) == 3
    assert len(run(values, step, confidence=0.55)["detections"][0]) == 2
    assert len(run(values, step, confidence=0.0, max_detections=4)["detections"][0]) == 4
    with pytest.raises(InvalidRequest, match=r"parameters\.iou"):
        run(values, step, iou=2)


def test_of_too_many_boxes_the_best_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "CANDIDATES_MAX", 2)
    boxes = np.array([[[index * 10, 0, index * 10 + 5, 5] for index in range(4)]])
    values = {"b": boxes, "s": np.array([[[0.3], [0.9], [0.4], [0.9]]])}
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": "xyxy"}
    assert [entry["box"][0] for entry in run(values, step)["detections"][0]] == [10, 30]


def test_no_more_boxes_than_there_is_time_for() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 600, (1, 60_000, 2))
    values = {"b": np.concatenate([corners, corners + 30], axis=2), "s": rng.uniform(0.3, 1, (1, 60_000, 1))}
    step = {"step": "nms", "layout": "boxes", "boxes": "b", "scores": "s", "format": "xyxy"}
    (told,) = run(values, step)["detections"]
    assert len(told) == 300
    assert told[0]["score"] == values["s"].max()


@pytest.mark.parametrize(
    "values", [{"y": np.ones((1, 5, 4))}, {"y": np.ones((5, 7))}, {"y": np.ones((1, 4))}, {"z": np.ones((1, 5, 9))}]
)
def test_outputs_of_another_layout_are_the_models_fault(values: Values) -> None:
    with pytest.raises(ModelInvalid):
        run(values, {"step": "nms", "layout": "yolov5", "input": "y"})


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"layout": "boxes", "input": "y"}, "give boxes and scores"),
        ({"layout": "yolov8"}, "give input"),
        ({"layout": "yolov8", "input": "y", "boxes": "b"}, "give input"),
        ({"layout": "yolov9", "input": "y"}, "layout"),
        ({"layout": "yolov8", "input": "y", "labels": "none.txt"}, "not there"),
    ],
)
def test_a_wrong_manifest_is_told(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelInvalid, match=problem):
        chain([{"step": "nms", **table}], Path())


def test_boxes_of_more_items_than_pictures_are_the_models_fault() -> None:
    seen = run({"images": [drawn((8, 8), (0, 0, 4, 4))]}, {"step": "to_tensor", "output": "x"})
    with pytest.raises(ModelInvalid, match="2 items for 1 pictures"):
        run({**seen, "y": np.ones((2, 6, 3))}, {"step": "nms", "layout": "yolov8", "input": "y"})


def test_shares_without_pictures_mean_nothing() -> None:
    with pytest.raises(ModelInvalid, match="need pictures"):
        run({"y": np.ones((1, 6, 3))}, {"step": "nms", "layout": "yolov8", "input": "y", "normalized": True})
