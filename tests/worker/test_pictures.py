"""`inference.text2img` through a real worker process, on the tiny random model."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from protocol import recipe as recipes
from tests.worker.scripted import ScriptedOrchestrator, WorkerProcess

pytestmark = pytest.mark.timeout(120)  # two processes import the libraries, on a machine that may be busy


@pytest.fixture(scope="module")
def painter(tiny_root: Path) -> Iterator[ScriptedOrchestrator]:
    scripted = ScriptedOrchestrator()
    worker = WorkerProcess(scripted.endpoint, "--models", str(tiny_root), "--slots", "4")
    try:
        scripted.hello = scripted.welcome()
        yield scripted
    finally:
        worker.close()
        scripted.close()


def test_the_model_is_told(painter: Any) -> None:
    [model] = painter.hello["capabilities"]["models"]
    assert (model["model_id"], model["family"]) == ("tiny", "stable_diffusion")


def test_a_picture_with_progress_previews_and_items(painter: ScriptedOrchestrator) -> None:
    painter.assign("j", "inference.text2img", {"prompt": "a", "steps": 4, "seed": 5, "preview": {"every_steps": 2}})
    result = painter.expect("result", 60)
    painter.acknowledge_result(result)
    assert result["success"], result
    assert result["load_ms"] > 0
    events = [m for m in painter.seen if m["kind"] == "event" and m["job_id"] == "j"]
    assert [e["event"] for e in events] == ["progress", "progress", "preview", "progress", "progress", "item"]
    [raw] = result["frames"]
    assert events[-1]["frames"] == [raw]
    assert Image.open(io.BytesIO(raw)).size == (16, 16)
    assert recipes.read(raw) == result["data"]["images"][0]["recipe"]
    assert painter.run("again", "inference.text2img", recipes.request_data(recipes.read(raw) or {}))["frames"] == [raw]
    assert painter.expect("heartbeat")["resident_models"] == ["tiny"]


def test_cancel_within_a_step_and_on_with_the_next(painter: ScriptedOrchestrator) -> None:
    painter.assign("long", "inference.text2img", {"prompt": "a", "steps": 900, "num_images": 16})
    painter.expect("event", 60, job_id="long", event="progress")
    painter.send("cancel", job_id="long", attempt=1)
    painter.assign("next", "inference.text2img", {"prompt": "a", "steps": 1})
    assert painter.expect("result", 20)["error"]["code"] == "cancelled"
    painter.acknowledge_result({"job_id": "long", "attempt": 1})
    result = painter.expect("result", 20)
    assert (result["job_id"], result["success"]) == ("next", True)
    assert result["load_ms"] == 0
    painter.acknowledge_result(result)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"model_id": "../tiny"}, "model_not_found"),
        ({"model_id": "/etc"}, "model_not_found"),
        ({"scheduler": "eulerr"}, "invalid_request"),
        ({"width": 100_000}, "invalid_request"),
        ({"steps": 0}, "invalid_request"),
        ({"width": 8192, "height": 8192}, "payload_too_large"),
    ],
)
def test_what_cannot_be_done(painter: ScriptedOrchestrator, data: dict[str, Any], code: str) -> None:
    result = painter.run("j", "inference.text2img", {"prompt": "a", "steps": 1, **data})
    assert result["error"]["code"] == code
