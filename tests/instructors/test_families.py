"""Families beside Stable Diffusion 1: through the same code, with nothing told about them."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from protocol.enums import EventName
from protocol.errors import InvalidRequest
from tests.instructors import tiny
from tests.instructors.conftest import Desk, files


@pytest.fixture(scope="module")
def family_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    root = tmp_path_factory.mktemp("families")
    for family in ("sdxl", "sd3"):
        tiny.build(root / family, family)
    return Desk(root)


def run(registry: Any, desk: Desk, **data: Any) -> Any:
    task = registry.make_task("inference.text2img", {"prompt": "a red circle", "steps": 3, "seed": 1, **data}, desk)
    while (result := task.step()) is None:
        pass
    return result


@pytest.mark.parametrize(
    ("model_id", "family", "scheduler"),
    [
        ("sdxl", "stable_diffusion_xl", "EulerDiscreteScheduler"),
        ("sd3", "stable_diffusion3", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_pictures_of_a_family(registry: Any, family_desk: Desk, model_id: str, family: str, scheduler: str) -> None:
    family_desk.reset()
    result = run(registry, family_desk, model_id=model_id, preview={"every_steps": 2}, negative_prompt="blue")
    assert family_desk.models.find(model_id).family == family
    assert result.data["images"][0]["recipe"]["scheduler"] == scheduler
    assert Image.open(io.BytesIO(files(result)[0])).size == (tiny.SIDE, tiny.SIDE)
    assert len(family_desk.named(EventName.PROGRESS)) == 3
    assert len(family_desk.named(EventName.PREVIEW)) == 1
    again = run(registry, family_desk, model_id=model_id, negative_prompt="blue", num_images=2)
    assert files(again)[0] == files(result)[0]


def test_flow_matching_keeps_to_itself(registry: Any, family_desk: Desk) -> None:
    assert files(run(registry, family_desk, model_id="sd3", scheduler="flow_heun"))
    for name in ("euler", "ddim", "unipc"):
        with pytest.raises(InvalidRequest, match="flow matching"):
            run(registry, family_desk, model_id="sd3", scheduler=name)


def test_sizes_suit_the_family(registry: Any, family_desk: Desk) -> None:
    result = run(registry, family_desk, model_id="sdxl", width=32, height=24)
    assert Image.open(io.BytesIO(files(result)[0])).size == (32, 24)


def test_a_model_saved_in_half_precision_alone(registry: Any, tmp_path: Path) -> None:
    tiny.build(tmp_path / "half", variant="fp16")
    assert files(run(registry, Desk(tmp_path)))
