"""text2img beside the library's own pipeline: alone equal bit for bit, in company nearly or (reproducible) the same."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from instructors.pipelines.schedulers import SHORT_NAMES
from instructors.registry import Registry
from instructors.task import Padding, step_units
from tests.instructors import tiny
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import difference, finish, make, open_image, unpasted

SCHEDULERS = [
    "ddim",
    "ddpm",
    "deis",
    "dpm++_2m_karras",
    "dpm++_2m_sde",
    "dpm++_2s",
    "dpm++_sde",
    "dpm2_a",
    "euler",
    "euler_a",
    "heun",
    "lcm",
    "lms",
    "pndm",
    "unipc",
]
PERMUTATIONS = {"sd": 6, "sdxl": 4}  # sixteen requests of every kind stand in test_all_kinds


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in ("sd", "sdxl"):
        tiny.build(root / family, family)
    latent_consistency(root / "lcm")
    return root


def latent_consistency(folder: Path) -> None:
    """A distilled model, whose UNet is told the guidance as `timestep_cond`."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    torch.manual_seed(0)
    parts = tiny._sd().components
    parts["unet"] = tiny._unet(cross_attention_dim=32, time_cond_proj_dim=16)
    parts["scheduler"] = LCMScheduler()
    LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)


@pytest.fixture(scope="module")
def fast(root: Path) -> Desk:
    return Desk(root)


@pytest.fixture(scope="module")
def reproducible(root: Path) -> Desk:
    desk = Desk(root)
    desk.padding = Padding(fixed_rows=4)
    return desk


@cache
def stock_pipeline(folder: Path) -> tuple[Any, Any]:
    """The library's own, and its own scheduler."""
    from diffusers import AutoPipelineForText2Image

    pipeline = AutoPipelineForText2Image.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, pipeline.scheduler


def stock(folder: Path, scheduler: str | None, seeds: list[int], **arguments: Any) -> Any:
    """[pictures, height, width, 3] as floats."""
    import diffusers

    pipeline, own = stock_pipeline(folder)
    pipeline.scheduler = own
    if scheduler is not None:
        class_name, settings = SHORT_NAMES[scheduler]
        pipeline.scheduler = getattr(diffusers, class_name).from_config(own.config, **settings)
    if scheduler == "dpm++_sde":
        pipeline.scheduler.noise_sampler_seed = seeds[0]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    arguments = {"prompt": "a red circle", "output_type": "np", "num_inference_steps": 4, **arguments}
    return pipeline(**arguments, generator=generators, num_images_per_prompt=len(seeds)).images


def ours(registry: Registry, desk: Desk, model: str, **data: Any) -> Any:
    """[height, width, 3] as floats."""
    return unpasted(registry, desk, "text2img", [], model_id=model, **data)


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_alone_it_equals_stock_bit_for_bit(
    registry: Registry, fast: Desk, root: Path, model: str, scheduler: str, guidance_scale: float
) -> None:
    asked = {"negative_prompt": "blue", "width": 24, "height": 16, "guidance_scale": guidance_scale}
    mine = ours(registry, fast, model, steps=4, seed=5, scheduler=scheduler, **asked)
    [expected] = stock(root / model, scheduler, [5], **asked)
    assert mine.shape == (16, 24, 3)
    assert np.array_equal(mine, expected)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("lcm", {"guidance_scale": 8.5}),
        ("lcm", {"guidance_scale": 1.0, "steps": 8}),
        ("sdxl", {"guidance_scale": 0.0, "steps": 1, "scheduler": "euler_a"}),  # as SDXL Turbo is used
        ("sd", {"guidance_scale": 0.0}),
        ("sd", {"prompt": "one " * 100}),  # cut at 77 tokens
        ("sdxl", {"prompt": ""}),
    ],
)
def test_families_of_few_steps_and_odd_prompts_too(
    registry: Registry, fast: Desk, root: Path, model: str, data: dict[str, Any]
) -> None:
    data = {"steps": 4, "scheduler": None, "prompt": "a red circle", "guidance_scale": 7.5, **data}
    steps, scheduler = data.pop("steps"), data.pop("scheduler")
    given = {} if scheduler is None else {"scheduler": scheduler}
    mine = ours(registry, fast, model, steps=steps, seed=2, **given, **data)
    [expected] = stock(root / model, scheduler, [2], num_inference_steps=steps, **data)
    assert np.array_equal(mine, expected)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_several_pictures_of_a_request_equal_stock_ones(registry: Registry, fast: Desk, root: Path, model: str) -> None:
    """One after the other they are stock's of each seed bit for bit; together, stock's batch but for rounding."""
    asked = {"model_id": model, "steps": 4, "seed": 5, "num_images": 3}
    sequential = [as_bytes(raw) for raw in files(finish(make(registry, fast, "text2img", [], **asked)))]
    for seed, picture in zip((5, 6, 7), sequential, strict=True):
        [expected] = stock(root / model, None, [seed], output_type="pil", guidance_scale=7.5)
        assert picture == expected.tobytes()
    task = make(registry, fast, "text2img", [], **asked)
    while waiting := [unit for unit in task.units if not unit.done]:
        step_units([unit for unit in waiting if unit.lane is waiting[-1].lane])
    batch = stock(root / model, None, [5, 6, 7], output_type="pil", guidance_scale=7.5)
    for raw, expected in zip(files(task.result()), batch, strict=True):
        assert difference(open_image(raw), expected) <= 1


