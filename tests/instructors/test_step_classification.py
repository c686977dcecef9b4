"""softmax, sigmoid and top_k, against scipy and a sort written out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special

from instructors.processing import Chain, Values, chain
from protocol.errors import Forbidden, InvalidRequest, ModelInvalid

SCORES = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-1e4, 1e4, width=32))


def made(folder: Path, *tables: dict[str, Any]) -> Chain:
    return chain(tables, folder)


def run(values: Values, *tables: dict[str, Any], folder: Path = Path(), **parameters: Any) -> Values:
    return chain(tables, folder).run(values, parameters)


@given(SCORES)
def test_softmax_is_scipys(scores: np.ndarray) -> None:
    found = run({"y": scores}, {"step": "softmax", "input": "y"})["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, special.softmax(scores.astype(np.float64), axis=-1), atol=1e-6)


@given(SCORES)
def test_sigmoid_is_scipys(scores: np.ndarray) -> None:
    found = run({"y": scores}, {"step": "sigmoid", "input": "y", "output": "p"})
    assert found["p"].dtype == np.float32
    np.testing.assert_allclose(found["p"], special.expit(scores.astype(np.float64)), atol=1e-6)
    assert found["y"] is scores


def test_half_precision_is_widened() -> None:
    scores = np.array([[1, 2, 3, -60000]], np.float16)
    for name, expected in (
        ("softmax", special.softmax(scores.astype("f8"), axis=-1)),
        ("sigmoid", special.expit(scores.astype("f8"))),
    ):
        found = run({"y": scores}, {"step": name, "input": "y"})["y"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_temperature_flattens() -> None:
    scores = np.array([[1.0, 3.0]])
    found = run({"y": scores}, {"step": "softmax", "input": "y", "temperature": 2.0})["y"]
    np.testing.assert_allclose(found, special.softmax(scores / 2, axis=-1))


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)),
           elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0, np.nan, np.inf, -np.inf])),
    st.integers(1, 40),
)  # fmt: skip
def test_top_k_is_a_sort(scores: np.ndarray, k: int) -> None:
    """Python's own stable sort, by falling score, NaN last; many scores are equal."""
    found = run({"y": scores}, {"step": "top_k", "input": "y", "k": k})["classes"]
    for row, told in zip(scores.tolist(), found, strict=True):
        expected = sorted(range(len(row)), key=lambda i: -row[i] if row[i] == row[i] else np.inf)[:k]
        assert [entry["index"] for entry in told] == expected
        for entry in told:
            value = row[entry["index"]]
            assert entry["score"] == (value if np.isfinite(value) else None)
    json.dumps(found, allow_nan=False)


def test_labels_a_threshold_and_what_a_request_may_set() -> None:
    step = {"step": "top_k", "input": "y", "k": 1, "labels": ["cat", "dog", "hen"]}
    values = {"y": np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])}
    found = run(values, step)
    assert found == {
        "classes": [[{"index": 1, "score": 0.7, "label": "dog"}], [{"index": 0, "score": 0.5, "label": "cat"}]]
    }
    found = run(values, step, k=3, threshold=0.25)
    assert [[entry["label"] for entry in item] for item in found["classes"]] == [["dog"], ["cat", "hen"]]
    assert len(run(values, step, k=3, threshold=0.5)["classes"][1]) == 1  # at the threshold is enough
    assert chain([step], Path()).per_request == {"k", "threshold"}
    with pytest.raises(InvalidRequest, match=r"parameters\.k"):
        run(values, step, k=0)
    with pytest.raises(InvalidRequest, match=r"parameters\.k"):
        run(values, step, k="many")


def test_the_scores_are_answered_where_they_are_wanted() -> None:
    scores = np.ones((1, 2))
    assert "y" not in run({"y": scores}, {"step": "top_k", "input": "y"})
    assert run({"y": scores}, {"step": "top_k", "input": "y", "keep": True})["y"] is scores


def test_axes_of_one_are_no_axes() -> None:
    found = run({"y": np.array([[[[0.1]], [[0.9]]]])}, {"step": "top_k", "input": "y", "k": 1})["classes"]
    assert found[0][0]["index"] == 1


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"z": np.ones((1, 2))}, "'y', and there is: z"),
        ({}, "nothing"),
        ({"y": np.ones((1, 2, 3))}, "3 axes"),
        ({"y": np.float32(1.0)}, "there is"),
        ({"y": np.array(1.0)}, "0 axes"),
    ],
)
def test_what_the_manifest_asks_for_must_be_there(values: Values, problem: str) -> None:
    with pytest.raises(ModelInvalid, match=problem):
        run(values, {"step": "top_k", "input": "y"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog\nhühnchen\n"),
        ("labels.json", '["cat", "dog", "hühnchen"]'),
        ("ids.json", '{"0": "cat", "2": "hühnchen", "1": "dog"}'),
        ("config.json", '{"id2label": {"0": "cat", "1": "dog", "2": "hühnchen"}, "other": 1}'),
    ],
)
def test_labels_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    step = {"step": "top_k", "input": "y", "k": 1, "labels": name}
    found = run({"y": np.array([[0, 0, 1]])}, step, folder=tmp_path)
    assert found["classes"][0][0]["label"] == "hühnchen"


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    step = {"step": "top_k", "input": "y", "k": 1, "labels": "labels.txt"}
    for text in ("cat", "mouse"):
        (tmp_path / "labels.txt").write_text(text)
        assert run({"y": np.ones((1, 1))}, step, folder=tmp_path)["classes"][0][0]["label"] == text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "not there"), (b"", "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"{", "cannot be read"),
        (b'{"1": "a"}', "cannot be read"), (b"[1, 2]", "cannot be read"), (b"7", "cannot be read"),
        (b"[" * 100_000, "cannot be read"), (b'["' + b"a" * 5_000_000 + b'"]', "cannot be read"),
    ],
)  # fmt: skip
def test_a_bad_file_of_labels_is_told_when_the_model_is(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(ModelInvalid, match=problem):
        made(tmp_path, {"step": "top_k", "input": "y", "labels": "labels.json"})


def test_labels_stay_within_the_models_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "link.txt"):
        with pytest.raises(Forbidden):
            made(folder, {"step": "top_k", "input": "y", "labels": name})


def test_too_few_labels_are_the_models_fault() -> None:
    with pytest.raises(ModelInvalid, match="2 labels"):
        run({"y": np.array([[0, 0, 1]])}, {"step": "top_k", "input": "y", "labels": ["a", "b"]})
