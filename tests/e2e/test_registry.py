"""Versions, aliases and traffic through a real server and real workers."""

import shutil
from collections.abc import Iterator

import pytest

from orchestrator.client import Client
from tests.e2e.house import ROOT, House

DEMO = ROOT / "models" / "demo"
PROMPT = "a red circle on a white background"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """One worker with the demo model, and a version of a model that paints nothing."""
    with House() as started:
        models = started.folder / "models"
        shutil.copytree(DEMO, models / "demo")
        predictor = models / "localisation" / "1" / "model.onnx"
        predictor.parent.mkdir(parents=True)
        predictor.write_bytes(b"\x08\x09")  # listed, and never loaded here
        started.start_worker("w1", "--models", str(models))
        started.start_orchestrator()
        started.wait_for_workers("w1")
        yield started


def test_a_picture_that_names_no_model_is_painted_by_the_one_that_can(client: Client) -> None:
    result = client.text2img(PROMPT, steps=2, seed=7)
    assert result.images[0].recipe is not None
    assert result.images[0].recipe["model_id"] == "demo"
    told = client.models.list()
    assert told.default_model_id == told.default_model_ids["inference.img2img"] == "demo"
    assert told.default_model_ids["inference.predict"] == "localisation"
