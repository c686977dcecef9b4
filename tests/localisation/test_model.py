"""The shipped localisation model, on transmissions that it never heard."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from instructors import manifest, processing
from scripts.localisation.evaluate import evaluate, predict
from scripts.localisation.simulator import Heard, simulate
from tests.localisation.geography import from_plane, holds, to_plane

MODEL = Path(__file__).parents[2] / "models" / "localisation" / "1"
MODEL_BYTES_MAX = 2_000_000
COUNT = 6_000


@pytest.fixture(scope="module")
def heard() -> Heard:
    return simulate(np.random.default_rng(77), COUNT)


@pytest.fixture(scope="module")
def report(heard: Heard) -> dict[str, Any]:
    return evaluate(MODEL, heard)


def answers(iq: np.ndarray, **parameters: Any) -> dict[str, Any]:
    """As a client gets them."""
    return processing.chain(manifest.read(MODEL).postprocess, MODEL).run(predict(MODEL, iq), parameters)


def test_it_is_at_least_three_times_better_than_the_power_weighted_centroid(report: dict[str, Any]) -> None:
    assert report["count"] >= 4_000
    for figure in ("median", "mean"):
        assert report["error_m"][figure] * 3 <= report["centroid_error_m"][figure]
    # The baseline is what it should be, not a straw man: better than always saying the middle (459 m on average).
    assert report["centroid_error_m"]["mean"] < 400


def test_its_ellipses_hold_their_share_of_the_truths(report: dict[str, Any]) -> None:
    assert 0.63 <= report["held"]["0.68"] <= 0.73
    assert all(0.58 <= share <= 0.78 for share in report["held_by_quartile"]["0.68"])


def test_its_covariances_say_more_than_a_constant_one(report: dict[str, Any]) -> None:
    assert report["nll"] < report["nll_constant_covariance"] - 0.1
    assert np.all(np.diff(report["median_error_by_quartile_m"]) > 0)


def test_the_polygons_of_its_answers_hold_their_share(heard: Heard) -> None:
    """The whole way round the earth's surface: truths as latitude and longitude, polygons as a client gets them."""
    count, origin = 400, (78.2, 179.99)
    told = answers(heard.iq[:count], origin_lat=origin[0], origin_lon=origin[1])
    lat, lon = from_plane(origin, heard.truth_m[:count])
    assert lon.min() < -179
    assert lon.max() > 179
    inside = [holds(told["uncertainty"][item]["polygon"], lat[[item]], lon[[item]])[0] for item in range(count)]
    assert np.mean(inside) == pytest.approx(0.68, abs=0.06)


def test_an_answer_has_position_uncertainty_and_confidence(heard: Heard) -> None:
    told = answers(heard.iq[:3], confidence=0.95)
    assert told["confidence"] == [0.95] * 3
    site = manifest.read(MODEL).postprocess[0]
    for position, place in zip(told["position"], told["position_m"], strict=True):
        east_north = to_plane(
            (site["origin_lat"], site["origin_lon"]), np.array(position["lat"]), np.array(position["lon"])
        )
        assert east_north == pytest.approx(place, abs=0.01)


def test_an_item_is_answered_the_same_alone_and_in_a_batch(heard: Heard) -> None:
    whole = predict(MODEL, heard.iq[:9])
    alone = [predict(MODEL, heard.iq[item : item + 1]) for item in range(9)]
    for name, array in whole.items():
        np.testing.assert_allclose(array, np.concatenate([one[name] for one in alone]), rtol=1e-4, atol=1e-3)


def test_its_file_is_small_and_new_enough() -> None:
    assert (MODEL / "model.onnx").stat().st_size <= MODEL_BYTES_MAX
    model = onnx.load(MODEL / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version >= 18 for entry in model.opset_import] == [True]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_param, shape[1].dim_value) == ("items", 790)
