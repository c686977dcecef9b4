"""The demo model's ControlNet through the real tasks: edges that contradict the prompt decide place and shape."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.demo_model.evaluate import accuracies, contradictions, overlap_with
from scripts.demo_model.judge import judge
from scripts.demo_model.shapes import Scene, render, to_image
from tests.instructors.conftest import Desk
from tests.instructors.painting import file, make
from tests.instructors.test_controlnet_pictures import together
from tests.instructors.test_demo_changes import AT_ONCE, GUIDANCE, MODELS, counts


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(MODELS)


def painted(registry: Any, desk: Desk, prompts: list[str], drawn: list[Scene], scale: float) -> list[Image.Image]:
    """The pictures, in order. What a ControlNet goes by is a picture of the scene, of which canny takes the edges."""
    made: list[Image.Image] = []
    for start in range(0, len(prompts), AT_ONCE):
        tasks = []
        for index in range(start, min(start + AT_ONCE, len(prompts))):
            use = {"controlnet_id": "demo-edges", "preprocessor": "canny", "conditioning_scale": scale}
            use["image"] = file(to_image(render(drawn[index])))
            asked = {"model_id": "demo", "guidance_scale": GUIDANCE, "steps": 20, "seed": index, "controlnets": [use]}
            tasks.append(make(registry, desk, "text2img", [], prompt=prompts[index], **asked))
        made += together(tasks)[0]
    return made


@counts(16)
def test_edges_decide_place_and_shape_and_words_the_colours(registry: Any, desk: Desk, count: int) -> None:
    prompts, drawn = contradictions(count, seed=11)
    made = {scale: painted(registry, desk, prompts, drawn, scale) for scale in (0.0, 1.0)}
    means = {
        scale: np.mean([overlap_with(scene, image) for scene, image in zip(drawn, images, strict=True)])
        for scale, images in made.items()
    }
    assert means[1.0] >= 0.7
    assert means[1.0] >= means[0.0] + 0.3
    right = accuracies(drawn, [judge(image) for image in made[1.0]])
    assert min(right["kind"], right["shape_colour"], right["background_colour"]) >= 0.9
