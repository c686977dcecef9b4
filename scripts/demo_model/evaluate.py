"""Draw fresh prompts with the demo model and judge the pictures by geometry."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.progress import track

from scripts.demo_model.judge import Judgement, judge
from scripts.demo_model.shapes import Scene, full_caption, random_scene

BATCH = 20
COLUMNS = 10


def main() -> None:
    """Print the accuracies as JSON and, if asked, write a contact sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m scripts.demo_model.evaluate --sheet out/demo.png"
    )
    parser.add_argument("--model", type=Path, default=Path("models/demo"), help="default %(default)s")
    parser.add_argument("--count", type=int, default=100, help="number of prompts, default %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="default %(default)s")
    parser.add_argument("--guidance", type=float, default=4.0, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1234, help="of prompts and noise, default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default %(default)s")
    parser.add_argument("--sheet", type=Path, help="write the pictures here as one PNG, in reading order")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    pipeline = StableDiffusionPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    scenes = fresh_scenes(arguments.count, arguments.seed)
    images = draw(pipeline, scenes, arguments.steps, arguments.guidance, arguments.seed)
    seen = [judge(image) for image in images]
    if arguments.sheet:
        contact_sheet(images).save(arguments.sheet)
    print(json.dumps(accuracies(scenes, seen) | {"wrong": mistakes(scenes, seen)}, indent=1))


def fresh_scenes(count: int, seed: int) -> list[Scene]:
    """Random scenes; only their kind and colours enter the prompts."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def draw(
    pipeline: StableDiffusionPipeline, scenes: list[Scene], steps: int, guidance: float, seed: int
) -> list[Image.Image]:
    """Generate one 64x64 picture per scene from its full caption; picture i has the noise of seed + i."""
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in track(range(0, len(scenes), BATCH), "drawing"):
        batch = scenes[start : start + BATCH]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        images += pipeline(
            [full_caption(scene) for scene in batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
        ).images
    return images


def accuracies(scenes: list[Scene], seen: list[Judgement]) -> dict[str, float]:
    """Share of the pictures in which each attribute, and all three, are what the prompt asked for."""
    right = np.array(
        [
            (s.kind == j.shape_kind, s.colour == j.shape_colour, s.background == j.background_colour)
            for s, j in zip(scenes, seen, strict=True)
        ]
    )
    names = ("kind", "shape_colour", "background_colour")
    result = {name: float(share) for name, share in zip(names, right.mean(axis=0), strict=True)}
    return result | {"all_three": float(right.all(axis=1).mean()), "count": len(scenes)}


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
