"""text2img, img2img and inpainting of one model and size in one running batch."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from instructors.task import Padding
from tests.instructors import tiny
from tests.instructors.conftest import Desk
from tests.instructors.painting import box, difference, make, noise, together

SIZE = {"width": 32, "height": 32}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("text2img", {"seed": 1, "steps": 4, "scheduler": "euler_a", **SIZE}),
    ("img2img", {"seed": 2, "steps": 8, "scheduler": "dpm++_2m", "strength": 0.5}),
    ("inpainting", {"seed": 3, "steps": 5, "scheduler": "ddim", "mask_blur": 1}),
    ("text2img", {"seed": 4, "steps": 3, "guidance_scale": 1.0, **SIZE}),
    ("img2img", {"seed": 5, "steps": 5, "strength": 1.0, "negative_prompt": "blue", "num_images": 2}),
    ("inpainting", {"seed": 6, "steps": 6, "scheduler": "heun", "strength": 0.6, "padding_mask_crop": 4, **SIZE}),
]
PICTURES = {"text2img": 0, "img2img": 1, "inpainting": 2}  # that come with a request


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    for family in ("sd", "sdxl", "sd_inpaint"):
        tiny.build(root / family, family)
    return root


def tasks(registry: Any, desk: Desk, model_id: str, requests: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [
        make(registry, desk, kind, [noise(), box()][: PICTURES[kind]], model_id=model_id, **data)
        for kind, data in requests
    ]


def alone(registry: Any, desk: Desk, model_id: str) -> list[list[Image.Image]]:
    return [together(tasks(registry, desk, model_id, [request]))[0] for request in REQUESTS]


@pytest.mark.parametrize("model_id", ["sd", "sdxl"])
@pytest.mark.parametrize(("padding", "limit"), [(Padding(), 1), (Padding(fixed_rows=4), 0)])
def test_company_changes_nothing_that_shows(
    registry: Any, root: Path, model_id: str, padding: Padding, limit: int
) -> None:
    desk = Desk(root)
    desk.padding = padding
    apart = alone(registry, desk, model_id)
    order = list(range(len(REQUESTS)))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        made, mixed = together(tasks(registry, desk, model_id, [REQUESTS[index] for index in order]))
        expected = [image for index in order for image in apart[index]]
        assert mixed >= 3
        assert [one.size for one in made] == [other.size for other in expected]
        assert max(difference(one, other) for one, other in zip(made, expected, strict=True)) <= limit


def test_models_made_for_inpainting_share_as_well(registry: Any, root: Path) -> None:
    desk = Desk(root)
    desk.padding = Padding(fixed_rows=4)
    requests = [("inpainting", {"seed": seed, "steps": 3 + seed, "mask_blur": seed}) for seed in range(4)]
    made, _ = together(tasks(registry, desk, "sd_inpaint", requests))
    for image, request in zip(made, requests, strict=True):
        assert difference(image, together(tasks(registry, desk, "sd_inpaint", [request]))[0][0]) == 0
