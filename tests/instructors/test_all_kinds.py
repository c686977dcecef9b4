"""Sixteen requests of every kind in one running batch: from words, from pictures, with masks, LoRAs, ControlNets and
sampling options. Whatever joins and leaves, each stays itself."""

import random
from pathlib import Path
from typing import Any

import pytest

from instructors.task import Padding
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import box, difference, finish, make, noise, open_image
from tests.instructors.test_controlnet_pictures import REQUESTS as WITH_CONTROLNETS
from tests.instructors.test_controlnet_pictures import SIZE, root, uses  # noqa: F401 (the same models)
from tests.instructors.test_stock_equality import company

PERMUTATIONS = 20
PICTURES = {"text2img": 0, "img2img": 1, "inpainting": 2}  # that come with a request
OTHERS: list[tuple[str, str | None, dict[str, Any]]] = [  # action, its ControlNets, what else differs
    ("text2img", None, {"seed": 11, "steps": 6, "scheduler": "dpm++_2m", "sigmas": "karras"}),
    ("text2img", None, {"seed": 12, "steps": 5, "scheduler": "ddim", "eta": 0.5, "lora": 1.5}),
    ("text2img", None, {"seed": 13, "steps": 5, "scheduler": "heun", "guidance_end": 0.5}),
    ("img2img", None, {"seed": 14, "steps": 4, "strength": 1.0, "guidance_scale": 1.0}),
    ("img2img", "one", {"seed": 15, "steps": 6, "strength": 0.6, "scheduler": "unipc"}),
    ("inpainting", None, {"seed": 16, "steps": 4, "scheduler": "euler", "mask_blur": 2, "lora": 0.4}),
    ("inpainting", "two", {"seed": 17, "steps": 4, "scheduler": "lcm", "strength": 0.9, "mask_blur": 0}),
]
REQUESTS = [*WITH_CONTROLNETS, *OTHERS]


def task(registry: Any, desk: Desk, index: int) -> Any:
    kind, name, data = REQUESTS[index]
    asked = {**SIZE, **data, "model_id": "sd", "controlnets": uses(name, "sd") if name else []}
    if scale := asked.pop("lora", None):
        asked["loras"] = [{"lora_id": "sd", "scale": scale}]
    return make(registry, desk, kind, [noise(seed=5), box()][: PICTURES[kind]], **asked)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("padding", "limit"), [(Padding(), 1), (Padding(fixed_rows=4), 0)])
def test_in_any_company_each_stays_itself(
    registry: Any,
    root: Path,  # noqa: F811
    padding: Padding,
    limit: int,
) -> None:
    desk = Desk(root)
    desk.padding = padding
    alone = [open_image(files(finish(task(registry, desk, index)))[0]) for index in range(len(REQUESTS))]
    assert len(REQUESTS) == 16
    assert len({picture.tobytes() for picture in alone}) == 16
    makers = [lambda index=index: task(registry, desk, index) for index in range(16)]
    most = 0
    for seed in range(PERMUTATIONS):
        results, largest = company(makers, random.Random(seed))
        most = max(most, largest)
        for result, picture in zip(results, alone, strict=True):
            assert difference(open_image(files(result)[0]), picture) <= limit
    assert most >= 6