def as_bytes(raw: bytes) -> bytes:
    return open_image(raw).tobytes()


# Company

SIZES = [(16, 16), (24, 16), (16, 32)]
PROMPTS = ["a red circle", "a blue square on white", "", "green triangle, small"]


def requests(seed: int) -> list[dict[str, Any]]:
    """16 requests that have little in common."""
    draw = random.Random(seed)
    return [
        {
            "prompt": draw.choice(PROMPTS),
            "negative_prompt": draw.choice(["", "dark"]),
            "width": size[0],
            "height": size[1],
            "steps": draw.randint(4, 6),
            "scheduler": draw.choice(SCHEDULERS),
            "guidance_scale": draw.choice([1.0, 3.0, 7.5, 12.0]),
            "seed": draw.randrange(2**53),
        }
        for size in draw.choices(SIZES, [4, 1, 1], k=16)
    ]


def company(tasks: list[Callable[[], Any]], draw: random.Random) -> tuple[list[Any], int]:
    """The tasks' results, begun in any order at any time and stepped in any company; and the largest that there was."""
    left, begun, largest = list(enumerate(tasks)), {}, 0
    draw.shuffle(left)
    while left or any(not unit.done for task in begun.values() for unit in task.units):
        waiting = [unit for task in begun.values() for unit in task.units if not unit.done]
        if left and (not waiting or draw.random() < 0.4):
            number, make_task = left.pop()
            begun[number] = make_task()
            continue
        leader = draw.choice(waiting)
        others = [unit for unit in waiting if unit.lane is leader.lane and unit is not leader]
        chosen = [leader, *draw.sample(others, draw.randint(len(others) // 2, len(others)))]
        largest = max(largest, len(chosen) if leader.lane.rows_max > 1 else 1)
        step_units(chosen)
    for task in begun.values():
        assert all(unit.error is None for unit in task.units)
    return [begun[number].result() for number in range(len(tasks))], largest


@pytest.mark.parametrize(
    ("model", "padding"), [("sd", "fast"), ("sdxl", "fast"), ("sd", "reproducible"), ("sdxl", "reproducible")]
)
def test_in_any_company_a_picture_stays_itself(
    registry: Registry, request: pytest.FixtureRequest, model: str, padding: str
) -> None:
    desk = request.getfixturevalue(padding)
    asked = requests(seed=len(model))
    makers = [lambda data=data: make(registry, desk, "text2img", [], model_id=model, **data) for data in asked]
    alone = [files(finish(maker()))[0] for maker in makers]
    assert len({as_bytes(raw) for raw in alone}) == len(alone)
    worst = most = 0
    for number in range(PERMUTATIONS[model]):
        results, largest = company(makers, random.Random(number))
        most = max(most, largest)
        together = [files(result)[0] for result in results]
        if padding == "reproducible":
            assert together == alone
        worst = max(worst, *(apart(mine, other) for mine, other in zip(alone, together, strict=True)))
    assert most >= 4
    assert worst <= (0 if padding == "reproducible" else 1)


def apart(one: bytes, other: bytes) -> int:
    pictures: list[Image.Image] = [open_image(one), open_image(other)]
    return difference(*pictures)
