"""The demo model's pictures changed and repainted by the real tasks, and judged by what is in them."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from instructors import masks
from scripts.demo_model.judge import judge, overlap, shape_mask
from scripts.demo_model.shapes import COLOURS, SIZE, Scene, coverage, full_caption, random_scene, render, to_image
from tests.instructors.conftest import Desk
from tests.instructors.painting import make, together

MODELS = Path(__file__).parents[2] / "models"
AT_ONCE = 8  # requests in one running batch
MARGIN = 6  # pixels around the shape that the mask covers: room for a shape of another form
GUIDANCE = 4.0  # what the model's card recommends


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(MODELS)


def counts(few: int) -> Any:
    """So many in the suite, and 100 in the slow run."""
    return pytest.mark.parametrize(
        "count", [few, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
    )


def recoloured(scene: Scene, rng: np.random.Generator) -> Scene:
    others = [colour for colour in COLOURS if colour not in (scene.colour, scene.background)]
    return replace(scene, colour=others[rng.integers(len(others))])


def mask_of(scene: Scene) -> Image.Image:
    """A box around the shape."""
    mask = Image.new("L", (SIZE, SIZE))
    reach = scene.radius + MARGIN
    corners = (scene.x - reach, scene.y - reach, scene.x + reach, scene.y + reach)
    mask.paste(255, tuple(int(min(max(corner, 0), SIZE)) for corner in corners))
    return mask


def painted(registry: Any, desk: Desk, action: str, pictures: list[Any], prompts: list[str], **data: Any) -> Any:
    """The pictures, in order."""
    made: list[Image.Image] = []
    for start in range(0, len(prompts), AT_ONCE):
        part = range(start, min(start + AT_ONCE, len(prompts)))
        asked = {"model_id": "demo", "guidance_scale": GUIDANCE, "steps": 20, **data}
        tasks = [make(registry, desk, action, pictures[i], prompt=prompts[i], **asked, seed=i) for i in part]
        made += together(tasks)[0]
    return made


def same(image: Image.Image, scene: Scene) -> bool:
    seen = judge(image)
    return (seen.shape_kind, seen.shape_colour, seen.background_colour) == (scene.kind, scene.colour, scene.background)


def share(right: Iterable[bool]) -> float:
    return float(np.mean(list(right)))


@counts(20)
def test_inside_the_mask_stands_the_colour_that_was_asked_for(registry: Any, desk: Desk, count: int) -> None:
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng) for _ in range(count)]
    wanted = [recoloured(scene, rng) for scene in scenes]
    pictures = [(to_image(render(scene)), mask_of(scene)) for scene in scenes]
    made = painted(registry, desk, "inpainting", pictures, [full_caption(scene) for scene in wanted], mask_blur=2)
    assert share(judge(image).shape_colour == scene.colour for image, scene in zip(made, wanted, strict=True)) >= 0.9
    assert share(same(image, scene) for image, scene in zip(made, wanted, strict=True)) >= 0.9
    for image, (before, mask) in zip(made, pictures, strict=True):
        black = np.asarray(masks.blur(mask, 2, "mask_image")) == 0
        assert np.array_equal(np.asarray(image)[black], np.asarray(before)[black])


@counts(10)
def test_at_low_strength_a_picture_keeps_its_shape_and_colours(registry: Any, desk: Desk, count: int) -> None:
    """Without a prompt: this model takes the colours of a prompt at its word, at any strength."""
    rng = np.random.default_rng(6)
    scenes = [random_scene(rng) for _ in range(count)]
    pictures = [(to_image(render(scene)),) for scene in scenes]
    kept = painted(registry, desk, "img2img", pictures, [""] * count, strength=0.3)
    assert share(same(image, scene) for image, scene in zip(kept, scenes, strict=True)) >= 0.9
    lost = painted(registry, desk, "img2img", pictures, [""] * count, strength=1.0)
    assert share(same(image, scene) for image, scene in zip(lost, scenes, strict=True)) <= 0.2


@counts(10)
def test_at_half_strength_a_shape_takes_the_prompts_colour_in_its_place(registry: Any, desk: Desk, count: int) -> None:
    rng = np.random.default_rng(7)
    scenes = [random_scene(rng) for _ in range(count)]
    wanted = [recoloured(scene, rng) for scene in scenes]
    pictures = [(to_image(render(scene)),) for scene in scenes]
    made = painted(registry, desk, "img2img", pictures, [full_caption(scene) for scene in wanted], strength=0.5)
    assert share(same(image, scene) for image, scene in zip(made, wanted, strict=True)) >= 0.9
    places = [coverage(scene.kind, scene.x, scene.y, scene.radius) > 0.5 for scene in scenes]
    assert np.mean([overlap(shape_mask(image), place) for image, place in zip(made, places, strict=True)]) >= 0.7


def test_the_encoder_draws_nothing(registry: Any, desk: Desk) -> None:
    """What it would draw, the denoiser has never seen."""
    import torch

    vae = make(registry, desk, "text2img", [], model_id="demo")._loaded.pipeline("text2img").vae
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, SIZE, SIZE)).latent_dist
    assert float(latents.std.max()) < 1e-6
