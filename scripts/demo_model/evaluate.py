"""Draw fresh prompts with the demo model, its ControlNet or its LoRA, and judge the pictures by geometry."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from rich.progress import track

from scripts.demo_model.controlnet import CONTROLNET, edge_map, placed_scene
from scripts.demo_model.judge import Judgement, judge, overlap, shape_mask
from scripts.demo_model.lora import LORA, TRIGGER, with_trigger
from scripts.demo_model.shapes import SIZE, Scene, coverage, full_caption, random_scene, render, to_image

BATCH = 20
COLUMNS = 10
# An edge map contradicts the base, which draws near the middle, if its shape is at least this far off, in pixels.
MIN_DISTANCE = 10.0


def main() -> None:
    """Print the accuracies as JSON and, if asked, write a contact sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m scripts.demo_model.evaluate controlnet --sheet out/edges.png"
    )
    parser.add_argument("what", nargs="?", choices=list(EVALUATIONS), default="base", help="default %(default)s")
    parser.add_argument("--model", type=Path, default=Path("models/demo"), help="default %(default)s")
    parser.add_argument("--count", type=int, default=100, help="number of prompts, default %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="default %(default)s")
    parser.add_argument("--guidance", type=float, default=4.0, help="default %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="of ControlNet or LoRA, default %(default)s")
    parser.add_argument("--seed", type=int, default=1234, help="of prompts and noise, default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default %(default)s")
    parser.add_argument("--sheet", type=Path, help="write the pictures here as one PNG, in reading order")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    images, result = EVALUATIONS[arguments.what](arguments)
    if arguments.sheet:
        contact_sheet(images).save(arguments.sheet)
    print(json.dumps(result, indent=1))


def evaluate_base(arguments: argparse.Namespace) -> tuple[list[Image.Image], dict[str, Any]]:
    """Does the picture show what the prompt says?"""
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    scenes = fresh_scenes(arguments.count, arguments.seed)
    prompts = [full_caption(scene) for scene in scenes]
    images = draw(pipeline, prompts, arguments.steps, arguments.guidance, arguments.seed)
    seen = [judge(image) for image in images]
    return images, accuracies(scenes, seen) | {"wrong": mistakes(scenes, seen)}


def evaluate_controlnet(arguments: argparse.Namespace) -> tuple[list[Image.Image], dict[str, Any]]:
    """Is the shape where and what the edges say, in the prompt's colours, though the prompt names another shape?

    The sheet shows edges and picture in turn.
    """
    pipeline = controlnet_pipeline(arguments.model)
    prompts, drawn = contradictions(arguments.count, arguments.seed)
    edges = [edge_map(to_image(render(scene))) for scene in drawn]
    scale = {"controlnet_conditioning_scale": arguments.scale}
    images = draw(pipeline, prompts, arguments.steps, arguments.guidance, arguments.seed, edges, **scale)
    overlaps = [overlap_with(scene, image) for scene, image in zip(drawn, images, strict=True)]
    seen = [judge(image) for image in images]
    both = [image for pair in zip(edges, images, strict=True) for image in pair]
    places = {"mean_overlap": float(np.mean(overlaps)), "min_overlap": min(overlaps)}
    return both, places | accuracies(drawn, seen) | {"wrong": mistakes(drawn, seen)}


def evaluate_lora(arguments: argparse.Namespace) -> tuple[list[Image.Image], dict[str, Any]]:
    """How many are outlines: with the word in either place and without it, each with and without the LoRA?"""
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    scenes = fresh_scenes(arguments.count, arguments.seed)
    captions = [full_caption(scene) for scene in scenes]
    forms = {
        "word in front": [with_trigger(caption, "front") for caption in captions],
        "word at the end": [with_trigger(caption, "end") for caption in captions],
        "no word": captions,
    }
    images, result = [], {}
    for name in ("without LoRA", "with LoRA"):
        if name == "with LoRA":
            pipeline.load_lora_weights(arguments.model.parent / LORA, adapter_name=TRIGGER)
            pipeline.set_adapters(TRIGGER, arguments.scale)
        for form, prompts in forms.items():
            found = draw(pipeline, prompts, arguments.steps, arguments.guidance, arguments.seed)
            seen = [judge(image) for image in found]
            images += found
            result[f"{name}, {form}"] = {"hollow": hollow_share(seen)} | accuracies(scenes, seen)
    return images, result


EVALUATIONS = {"base": evaluate_base, "controlnet": evaluate_controlnet, "lora": evaluate_lora}


def fresh_scenes(count: int, seed: int) -> list[Scene]:
    """Random scenes; only their kind and colours enter the prompts."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def contradictions(count: int, seed: int) -> tuple[list[str], list[Scene]]:
    """Prompts, and scenes of the same colours but of another shape, away from the middle."""
    rng = np.random.default_rng(seed)
    prompts, drawn = [], []
    while len(drawn) < count:
        said, placed = random_scene(rng), placed_scene(rng)
        if said.kind != placed.kind and np.hypot(placed.x - SIZE / 2, placed.y - SIZE / 2) >= MIN_DISTANCE:
            prompts.append(full_caption(said))
            drawn.append(replace(placed, colour=said.colour, background=said.background))
    return prompts, drawn


def controlnet_pipeline(model: Path) -> StableDiffusionControlNetPipeline:
    """The demo model with its ControlNet, in float32."""
    controlnet = ControlNetModel.from_pretrained(model.parent / CONTROLNET, dtype=torch.float32)
    return StableDiffusionControlNetPipeline.from_pretrained(model, controlnet=controlnet, dtype=torch.float32)


def draw(
    pipeline: DiffusionPipeline,
    prompts: list[str],
    steps: int,
    guidance: float,
    seed: int,
    edges: list[Image.Image] | None = None,
    **settings: Any,
) -> list[Image.Image]:
    """Generate one 64x64 picture per prompt; picture i has the noise of seed + i. `settings` are the pipeline's."""
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in track(range(0, len(prompts), BATCH), "drawing"):
        batch = prompts[start : start + BATCH]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        control = {} if edges is None else {"image": edges[start : start + BATCH]}
        images += pipeline(
            batch,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            **control,
            **settings,
        ).images
    return images


def accuracies(scenes: list[Scene], seen: list[Judgement]) -> dict[str, float]:
    """Share of the pictures in which each attribute, and all three, are those of the scene."""
    right = np.array(
        [
            (s.kind == j.shape_kind, s.colour == j.shape_colour, s.background == j.background_colour)
            for s, j in zip(scenes, seen, strict=True)
        ]
    )
    names = ("kind", "shape_colour", "background_colour")
    result = {name: float(share) for name, share in zip(names, right.mean(axis=0), strict=True)}
    return result | {"all_three": float(right.all(axis=1).mean()), "count": len(scenes)}


def hollow_share(seen: list[Judgement]) -> float:
    """Share of the pictures that show an outline."""
    return sum(judgement.hollow for judgement in seen) / len(seen)


def overlap_with(scene: Scene, image: Image.Image) -> float:
    """How much of the picture's shape and the scene's is common to both, 0..1."""
    return overlap(shape_mask(image), coverage(scene.kind, scene.x, scene.y, scene.radius) > 0.5)


def mistakes(scenes: list[Scene], seen: list[Judgement]) -> list[str]:
    """One line for each picture that is not what was asked for."""
    lines = []
    for index, (scene, found) in enumerate(zip(scenes, seen, strict=True)):
        drawn = f"a {found.shape_colour} {found.shape_kind} on a {found.background_colour} background"
        if drawn != full_caption(scene):
            lines.append(f"{index}: asked for {full_caption(scene)!r}, drew {drawn!r}")
    return lines


def contact_sheet(images: list[Image.Image]) -> Image.Image:
    """Pictures of one size in rows of ten."""
    width, height = images[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(images) // COLUMNS) * height), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % COLUMNS * width, index // COLUMNS * height))
    return sheet


if __name__ == "__main__":
    main()
