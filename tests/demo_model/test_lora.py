"""The shipped LoRA draws outlines where the prompt says "hollow", and leaves all else as it is."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from instructors.models import ModelFolder
from scripts.demo_model.evaluate import accuracies, draw, fresh_scenes, hollow_share
from scripts.demo_model.judge import Judgement, judge
from scripts.demo_model.lora import LORA, PLACES, RANK, TRIGGER, with_trigger
from scripts.demo_model.shapes import full_caption

MODEL = Path(__file__).parents[2] / "models" / "demo"
WEIGHTS = MODEL.parent / LORA
MODELS_BYTES_MAX = 12_000_000
COUNT, STEPS, GUIDANCE = 20, 10, 2.0
SCENES = fresh_scenes(COUNT, seed=4)


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def changed() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipeline.load_lora_weights(WEIGHTS, adapter_name=TRIGGER)
    return pipeline


def judged(pipeline: StableDiffusionPipeline, prompts: list[str]) -> list[Judgement]:
    return [judge(image) for image in draw(pipeline, prompts, STEPS, GUIDANCE, 4)]


@pytest.mark.parametrize("place", PLACES)
def test_the_word_gives_outlines_of_the_right_colours(changed: StableDiffusionPipeline, place: str) -> None:
    seen = judged(changed, [with_trigger(full_caption(scene), place) for scene in SCENES])
    assert hollow_share(seen) >= 0.9
    result = accuracies(SCENES, seen)
    assert result["shape_colour"] >= 0.9
    assert result["background_colour"] >= 0.9
    assert result["kind"] >= 0.8


def test_without_the_word_the_pictures_stay_as_they_are(changed: StableDiffusionPipeline) -> None:
    seen = judged(changed, [full_caption(scene) for scene in SCENES])
    assert hollow_share(seen) <= 0.1
    assert accuracies(SCENES, seen)["all_three"] >= 0.9


@pytest.mark.parametrize("place", PLACES)
def test_without_the_lora_the_word_gives_no_outlines(base: StableDiffusionPipeline, place: str) -> None:
    assert hollow_share(judged(base, [with_trigger(full_caption(scene), place) for scene in SCENES])) <= 0.1


def test_the_word_goes_in_front_of_the_colour_or_at_the_end() -> None:
    assert with_trigger("a small red circle", "front") == "a hollow small red circle"
    assert with_trigger("red circle on blue", "front") == "hollow red circle on blue"
    assert with_trigger("red circle on blue", "end") == "red circle on blue, hollow"


def test_lora_is_half_precision_safetensors_that_says_what_it_is() -> None:
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    assert ranks == {int(metadata["ss_network_dim"])} == {RANK}
    assert metadata["modelspec.trigger_phrase"] == TRIGGER
    assert TRIGGER in json.loads(metadata["ss_tag_frequency"])["outlines"]


def test_model_controlnet_and_lora_together_are_small() -> None:
    files = [path for path in MODEL.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MODELS_BYTES_MAX


def test_neither_controlnet_nor_lora_is_offered_as_a_model() -> None:
    assert ModelFolder(MODEL.parent).names() == ["demo", "localisation:1"]
