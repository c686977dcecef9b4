"""First stage: the autoencoder, 64x64 RGB to 16x16 latents of 4 channels and back."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from scripts.demo_model.judge import judge
from scripts.demo_model.shapes import Scene, random_scene, render, to_image
from scripts.demo_model.trainer import Trainer, load_average

BATCH = 16
CROP = 32
LEARNING_RATE = 2e-3
EDGE_WEIGHT = 2.0
KL_WEIGHT = 4e-3
EMA_DECAY = 0.995
LOG_VARIANCE_MIN = -30.0  # as low as diffusers takes it


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: factor 4, about 0.6 M parameters, no attention.

    Few normalisation groups: with many, each group is nearly one channel, and normalising a channel over a
    flat picture takes its colour away (measured after 60 s of training: 26.8 dB with 8 groups, 28.9 with 2).
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def pictures(scenes: list[Scene]) -> torch.Tensor:
    """Render scenes: (n, 3, 64, 64) float32 in -1..1."""
    batch = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    return batch.permute(0, 3, 1, 2) / 127.5 - 1


def train_vae(folder: Path, *, seed: int, steps: int) -> None:
    """Train, or go on training, into `folder`/vae.safetensors."""
    torch.manual_seed(seed)
    vae = new_vae().to(memory_format=torch.channels_last)
    groups = [{"params": list(vae.parameters()), "lr": LEARNING_RATE}]
    trainer = Trainer(vae, groups, folder / "vae.safetensors", seed=seed, steps=steps, decay=EMA_DECAY)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        batch = pictures([random_scene(rng) for _ in range(BATCH)])
        if trainer.step % 4:
            batch = _random_crops(batch, rng)
        with torch.autocast("cpu", torch.bfloat16):
            return _loss(vae, batch.contiguous(memory_format=torch.channels_last))

    trainer.run(loss)


def _random_crops(batch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Cut a random (CROP, CROP) window from each picture: the same edges at a quarter of the cost."""
    corners = rng.integers(0, batch.shape[-1] - CROP + 1, size=(len(batch), 2))
    windows = [p[:, y : y + CROP, x : x + CROP] for p, (y, x) in zip(batch, corners, strict=True)]
    return torch.stack(windows)


def _loss(vae: AutoencoderKL, batch: torch.Tensor) -> torch.Tensor:
    """Colours (L1 and squared), differences of neighbours (sharp edges), a little KL (smooth latents)."""
    posterior = vae.encode(batch).latent_dist
    out = vae.decode(posterior.sample()).sample.float()
    edges = sum(F.l1_loss(out.diff(dim=d), batch.diff(dim=d)) for d in (-1, -2))
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return F.l1_loss(out, batch) + F.mse_loss(out, batch) + EDGE_WEIGHT * edges + KL_WEIGHT * kl


@torch.no_grad()
def trained_vae(folder: Path) -> AutoencoderKL:
    """The averaged autoencoder of `folder`, its latents brought to zero mean and unit variance per channel.

    The change of scale is folded into the two 1x1 convolutions next to the latents: diffusers' own
    `scaling_factor` is one number for all channels and has no offset. The encoder's spread is taken away: the KL
    leaves channels that the decoder hardly looks at with a spread 40 times that of their means. The denoiser learns
    from means alone, but pipelines that begin with a picture (img2img, inpainting) draw from the spread.
    """
    vae = new_vae()
    load_average(vae, folder / "vae.safetensors")
    rng = np.random.default_rng(0)
    latents = vae.encode(pictures([random_scene(rng) for _ in range(500)])).latent_dist.mean
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    into, back = vae.quant_conv, vae.post_quant_conv
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.weight[:4] /= std[:, None, None, None]
    into.weight[4:], into.bias[4:] = 0, LOG_VARIANCE_MIN
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std[None, :, None, None]
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def reconstruction_accuracy(vae: AutoencoderKL, *, count: int, noise: float = 0.0) -> dict[str, float]:
    """Share of fresh pictures judged right, per attribute, after encoding and decoding, and the PSNR in dB.

    `noise` is the standard deviation of what is added to the unit-variance latents: how far off a denoiser
    may be before the picture suffers.
    """
    rng = np.random.default_rng(count)
    scenes = [random_scene(rng) for _ in range(count)]
    batch = pictures(scenes)
    latents = vae.encode(batch).latent_dist.mean
    out = vae.decode(latents + noise * torch.randn_like(latents)).sample.clamp(-1, 1)
    rows = ((out + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    seen = [judge(to_image(row)) for row in rows]
    pairs = list(zip(scenes, seen, strict=True))
    return {
        "kind": sum(s.kind == j.shape_kind for s, j in pairs) / count,
        "shape_colour": sum(s.colour == j.shape_colour for s, j in pairs) / count,
        "background_colour": sum(s.background == j.background_colour for s, j in pairs) / count,
        "psnr_db": float(10 * torch.log10(4 / F.mse_loss(out, batch))),
    }
