"""ControlNet of the demo model: where the shape is and which one it is, from a picture's edges."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from PIL import Image

from scripts.demo_model.denoiser import BATCH, POOL, encoded, random_timesteps
from scripts.demo_model.shapes import COLOURS, KINDS, RADIUS, SIZE, Scene, random_caption, render, to_image
from scripts.demo_model.trainer import Trainer, load_average

CONTROLNET = "controlnets/demo-edges"  # where it lies, beside the base's folder
LEARNING_RATE = 1e-3
EMA_DECAY = 0.998
# Canny's usual thresholds, which the evaluation takes, and those of the training.
THRESHOLDS = (100, 200)
LOW_THRESHOLDS, HIGH_THRESHOLDS = (40, 120), (150, 250)
# Edges come from a picture of this size, or else from a larger one that is then made smaller.
SMALL_SOURCE = 0.6
LARGE_SIZES = (128, 256, 512)
# Captions that name another shape than the edges show, or the right one; the others name none.
CONTRADICTING, AGREEING = 0.6, 0.2


def placed_scene(rng: np.random.Generator) -> Scene:
    """A scene whose shape is anywhere in the picture, not only near the middle as the base has learnt it."""
    colour, background = rng.choice(COLOURS, size=2, replace=False)
    radius = float(rng.uniform(*RADIUS))
    x, y = (float(rng.uniform(radius + 2, SIZE - 2 - radius)) for _ in range(2))
    return Scene(str(rng.choice(KINDS)), str(colour), str(background), radius, x, y)


def edge_map(image: Image.Image, low: float = THRESHOLDS[0], high: float = THRESHOLDS[1]) -> Image.Image:
    """Canny's edges of a picture, in its size: white lines on black, RGB."""
    return Image.fromarray(cv2.Canny(np.asarray(image.convert("RGB")), low, high)).convert("RGB")


def random_edges(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Edges of the scene as somebody might hand them in: (64, 64) in 0..255.

    Their source has other colours than the scene, so that nothing of the colours can be read off them.
    """
    size = SIZE if rng.random() < SMALL_SOURCE else int(rng.choice(LARGE_SIZES))
    colour, background = (str(c) for c in rng.choice(COLOURS, size=2, replace=False))
    factor = size / SIZE
    source = Scene(scene.kind, colour, background, scene.radius * factor, scene.x * factor, scene.y * factor)
    edges = edge_map(to_image(render(source, size)), rng.uniform(*LOW_THRESHOLDS), rng.uniform(*HIGH_THRESHOLDS))
    return np.asarray(edges.resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("L"))


def caption_for_edges(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that is right about the colours; its words for shape and size are mostly wrong.

    So the ControlNet learns that the edges decide the shape and the words the colours.
    """
    draw = rng.random()
    kind = scene.kind if draw < AGREEING else "shape"
    if draw > 1 - CONTRADICTING:
        kind = str(rng.choice([k for k in KINDS if k != scene.kind]))
    said = Scene(kind, scene.colour, scene.background, float(rng.uniform(*RADIUS)), scene.x, scene.y)
    return random_caption(said, rng)


def train_controlnet(folder: Path, base: Path, *, seed: int, steps: int) -> None:
    """Train, or go on training, into `folder`/controlnet.safetensors; the base stays as it is."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    unet, scheduler = pipeline.unet.requires_grad_(False), pipeline.scheduler
    controlnet = new_controlnet(pipeline)
    for module in (unet, controlnet):
        module.set_attn_processor(AttnProcessor())  # faster than the fused one here, as for the base
    rng = np.random.default_rng([seed, POOL])
    scenes = [placed_scene(rng) for _ in range(POOL)]
    edges = torch.from_numpy(np.stack([random_edges(scene, rng) for scene in scenes]))
    latents = encoded(pipeline.vae, scenes)
    groups = [{"params": list(controlnet.parameters()), "lr": LEARNING_RATE}]
    trainer = Trainer(controlnet, groups, folder / "controlnet.safetensors", seed=seed, steps=steps, decay=EMA_DECAY)
    embedding = caption_embeddings(pipeline)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(0, POOL, size=BATCH))
        clean = latents[chosen]
        condition = (edges[chosen] / 255)[:, None].expand(-1, 3, -1, -1)
        text = torch.stack([embedding(caption_for_edges(scenes[i], rng)) for i in chosen])
        timesteps, noise = random_timesteps(rng), torch.randn_like(clean)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            down, middle = controlnet(noisy, timesteps, text, condition, return_dict=False)
            predicted = unet(
                noisy,
                timesteps,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        return F.mse_loss(predicted.float(), scheduler.get_velocity(clean, noise, timesteps))

    trainer.run(loss)


def new_controlnet(pipeline: StableDiffusionPipeline) -> ControlNetModel:
    """A copy of the UNet's first half. Three sizes in its embedding bring 64x64 edges to the 16x16 latents."""
    return ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(16, 32, 64))


def caption_embeddings(pipeline: StableDiffusionPipeline) -> Callable[[str], torch.Tensor]:
    """A function from a caption to its (77, 64) hidden states that computes each only once."""

    @cache
    @torch.no_grad()
    def embedding(caption: str) -> torch.Tensor:
        encoded = pipeline.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt")
        return pipeline.text_encoder(encoded.input_ids).last_hidden_state[0]

    return embedding


def export_controlnet(folder: Path, base: Path, output: Path) -> None:
    """Write the averaged weights as a `ControlNetModel` in float16 safetensors."""
    controlnet = new_controlnet(StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32))
    load_average(controlnet, folder / "controlnet.safetensors")
    controlnet.to(torch.float16).save_pretrained(output, safe_serialization=True)
