"""Train the demo model, its ControlNet and its LoRA on pictures made in code; export them in stock layouts."""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from scripts.demo_model.controlnet import CONTROLNET, export_controlnet, train_controlnet
from scripts.demo_model.denoiser import Denoiser, new_scheduler, train_denoiser
from scripts.demo_model.lora import LORA, export_lora, train_lora
from scripts.demo_model.trainer import load_average
from scripts.demo_model.vae import reconstruction_accuracy, train_vae, trained_vae

STAGES = ("vae", "unet", "export", "controlnet", "lora")
GROUPS = {"base": STAGES[:3], "addons": STAGES[3:], "all": STAGES}
SEED = 1
VAE_STEPS = 8_000
UNET_STEPS = 16_000
CONTROLNET_STEPS = 8_000
LORA_STEPS = 7_500
# The denoiser can only draw what the autoencoder can: below this there is no point in going on.
MIN_RECONSTRUCTION = 0.95


def main() -> None:
    """Run one stage or several; training goes on from its last checkpoint."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    diffusers_logging.set_verbosity_error()
    stages = GROUPS.get(arguments.stage, (arguments.stage,))
    if "vae" in stages:
        train_vae(arguments.work, seed=arguments.seed, steps=arguments.vae_steps)
    if "unet" in stages:
        vae = trained_vae(arguments.work)
        accuracy = reconstruction_accuracy(vae, count=500)
        print("reconstructions:", json.dumps(accuracy))
        if accuracy["kind"] < MIN_RECONSTRUCTION:
            raise SystemExit("the autoencoder is not good enough yet: train it for more steps")
        train_denoiser(arguments.work, vae, seed=arguments.seed, steps=arguments.unet_steps)
    if "export" in stages:
        export(arguments.work, arguments.output)
    if "controlnet" in stages:
        steps = arguments.controlnet_steps
        train_controlnet(arguments.work, arguments.output, seed=arguments.seed, steps=steps)
        export_controlnet(arguments.work, arguments.output, arguments.output.parent / CONTROLNET)
    if "lora" in stages:
        train_lora(arguments.work, arguments.output, seed=arguments.seed, steps=arguments.lora_steps)
        export_lora(arguments.work, arguments.output, arguments.output.parent / LORA)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m scripts.demo_model.train unet --work out/demo_model",
    )
    parser.add_argument("stage", nargs="?", choices=(*STAGES, *GROUPS), default="all", help="default %(default)s")
    parser.add_argument("--work", type=Path, default=Path("out/demo_model"), help="folder of the checkpoints")
    parser.add_argument("--output", type=Path, default=Path("models/demo"), help="folder to export to")
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS, help="default %(default)s")
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS, help="default %(default)s")
    parser.add_argument("--controlnet-steps", type=int, default=CONTROLNET_STEPS, help="default %(default)s")
    parser.add_argument("--lora-steps", type=int, default=LORA_STEPS, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default %(default)s")
    return parser.parse_args()


def export(folder: Path, output: Path) -> None:
    """Write the averaged weights as a `StableDiffusionPipeline` in float16 safetensors."""
    denoiser = Denoiser()
    load_average(denoiser, folder / "denoiser.safetensors")
    pipeline = StableDiffusionPipeline(
        vae=trained_vae(folder),
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(output, safe_serialization=True)


if __name__ == "__main__":
    main()
