"""LoRA files of random weights for the tiny pipelines, written in each layout as its trainers write it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Layers = dict[tuple[str, str], tuple[Any, Any]]  # (component, layer) -> (down, up)

UNET_LAYERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2",
    "up_blocks.0.attentions.0.proj_in",
)
UNET_CONVS = (
    "conv_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "mid_block.resnets.1.conv2",
    "up_blocks.1.resnets.0.conv_shortcut",
)
TEXT_LAYERS = (
    "encoder.layers.0.self_attn.q_proj",
    "encoder.layers.1.self_attn.out_proj",
    "encoder.layers.1.mlp.fc1",
)


def layers(
    pipeline: Any,
    unet: Iterable[str] = UNET_LAYERS + UNET_CONVS,
    text: Iterable[str] = TEXT_LAYERS,
    rank: int = 4,
    seed: int = 1,
) -> Layers:
    """Random halves for layers of the UNet and of every text encoder, strong enough to show in a picture."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    found: Layers = {}
    parts = [("unet", name) for name in unet]
    parts += [(part, name) for part in ("text_encoder", "text_encoder_2") if hasattr(pipeline, part) for name in text]
    for component, name in parts:
        part = getattr(pipeline, component)
        module = getattr(part, "text_model", part).get_submodule(name)
        shape = (module.in_channels, *module.kernel_size) if isinstance(module, nn.Conv2d) else (module.in_features,)
        out = module.weight.shape[0]
        down = torch.randn(rank, *shape, generator=generator) * 0.3
        up = torch.randn(out, rank, *([1, 1] if len(shape) == 3 else []), generator=generator) * 0.3
        found[component, name] = (down, up)
    return found


def kohya(found: Layers, alpha: float = 2.0) -> dict[str, Any]:
    """`lora_unet_..._to_q.lora_down.weight`, with an alpha for each layer."""
    import torch

    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if any(component == "text_encoder_2" for component, _ in found):
        prefixes["text_encoder"] = "lora_te1"
    tensors: dict[str, Any] = {}
    for (component, name), (down, up) in found.items():
        path = name if component == "unet" else f"text_model.{name}"
        stem = f"{prefixes[component]}_{path.replace('.', '_')}"
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    return tensors


def diffusers(found: Layers) -> dict[str, Any]:
    """`unet....attn1.processor.to_q_lora.down.weight`: diffusers' own layout of before peft."""
    tensors: dict[str, Any] = {}
    for (component, name), (down, up) in found.items():
        if component == "unet":
            stem = f"unet.{_in_processor(name)}"
        else:
            stem = f"{component}.text_model.{name}.lora_linear_layer"
        tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return tensors


def _in_processor(name: str) -> str:
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        if name.endswith(f".{projection}"):
            return f"{name.removesuffix('.' + projection)}.processor.{projection.removesuffix('.0')}_lora"
    return f"{name}.lora"


def peft(found: Layers) -> dict[str, Any]:
    """`unet....to_q.lora_A.weight`: what diffusers writes today."""
    tensors: dict[str, Any] = {}
    for (component, name), (down, up) in found.items():
        path = name if component == "unet" else f"text_model.{name}"
        tensors |= {f"{component}.{path}.lora_A.weight": down, f"{component}.{path}.lora_B.weight": up}
    return tensors


LAYOUTS: dict[str, Callable[[Layers], dict[str, Any]]] = {"kohya": kohya, "diffusers": diffusers, "peft": peft}


def write(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path
