"""The examples of the guide on localisation, run as they stand there, one after the other."""

import json
import shlex
import sys
import time

import numpy as np
import pytest

from orchestrator.client import Client
from scripts.localisation import evaluate, train
from scripts.localisation.simulator import RECEIVERS_M
from tests.docs import pages
from tests.docs.test_examples import run
from tests.docs.test_versions import Workshop, workshop
from tests.localisation.geography import holds

__all__ = ["workshop"]
GUIDE = pages.text("docs/guides/localisation.md")
MAKE, ASK = pages.blocks(GUIDE, "python")
PREDICT, OWN = pages.blocks(GUIDE, "sh")
TRUTH_M = np.array([210, -140])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, calibrated and measured with a few transmissions: that it runs is what is tested."""
    for name, count in {"STEPS": 2, "BATCH": 32, "SCALING_COUNT": 256, "CALIBRATION_COUNT": 256}.items():
        monkeypatch.setattr(train, name, count)


def program(line: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Run a line `python -m scripts.localisation.…` in this process."""
    python, _, module, *arguments = shlex.split(line)
    assert python == "python"
    monkeypatch.setattr(sys, "argv", [module, *arguments, *more])
    {"scripts.localisation.train": train, "scripts.localisation.evaluate": evaluate}[module].main()


@pytest.mark.timeout(120)
def test_the_guide(
    workshop: Workshop, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(workshop, [sys.executable, "-c", MAKE])
    told = run(workshop, [sys.executable, "-c", ASK.replace("Client()", f"Client({workshop.endpoint!r})")])
    east, north = map(float, told.splitlines()[1].strip("[]").split())
    assert np.linalg.norm(TRUTH_M - [east, north]) < 25
    area = json.loads((workshop.folder / "where.geojson").read_text())["geometry"]
    assert holds(area, np.array([52.473 - 140 / 111_270]), np.array([13.401 + 210 / 67_930])).all()
    assert "lat" in run(workshop, PREDICT.strip())

    monkeypatch.chdir(workshop.folder)
    copy, learn, measure, register = OWN.splitlines()
    run(workshop, copy)
    program(learn, monkeypatch)
    capsys.readouterr()
    program(measure, monkeypatch, "--count", "256")
    assert json.loads(capsys.readouterr().out)["count"] == 256
    assert "hall:1" in run(workshop, register)
    with Client(workshop.endpoint, timeout_s=20) as client:
        while not client.models.info("hall:1").workers:
            time.sleep(0.1)
        answer = client.predict("hall", {"iq": np.load("heard.npy")})
    assert (answer.model_id, answer.outputs["position_m"].shape) == ("hall:1", (1, 2))


def test_the_receivers_are_those_of_the_training() -> None:
    assert f"np.array({[tuple(int(side) for side in place) for place in RECEIVERS_M]})" in MAKE


def test_the_figures_are_those_of_the_card() -> None:
    card = (pages.ROOT / "models" / "localisation" / "1" / "README.md").read_text()
    said = " ".join(GUIDE.split())
    model, centroid = (float(first(card, f"| {row} |")) for row in ("model", "power-weighted centroid"))
    assert f"{model:.0f} m, that of the power-weighted centroid {centroid:.0f} m" in said
    for share in (68, 95):
        assert f"{share} % held {first(card, f'| truths in the {share} % ellipses |')}" in said


def first(card: str, row: str) -> str:
    """The first figure of a row."""
    return card.split(row, 1)[1].split("|")[0].strip()
