"""Second stage: text encoder and UNet, trained together on the autoencoder's latents."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from rich.progress import track
from torch import nn

from scripts.demo_model.shapes import Scene, random_caption, random_scene
from scripts.demo_model.text import WIDTH, new_text_encoder, new_tokenizer
from scripts.demo_model.trainer import Trainer
from scripts.demo_model.vae import pictures

BATCH = 32
POOL = 20_000
LEARNING_RATE = 1.5e-3
EMBEDDING_RATE = 3e-3
EMA_DECAY = 0.998
TRAIN_STEPS = 1000
# Half of the noise levels are drawn from this range, in which it is decided what the picture shows.
DECISIVE = (400, 900)


class Denoiser(nn.Module):
    """Text encoder and UNet (2.9 M parameters): what the second stage trains."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = new_tokenizer()
        self.text_encoder = new_text_encoder(self.tokenizer)
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 96),
            layers_per_block=1,
            norm_num_groups=16,
            attention_head_dim=4,
            cross_attention_dim=WIDTH,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predict v, (n, 4, 16, 16), from noisy latents of that shape, (n,) timesteps and (n, 77) ids."""
        return self.unet(noisy, timesteps, self.text_encoder(ids).last_hidden_state).sample


def new_scheduler() -> DDIMScheduler:
    """Noise schedule of training and default sampler of the pipeline.

    `trailing` starts the sampler at the noisiest training step, which matters with few steps.
    """
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def train_denoiser(folder: Path, vae: AutoencoderKL, *, seed: int, steps: int) -> None:
    """Train, or go on training, into `folder`/denoiser.safetensors."""
    torch.manual_seed(seed)
    denoiser = Denoiser()
    # At this size, in bfloat16 on a CPU, the plain attentions are about twice as fast as the fused ones.
    denoiser.unet.set_attn_processor(AttnProcessor())
    denoiser.text_encoder.set_attn_implementation("eager")
    rng = np.random.default_rng([seed, POOL])
    scenes = [random_scene(rng) for _ in range(POOL)]
    latents = encoded(vae, scenes)
    scheduler = new_scheduler()
    embeddings = list(denoiser.text_encoder.get_input_embeddings().parameters())
    others = [p for p in denoiser.parameters() if all(p is not e for e in embeddings)]
    groups = [{"params": others, "lr": LEARNING_RATE}, {"params": embeddings, "lr": EMBEDDING_RATE}]
    trainer = Trainer(denoiser, groups, folder / "denoiser.safetensors", seed=seed, steps=steps, decay=EMA_DECAY)

    @cache
    def token_ids(caption: str) -> torch.Tensor:
        encoded = denoiser.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt")
        return encoded.input_ids[0]

    def loss(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.integers(0, POOL, size=BATCH)
        clean = latents[torch.from_numpy(chosen)]
        ids = torch.stack([token_ids(random_caption(scenes[i], rng)) for i in chosen])
        timesteps, noise = random_timesteps(rng), torch.randn_like(clean)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = scheduler.get_velocity(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = denoiser(noisy, timesteps, ids)
        return F.mse_loss(predicted.float(), target)

    trainer.run(loss)


def random_timesteps(rng: np.random.Generator) -> torch.Tensor:
    """Noise levels of one batch: half of them from anywhere, half from the decisive range; (BATCH,) int64."""
    anywhere = rng.integers(0, TRAIN_STEPS, size=BATCH // 2)
    decisive = rng.integers(*DECISIVE, size=BATCH - BATCH // 2)
    return torch.from_numpy(np.concatenate([anywhere, decisive]))


@torch.no_grad()
def encoded(vae: AutoencoderKL, scenes: list[Scene]) -> torch.Tensor:
    """The scenes' latents, (n, 4, 16, 16), encoded once so that no training step has to."""
    batches = [scenes[start : start + 50] for start in range(0, len(scenes), 50)]
    return torch.cat([vae.encode(pictures(b)).latent_dist.mean for b in track(batches, "encoding pictures")])
