"""Train the demo model on pictures made in code and export it in the stock diffusers layout."""

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from scripts.demo_model.denoiser import Denoiser, new_scheduler, train_denoiser
from scripts.demo_model.trainer import load_average
from scripts.demo_model.vae import reconstruction_accuracy, train_vae, trained_vae

STAGES = ("vae", "unet", "export")
SEED = 1
VAE_STEPS = 8_000
UNET_STEPS = 16_000
# The denoiser can only draw what the autoencoder can: below this there is no point in going on.
MIN_RECONSTRUCTION = 0.95


def main() -> None:
    """Run one stage or all; training goes on from its last checkpoint."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    diffusers_logging.set_verbosity_error()
    stages = STAGES if arguments.stage == "all" else (arguments.stage,)
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


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m scripts.demo_model.train unet --work out/demo_model",
    )
    parser.add_argument("stage", nargs="?", choices=(*STAGES, "all"), default="all", help="default %(default)s")
    parser.add_argument("--work", type=Path, default=Path("out/demo_model"), help="folder of the checkpoints")
    parser.add_argument("--output", type=Path, default=Path("models/demo"), help="folder to export to")
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS, help="default %(default)s")
    parser.add_argument("--unet-steps", type=int, default=UNET_STEPS, help="default %(default)s")
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
