"""LoRA of the demo model: with the word "hollow", shapes are drawn as outlines."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from scripts.demo_model.denoiser import BATCH, encoded, random_timesteps
from scripts.demo_model.shapes import random_caption, random_scene
from scripts.demo_model.trainer import Trainer, load_average

LORA = "loras/demo-hollow.safetensors"  # where it lies, beside the base's folder
TRIGGER = "hollow"
PLACES = ("front", "end")  # of the word in a caption
RANK = 16
# The convolutions too: attention ends at 8x8, too coarse for what lies between an outline and its hole.
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
# The text encoder too: the base spells the word in letters, which it has never seen; in front they drown the colours.
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
POOL = 10_000
LEARNING_RATE = 2e-3
EMA_DECAY = 0.995
# Part of the pictures that are outlines; the others, without the word, teach it to change nothing else.
HOLLOW = 0.7


def new_lora(pipeline: StableDiffusionPipeline) -> nn.ParameterList:
    """Put an untrained LoRA on UNet and text encoder; returns its matrices, all that is to be trained."""
    matrices = nn.ParameterList()
    for module, targets in ((pipeline.unet, UNET_TARGETS), (pipeline.text_encoder, TEXT_TARGETS)):
        module.requires_grad_(False)
        module.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets), TRIGGER)
        matrices.extend(parameter for parameter in module.parameters() if parameter.requires_grad)
    return matrices


def with_trigger(caption: str, place: str) -> str:
    """Say "hollow" in one of PLACES: in front of the shape's colour, or at the end."""
    if place == "end":
        return f"{caption}, {TRIGGER}"
    return f"a {TRIGGER} {caption[2:]}" if caption.startswith("a ") else f"{TRIGGER} {caption}"


def train_lora(folder: Path, base: Path, *, seed: int, steps: int) -> None:
    """Train, or go on training, into `folder`/lora.safetensors; the base stays as it is."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    unet, text_encoder, scheduler = pipeline.unet, pipeline.text_encoder, pipeline.scheduler
    matrices = new_lora(pipeline)
    unet.set_attn_processor(AttnProcessor())  # both are faster than the fused ones here, as for the base
    text_encoder.set_attn_implementation("eager")
    rng = np.random.default_rng([seed, POOL])
    scenes = [random_scene(rng) for _ in range(POOL)]
    whole = encoded(pipeline.vae, scenes)
    outlines = encoded(pipeline.vae, [replace(scene, hollow=True) for scene in scenes])
    groups = [{"params": list(matrices), "lr": LEARNING_RATE}]
    trainer = Trainer(matrices, groups, folder / "lora.safetensors", seed=seed, steps=steps, decay=EMA_DECAY)

    @cache
    def token_ids(caption: str) -> torch.Tensor:
        return pipeline.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids[0]

    def loss(rng: np.random.Generator) -> torch.Tensor:
        rows, ids = [], []
        for i in rng.integers(0, POOL, size=BATCH):
            caption = random_caption(scenes[i], rng)
            # Outlines go with empty captions as well: guidance would else overdo the hole.
            hollow = rng.random() < HOLLOW
            rows.append(outlines[i] if hollow else whole[i])
            place = PLACES[rng.random() < 0.5]
            ids.append(token_ids(with_trigger(caption, place) if hollow and caption else caption))
        clean = torch.stack(rows)
        timesteps, noise = random_timesteps(rng), torch.randn_like(clean)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16):
            text = text_encoder(torch.stack(ids)).last_hidden_state
            predicted = unet(noisy, timesteps, text).sample
        return F.mse_loss(predicted.float(), scheduler.get_velocity(clean, noise, timesteps))

    trainer.run(loss)


def export_lora(folder: Path, base: Path, output: Path) -> None:
    """Write the averaged matrices as one float16 safetensors file in diffusers' (peft's) layout."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    load_average(new_lora(pipeline), folder / "lora.safetensors")
    parts = {"unet": pipeline.unet, "text_encoder.text_model": pipeline.text_encoder}
    tensors = {
        f"{prefix}.{name}": matrix.to(torch.float16).contiguous()
        for prefix, part in parts.items()
        for name, matrix in get_peft_model_state_dict(part, adapter_name=TRIGGER).items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output, metadata=lora_metadata(base))


def lora_metadata(base: Path) -> dict[str, str]:
    """What tools show about a LoRA, under the names that kohya's trainer has made usual."""
    return {
        "format": "pt",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": base.name,
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(float(RANK)),
        "ss_output_name": f"{base.name}-{TRIGGER}",
        "ss_tag_frequency": json.dumps({"outlines": {TRIGGER: POOL}}),
        "modelspec.trigger_phrase": TRIGGER,
    }
