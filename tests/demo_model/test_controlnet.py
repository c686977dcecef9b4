"""The shipped ControlNet puts shapes where the edges are, whatever the prompt says about them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image
from safetensors import safe_open

from scripts.demo_model.controlnet import CONTROLNET, caption_for_edges, edge_map, placed_scene, random_edges
from scripts.demo_model.evaluate import accuracies, contradictions, controlnet_pipeline, draw, overlap_with
from scripts.demo_model.judge import judge
from scripts.demo_model.shapes import COLOURS, KINDS, Scene, render, to_image

MODEL = Path(__file__).parents[2] / "models" / "demo"
COUNT, STEPS = 20, 10


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionControlNetPipeline:
    loaded = controlnet_pipeline(MODEL)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_edges_decide_place_and_shape_and_words_the_colours(pipeline: StableDiffusionControlNetPipeline) -> None:
    prompts, drawn = contradictions(COUNT, seed=3)
    edges = [edge_map(to_image(render(scene))) for scene in drawn]
    means = {}
    for scale in (0.0, 1.0):
        images = draw(pipeline, prompts, STEPS, 4.0, 3, edges, controlnet_conditioning_scale=scale)
        means[scale] = np.mean([overlap_with(scene, image) for scene, image in zip(drawn, images, strict=True)])
    assert means[1.0] >= 0.7
    assert means[1.0] >= means[0.0] + 0.3
    result = accuracies(drawn, [judge(image) for image in images])  # of those at scale 1
    assert result["shape_colour"] >= 0.9
    assert result["background_colour"] >= 0.9
    assert result["kind"] >= 0.9


def test_edges_are_lines_where_the_shape_ends() -> None:
    black, white = (Image.new("RGB", (64, 64), colour) for colour in ("black", "white"))
    assert not np.asarray(edge_map(black)).any()
    white.paste(black.crop((0, 0, 20, 20)), (10, 30))
    rows, columns = np.nonzero(np.asarray(edge_map(white))[..., 0])
    assert set(np.asarray(edge_map(white)).ravel()) == {0, 255}
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == pytest.approx((10, 30, 29, 49), abs=1)


def test_controlnet_is_half_precision_safetensors() -> None:
    files = list((MODEL.parent / CONTROLNET).iterdir())
    assert {file.name for file in files} == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    with safe_open(MODEL.parent / CONTROLNET / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_training_edges_show_the_scene_and_nothing_of_its_colours() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        scene = placed_scene(rng)
        edges = random_edges(scene, rng)
        assert edges.shape == (64, 64)
        rows, columns = np.nonzero(edges > edges.max() / 2)
        assert abs(rows.min() + rows.max() - 2 * scene.y) <= 4
        assert abs(columns.min() + columns.max() - 2 * scene.x) <= 4
    black_on_white, red_on_blue = (
        random_edges(replace(scene, colour=colour, background=background), np.random.default_rng(6))
        for colour, background in (("black", "white"), ("red", "blue"))
    )
    assert (black_on_white == red_on_blue).all()


def test_training_captions_are_right_about_colours_and_mostly_wrong_about_shapes() -> None:
    rng = np.random.default_rng(7)
    scene = Scene("circle", "red", "blue", 18, 20, 40)
    captions = [caption_for_edges(scene, rng) for _ in range(1000)]
    others = set(COLOURS) - {"red", "blue"}
    assert not any(others & set(caption.replace(",", "").split()) for caption in captions)
    shares = {kind: sum(kind in caption for caption in captions) / 1000 for kind in (*KINDS, "shape")}
    assert shares["square"] + shares["triangle"] == pytest.approx(0.52, abs=0.05)  # 0.6 of those that name a shape
    assert shares["circle"] == pytest.approx(0.17, abs=0.05)
