"""Pictures with LoRAs through the picture task: as stock alone, and each its own in company."""

from pathlib import Path
from typing import Any

import numpy
import pytest

from instructors.task import Padding, Result, SharedTask, step_units
from protocol.errors import ModelInvalid, ModelNotFound
from tests.instructors import tiny, tiny_lora
from tests.instructors.conftest import Desk, files
from tests.instructors.test_text2img import open_image

FAMILIES = ("sd", "sdxl")
MIXES: list[list[dict[str, Any]]] = [
    [],
    [{"lora_id": "one", "scale": 0.8}],
    [{"lora_id": "two", "scale": -1.0}],
    [{"lora_id": "one", "scale": 0.3}, {"lora_id": "two", "scale": 1.0}],
    [{"lora_id": "one", "scale": 0.8}],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a model a family, and two LoRAs for the first."""
    from diffusers import DiffusionPipeline

    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny.build(folder / family, family)
        pipeline = DiffusionPipeline.from_pretrained(folder / family)
        for seed, name in enumerate(("one", "two")):
            tensors = tiny_lora.kohya(tiny_lora.layers(pipeline, seed=seed))
            own = name if family == "sd" else f"{name}-xl"
            (folder / "loras").mkdir(exist_ok=True)
            tiny_lora.write(folder / "loras" / f"{own}.safetensors", tensors, {})
    return folder


def asked(index: int, model_id: str = "sd") -> dict[str, Any]:
    """Requests that differ in all that may differ within a batch."""
    loras = [{**use, "lora_id": use["lora_id"] + ("-xl" if model_id == "sdxl" else "")} for use in MIXES[index]]
    return {
        "model_id": model_id,
        "prompt": f"a red circle {index}",
        "negative_prompt": "blue",
        "steps": 3 + index % 2,
        "seed": index,
        "guidance_scale": 5.0,
        "loras": loras,
    }


def make(registry: Any, desk: Desk, data: dict[str, Any]) -> SharedTask:
    task = registry.make_task("inference.text2img", data, desk)
    assert isinstance(task, SharedTask)
    return task


def alone(registry: Any, desk: Desk, data: dict[str, Any]) -> numpy.ndarray:
    task = make(registry, desk, data)
    while (result := task.step()) is None:
        pass
    return pixels(result)


def pixels(result: Result) -> numpy.ndarray:
    return numpy.asarray(open_image(files(result)[0])).astype(int)


def together(registry: Any, desk: Desk, requests: list[dict[str, Any]]) -> list[numpy.ndarray]:
    """All at once: each quantum has every unit that waits in the first one's lane."""
    tasks = [make(registry, desk, data) for data in requests]
    while waiting := [unit for task in tasks for unit in task.units if not unit.done]:
        step_units([unit for unit in waiting if unit.lane is waiting[0].lane])
    for task in tasks:
        assert [unit.error for unit in task.units] == [None]
    return [pixels(task.result()) for task in tasks]


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("index", [1, 3])
def test_alone_it_equals_stock_with_peft(registry: Any, root: Path, family: str, index: int) -> None:
    import torch
    from diffusers import DiffusionPipeline

    data = asked(index, family)
    pipeline = DiffusionPipeline.from_pretrained(root / family)
    for use in data["loras"]:
        pipeline.load_lora_weights(root / "loras" / f"{use['lora_id']}.safetensors", adapter_name=use["lora_id"])
    pipeline.set_adapters([use["lora_id"] for use in data["loras"]], [use["scale"] for use in data["loras"]])
    stock = pipeline(
        data["prompt"],
        negative_prompt="blue",
        num_inference_steps=data["steps"],
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(index),
    ).images[0]
    mine = alone(registry, Desk(root), data)
    assert (mine == numpy.asarray(stock)).all()
    assert (mine != alone(registry, Desk(root), data | {"loras": []})).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_company_each_has_its_own_loras(registry: Any, root: Path, family: str) -> None:
    desk = Desk(root)
    requests = [asked(index, family) for index in range(len(MIXES))]
    for mine, single in zip(
        together(registry, desk, requests), [alone(registry, desk, data) for data in requests], strict=True
    ):
        assert abs(mine - single).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_reproducible_it_is_the_same_in_any_company(registry: Any, root: Path, family: str) -> None:
    desk = Desk(root)
    desk.padding = Padding(fixed_rows=4)
    requests = [asked(index, family) for index in range(len(MIXES))]
    single = [alone(registry, desk, data) for data in requests]
    for order in ([0, 1, 2, 3, 4], [3, 1, 4], [2, 0]):
        for index, mine in zip(order, together(registry, desk, [requests[i] for i in order]), strict=True):
            assert (mine == single[index]).all()


def test_the_same_text_with_other_loras_is_encoded_anew(registry: Any, root: Path) -> None:
    desk = Desk(root)
    plain = alone(registry, desk, asked(1) | {"loras": []})
    with_one = alone(registry, desk, asked(1))
    with_more = alone(registry, desk, asked(1) | {"loras": [{"lora_id": "one", "scale": 3.0}]})
    assert (plain != with_one).any()
    assert (with_one != with_more).any()
    assert (alone(registry, desk, asked(1) | {"loras": []}) == plain).all()


def test_the_recipe_names_the_loras_and_repeats(registry: Any, root: Path) -> None:
    from protocol import recipe as recipes

    desk = Desk(root)
    task = make(registry, desk, asked(3))
    while (result := task.step()) is None:
        pass
    recipe = result.data["images"][0]["recipe"]
    assert recipe["loras"] == MIXES[3]
    assert [len(digest) for digest in recipe["lora_hashes"]] == [64, 64]
    assert (alone(registry, desk, recipes.request_data(recipe)) == pixels(result)).all()


@pytest.mark.parametrize(
    ("lora_id", "error", "words"),
    [
        ("oone", ModelNotFound, "LoRA"),
        ("../one", ModelNotFound, "LoRA"),
        ("one-xl", ModelInvalid, "does not fit"),
    ],
)
def test_a_lora_that_cannot_be_used_is_told(
    registry: Any, root: Path, lora_id: str, error: type[Exception], words: str
) -> None:
    desk = Desk(root)
    before = alone(registry, desk, asked(0))
    with pytest.raises(error, match=words):
        make(registry, desk, asked(0) | {"loras": [{"lora_id": lora_id}]})
    assert (alone(registry, desk, asked(0)) == before).all()
