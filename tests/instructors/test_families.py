"""Families beside Stable Diffusion 1: through the same code, with nothing told about them."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from instructors import pictures
from instructors.model_settings import ModelSettings
from instructors.models import Model
from instructors.pictures import Plan
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


def test_a_model_that_makes_no_numbers_is_told(registry: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = tiny.build(tmp_path / "broken") / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({**weights, "conv_out.bias": torch.full_like(weights["conv_out.bias"], torch.nan)}, file)
    with pytest.raises(InvalidRequest, match="not numbers"):
        run(registry, Desk(tmp_path))


def test_a_preview_that_fails_does_not_end_the_picture(registry: Any, family_desk: Desk) -> None:
    import torch

    family_desk.reset()
    task = registry.make_task("inference.text2img", {"prompt": "x", "model_id": "sdxl"}, family_desk)
    assert task._loaded.preview(torch.zeros(1, 7, 4, 4), {}) is None  # seven channels
    assert task._loaded.preview(torch.zeros(1, 4, 2, 4, 4), {}) is None  # a film
    assert task._loaded.preview(torch.zeros(1, 4, 4, 4), {}) is not None


def test_what_a_family_does_not_take_is_named(registry: Any, family_desk: Desk) -> None:
    task = registry.make_task("inference.text2img", {"prompt": "x", "model_id": "sd3"}, family_desk)
    with pytest.raises(InvalidRequest, match="stable_diffusion3 take no magic"):
        task._loaded.check(Plan("text2img", {"prompt": "x", "magic": 1}))


@pytest.mark.parametrize(("width", "near"), [(24, "16 or 32"), (8, "nearest: 16")])
def test_sizes_that_do_not_suit_are_told_their_neighbours(width: int, near: str) -> None:
    with pytest.raises(InvalidRequest, match=near):
        pictures._check_multiple("width", width, 16)
    pictures._check_multiple("width", 32, 16)
    pictures._check_multiple("width", None, 16)


def test_precision_by_device_and_family(tmp_path: Path) -> None:
    import torch

    from instructors.pipelines.loading import dtype_for

    for name, dtype in (("unet", torch.float16), ("transformer", torch.bfloat16)):
        model = Model("m", tmp_path, "family", {name: ("diffusers", "Any")}, {}, {}, "")
        assert dtype_for("cuda:0", model, ModelSettings()) is dtype
        assert dtype_for("cpu", model, ModelSettings()) is torch.float32
        assert dtype_for("cuda:0", model, ModelSettings(dtype="float32")) is torch.float32
