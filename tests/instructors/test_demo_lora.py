"""The demo model's LoRA through the real tasks: outlines while it is used, in one batch with pictures without it."""

import hashlib
from typing import Any

import pytest
from PIL import Image

from scripts.demo_model.evaluate import accuracies, fresh_scenes, hollow_share
from scripts.demo_model.judge import judge
from scripts.demo_model.lora import with_trigger
from scripts.demo_model.shapes import full_caption
from tests.instructors.conftest import Desk
from tests.instructors.painting import make, together
from tests.instructors.test_demo_changes import AT_ONCE, GUIDANCE, MODELS, counts

HOLLOW = [{"lora_id": "demo-hollow"}]


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(MODELS)


def weights(desk: Desk, registry: Any) -> str:
    """A hash of all that a LoRA could change."""
    pipeline = make(registry, desk, "text2img", [], model_id="demo")._loaded.pipeline("text2img")
    state = hashlib.sha256()
    for part in (pipeline.unet, pipeline.text_encoder):
        for name, tensor in part.state_dict().items():
            state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


@counts(12)
def test_pictures_are_outlines_while_it_is_used(registry: Any, desk: Desk, count: int) -> None:
    scenes = fresh_scenes(count, seed=21)
    before = weights(desk, registry)
    made: list[Image.Image] = []
    plain: list[Image.Image] = []
    for start in range(0, count, AT_ONCE // 2):
        tasks = [
            make(
                registry, desk, "text2img", [], prompt=with_trigger(full_caption(scene), "end"), model_id="demo",
                guidance_scale=GUIDANCE, steps=20, seed=start + index, loras=loras,
            )
            for loras in (HOLLOW, [])
            for index, scene in enumerate(scenes[start : start + AT_ONCE // 2])
        ]  # fmt: skip
        pictures = together(tasks)[0]
        made += pictures[: len(pictures) // 2]
        plain += pictures[len(pictures) // 2 :]
    seen = [judge(image) for image in made]
    assert hollow_share(seen) >= 0.9
    right = accuracies(scenes, seen)
    assert min(right["shape_colour"], right["background_colour"]) >= 0.9
    assert hollow_share([judge(image) for image in plain]) <= 0.1
    assert weights(desk, registry) == before
