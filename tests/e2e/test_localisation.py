"""The shipped localisation model through a real server: from samples to a place, its ellipse and a polygon."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.client import Client
from protocol.errors import InvalidRequest
from scripts.localisation.simulator import Heard, simulate
from tests.e2e.house import House
from tests.localisation.geography import holds, to_plane

MODELS = Path(__file__).parents[2] / "models"
SITE = (69.65, 18.96)  # in Norway, far enough to the north that a degree of longitude is short
ORIGIN = {"origin_lat": SITE[0], "origin_lon": SITE[1]}
COUNT = 64


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch, House() as started:
        patch.setenv("XDG_CACHE_HOME", str(started.folder / "cache"))
        patch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        started.start_orchestrator()
        started.start_worker("w", "--models", str(MODELS))
        started.wait_for_workers("w")
        yield started


@pytest.fixture(scope="module")
def heard() -> Heard:
    return simulate(np.random.default_rng(88), COUNT)


def place_of(prediction: dict[str, Any]) -> np.ndarray:
    """Metres east and north of the site."""
    position = prediction["position"]
    return to_plane(SITE, np.array(position["lat"]), np.array(position["lon"]))


def test_each_of_many_clients_gets_its_own_place(client: Client, heard: Heard) -> None:
    def ask(item: int) -> Any:
        return client.predict("localisation", {"iq": heard.iq[item : item + 1]}, parameters=ORIGIN)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(COUNT)))
    assert {(answer.model_id, answer.model_version) for answer in answers} == {("localisation:1", "1")}
    assert all(answer.inference_time_ms > 0 for answer in answers)
    error = [np.linalg.norm(place_of(answer.predictions[0]) - heard.truth_m[i]) for i, answer in enumerate(answers)]
    assert np.median(error) < 30
    together = client.predict("localisation:1", {"iq": heard.iq}, parameters=ORIGIN)
    for answer, prediction in zip(answers, together.predictions, strict=True):
        assert place_of(answer.predictions[0]) == pytest.approx(place_of(prediction), abs=0.05)


def test_a_request_sets_the_confidence(client: Client, heard: Heard) -> None:
    def ask(confidence: float) -> dict[str, Any]:
        parameters = {**ORIGIN, "confidence": confidence}
        return client.predict("localisation", {"iq": heard.iq[:1]}, parameters=parameters).predictions[0]

    sure, surer = ask(0.68), ask(0.95)
    assert (sure["confidence"], surer["confidence"]) == (0.68, 0.95)
    assert sure["position"] == surer["position"]
    ratio = np.sqrt(np.log(0.05) / np.log(0.32))
    assert surer["uncertainty"]["semi_major_m"] == pytest.approx(ratio * sure["uncertainty"]["semi_major_m"], rel=1e-4)
    lat, lon = (np.array([sure["position"][name]]) for name in ("lat", "lon"))
    assert holds(sure["uncertainty"]["polygon"], lat, lon).all()


@pytest.mark.parametrize(("bad", "problem"), [(np.nan, "NaN or infinity"), (0.0, "nothing but zeros")])
def test_what_is_no_signal_is_refused(client: Client, heard: Heard, bad: float, problem: str) -> None:
    iq = heard.iq[:2].copy()
    iq[1, 3] = bad
    with pytest.raises(InvalidRequest, match=f"{problem} in item 1 at receiver 3"):
        client.predict("localisation", {"iq": iq})


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [({"confidence": 1.0}, r"parameters\.confidence"), ({"origin_lat": 91.0}, r"parameters\.origin_lat")],
)
def test_bad_parameters_are_refused(client: Client, heard: Heard, parameters: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        client.predict("localisation", {"iq": heard.iq[:1]}, parameters=parameters)


def test_onnxruntime_tells_nobody(client: Client, house: House, heard: Heard) -> None:
    """Its telemetry would keep what it is to send beside our own cache."""
    client.predict("localisation", {"iq": heard.iq[:1]})
    assert [path.name for path in (house.folder / "cache").iterdir()] == ["atelier"]
