"""Models of the usual sizes with random weights: nothing to look at, but every step costs what the real one's costs."""

from functools import cache
from pathlib import Path
from typing import Any

TOKENIZER = Path(__file__).parents[2] / "models" / "demo" / "tokenizer"
SIZES = {"sd15": 512, "sdxl": 1024}  # pixels of their own size


def build(folder: Path, name: str, half: bool) -> Path:
    """Save one in diffusers layout; `half`: its weights take two bytes each."""
    import torch

    torch.manual_seed(0)
    pipeline = {"sd15": _sd15, "sdxl": _sdxl}[name]()
    if half:
        pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    return folder


def _sd15() -> Any:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # its other defaults are this model's
    return StableDiffusionPipeline(
        vae=_vae(512, 0.18215),
        text_encoder=_text_encoder(CLIPTextModel, 768, 12, 12),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(1024, 0.13025),
        text_encoder=_text_encoder(CLIPTextModel, 768, 12, 12),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, 1280, 32, 20),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=_scheduler(),
    )


@cache
def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER)


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _vae(side: int, scaling_factor: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=side,
        scaling_factor=scaling_factor,
        force_upcast=False,
    )


def _text_encoder(kind: Any, width: int, layers: int, heads: int) -> Any:
    from transformers import CLIPTextConfig

    tokens = tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
        )
    )
