"""Sampling options through the picture task, each held against the stock pipeline set up by hand."""

from pathlib import Path
from typing import Any

import numpy
import pytest

from protocol.errors import InvalidRequest
from tests.instructors import tiny
from tests.instructors.conftest import Desk, files
from tests.instructors.test_text2img import open_image

STEPS = 5


@pytest.fixture(scope="module")
def sampling_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    root = tmp_path_factory.mktemp("sampling")
    for family in ("sd", "sdxl"):
        tiny.build(root / family, family)
    return Desk(root)


@pytest.fixture
def mine(registry: Any, sampling_desk: Desk) -> Any:
    def run(family: str, **data: Any) -> numpy.ndarray:
        data = {"model_id": family, "prompt": "a red circle", "steps": STEPS, "seed": 3, "guidance_scale": 6.0, **data}
        task = registry.make_task("inference.text2img", data, sampling_desk)
        while (result := task.step()) is None:
            pass
        return numpy.asarray(open_image(files(result)[0]))

    return run


def stock(root: Path, family: str, scheduler: str, settings: dict[str, Any], **arguments: Any) -> numpy.ndarray:
    import diffusers
    import torch

    pipeline = diffusers.DiffusionPipeline.from_pretrained(root / family)
    config = {**pipeline.scheduler.config, **settings}
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(config)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": 6.0, **arguments}
    return numpy.asarray(pipeline("a red circle", generator=torch.Generator().manual_seed(3), **arguments).images[0])


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("rule", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    ("name", "scheduler"), [("euler", "EulerDiscreteScheduler"), ("dpm++_2m", "DPMSolverMultistepScheduler")]
)
def test_rules_of_sigmas(mine: Any, sampling_desk: Desk, family: str, rule: str, name: str, scheduler: str) -> None:
    root = sampling_desk.models.root
    assert root is not None
    with_rule = mine(family, scheduler=name, sigmas=rule)
    assert (with_rule == stock(root, family, scheduler, {f"use_{rule}_sigmas": True})).all()
    assert (with_rule != mine(family, scheduler=name)).any()


def test_a_rule_takes_the_place_of_the_one_in_the_schedulers_name(mine: Any) -> None:
    exponential = mine("sd", scheduler="euler", sigmas="exponential")
    assert (mine("sd", scheduler="euler_karras", sigmas="exponential") == exponential).all()
    assert (mine("sd", scheduler="euler_karras") == mine("sd", scheduler="euler", sigmas="karras")).all()


def test_sigmas_of_ones_own(mine: Any, sampling_desk: Desk) -> None:
    root = sampling_desk.models.root
    assert root is not None
    sigmas = [14.0, 7.5, 3.0, 1.0, 0.2]
    expected = stock(root, "sd", "EulerDiscreteScheduler", {}, sigmas=[*sigmas, 0.0])
    assert (mine("sd", scheduler="euler", sigmas=sigmas) == expected).all()
    assert (mine("sd", scheduler="euler", sigmas=[12.0, *sigmas[1:]]) != expected).any()


def test_eta_and_guidance_rescale(mine: Any, sampling_desk: Desk) -> None:
    root = sampling_desk.models.root
    assert root is not None
    for arguments in ({"eta": 0.7}, {"guidance_rescale": 0.6}):
        changed = mine("sd", scheduler="ddim", **arguments)
        assert (changed == stock(root, "sd", "DDIMScheduler", {}, **arguments)).all()
        assert (changed != mine("sd", scheduler="ddim")).any()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_guidance_stops_where_it_is_told(mine: Any, sampling_desk: Desk, family: str) -> None:
    """As the library's documentation does it by hand: after two of five steps."""
    root = sampling_desk.models.root
    assert root is not None
    tensors = ["latents", "prompt_embeds", *(["add_text_embeds", "add_time_ids"] if family == "sdxl" else [])]

    def cut(pipeline: Any, index: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if index != 1:
            return {}
        pipeline._guidance_scale = 0.0
        return {name: given[name].chunk(2)[-1] for name in tensors[1:]}

    expected = stock(
        root,
        family,
        "EulerDiscreteScheduler",
        {},
        callback_on_step_end=cut,
        callback_on_step_end_tensor_inputs=tensors,
    )
    assert (mine(family, scheduler="euler", guidance_end=0.4) == expected).all()
    assert (mine(family, scheduler="euler", guidance_end=1.0) != expected).any()


def test_guidance_that_never_starts_is_none(mine: Any) -> None:
    assert (mine("sd", guidance_end=0.0) == mine("sd", guidance_scale=1.0)).all()


def test_steps_without_guidance_take_half_the_rows(registry: Any, sampling_desk: Desk) -> None:
    data = {"model_id": "sd", "prompt": "a", "steps": 4, "guidance_end": 0.5, "scheduler": "euler"}
    task = registry.make_task("inference.text2img", data, sampling_desk)
    rows = []
    while task.step() is None:
        rows.append(task.units[0].rows)
    assert rows[-5:] == [2, 2, 1, 1, 1]  # four steps and the decode


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"scheduler": "ddim", "sigmas": "karras"}, "no karras sigmas"),
        ({"scheduler": "ddim", "sigmas": [9.0, 5.0, 3.0, 2.0, 1.0]}, "takes no sigmas of your own"),
        ({"scheduler": "euler", "eta": 0.5}, "takes no eta"),
        ({"scheduler": "euler", "sigmas": [5.0, 1.0]}, "2 numbers for 5 steps"),
        ({"scheduler": "euler", "sigmas": [5.0, 6.0, 3.0, 2.0, 1.0]}, "fall"),
    ],
)
def test_what_would_have_no_effect_is_told(mine: Any, data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        mine("sd", **data)
