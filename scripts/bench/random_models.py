"""Models of the usual sizes with random weights: nothing to look at, but every step costs what the real one's costs."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
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


def mlp(path: Path, sizes: Sequence[int] = (128, 512, 512, 10)) -> Path:
    """Save an ONNX network: `x` float32 [batch, first] -> `y` float32 [batch, last], with ReLU between the layers."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, at = [], [], "x"
    for layer, (wide, next_wide) in enumerate(pairwise(sizes)):
        last = layer == len(sizes) - 2
        matrix = (rng.standard_normal((wide, next_wide)) / wide**0.5).astype(np.float32)
        weights += [numpy_helper.from_array(matrix, f"w{layer}")]
        weights += [numpy_helper.from_array(rng.standard_normal(next_wide).astype(np.float32) / 10, f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [at, f"w{layer}", f"b{layer}"], ["y" if last else f"h{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [at := f"r{layer}"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", sizes[i]]) for n, i in (("x", 0), ("y", -1))]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path
