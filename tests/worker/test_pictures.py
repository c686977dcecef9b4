"""`inference.text2img` through a real worker process, on the tiny random model."""

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

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


def test_jobs_share_steps_and_a_cancelled_one_leaves_its_neighbours(painter: ScriptedOrchestrator) -> None:
    """A long job is at work; a short one joins and ends first; the long one is cancelled within a step."""
    painter.assign("long", "inference.text2img", {"prompt": "a", "steps": 900, "seed": 1})
    painter.expect("event", 60, job_id="long", event="progress")
    painter.assign("short", "inference.text2img", {"prompt": "b", "steps": 5, "seed": 2})
    painter.assign("third", "inference.text2img", {"prompt": "c", "steps": 900, "seed": 3, "scheduler": "euler"})
    short = painter.expect("result", 60)
    painter.acknowledge_result(short)
    assert (short["job_id"], short["success"]) == ("short", True)
    painter.expect("event", 60, job_id="third", event="progress")
    painter.send("cancel", job_id="long", attempt=1)
    cancelled = painter.expect("result", 20)
    assert (cancelled["job_id"], cancelled["error"]["code"]) == ("long", "cancelled")
    painter.acknowledge_result(cancelled)
    last = [m for m in painter.seen if m["kind"] == "event" and m["job_id"] == "long"][-1]
    assert last["data"]["step"] < 900
    painter.expect("event", 60, job_id="third", event="progress")  # it goes on
    painter.send("cancel", job_id="third", attempt=1)
    painter.acknowledge_result(painter.expect("result", 20))
    again = painter.run("again", "inference.text2img", {"prompt": "b", "steps": 5, "seed": 2})
    alone, shared = (Image.open(io.BytesIO(result["frames"][0])).convert("RGB") for result in (again, short))
    assert max(high for _, high in ImageChops.difference(alone, shared).getextrema()) <= 1


def test_the_most_urgent_goes_first_between_two_steps(painter: ScriptedOrchestrator) -> None:
    """Of another size, so that it cannot join the running batch: it takes the device until it is done."""
    painter.assign("slow", "inference.text2img", {"prompt": "a", "steps": 900, "seed": 1})
    painter.expect("event", 60, job_id="slow", event="progress")
    painter.assign("urgent", "inference.text2img", {"prompt": "b", "steps": 30, "width": 32, "seed": 2}, priority=9)
    painter.expect("event", 60, job_id="urgent", event="progress")
    first = len(painter.seen)
    urgent = painter.expect("result", 60)
    assert (urgent["job_id"], urgent["success"]) == ("urgent", True)
    painter.acknowledge_result(urgent)
    between = [m for m in painter.seen[first:] if m["kind"] == "event" and m["job_id"] == "slow"]
    assert between == []  # not one step of the other
    painter.send("cancel", job_id="slow", attempt=1)
    painter.acknowledge_result(painter.expect("result", 20))


def test_pictures_are_counted_and_told_once(painter: ScriptedOrchestrator) -> None:
    def last() -> dict[str, Any]:
        """The figures of the latest heartbeat that told any."""
        return next(m["models"][0] for m in reversed(painter.seen) if m["kind"] == "heartbeat" and m["models"])

    def next_beats() -> list[dict[str, Any]]:
        return [painter.expect("heartbeat") for _ in range(3)]

    assert painter.run("first", "inference.text2img", {"prompt": "a", "steps": 2})["success"]
    next_beats()
    before = last()
    assert (before["model_id"], before["loads"], before["failures"]) == ("tiny", 1, 0)
    begun = time.monotonic()
    assert painter.run("j", "inference.text2img", {"prompt": "a", "steps": 20, "num_images": 3})["success"]
    elapsed_us = 1_000_000 * (time.monotonic() - begun)
    next_beats()
    after = last()
    assert after["inference_count"] - before["inference_count"] == after["items"] - before["items"] == 3
    assert 0 < after["total_us"] - before["total_us"] <= 3 * elapsed_us  # three pictures, side by side
    assert sum(count for _, count in after["times"]) == after["inference_count"]
    assert after["nbytes"] > 0
    assert not any(beat["models"] for beat in next_beats())


def test_a_model_that_is_to_be_kept_is_loaded_at_the_start(
    tiny_root: Path, tmp_path: Path, orchestrator: ScriptedOrchestrator, start: Any
) -> None:
    shutil.copytree(tiny_root / "tiny", tmp_path / "tiny")
    (tmp_path / "models.toml").write_text("[tiny]\nkeep = true\n")
    start("--models", str(tmp_path))
    orchestrator.welcome(60)
    orchestrator.wait_for(lambda: orchestrator.seen[-1].get("resident_models") == ["tiny"], 60)
    assert orchestrator.run("j", "inference.text2img", {"prompt": "a", "steps": 1})["load_ms"] == 0


def test_wrong_model_settings_stop_the_worker_with_the_reason(tmp_path: Path, start: Any) -> None:
    (tmp_path / "models.toml").write_text("[tiny]\nkepe = true\n")
    worker = start("--models", str(tmp_path))
    assert worker.wait() == 2
    assert "did you mean keep?" in worker.log
