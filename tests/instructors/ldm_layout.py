"""Pipelines of diffusers as checkpoints in one file, in the layout that SD 1, SD 2 and SDXL were published in."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}  # fmt: skip

Tensors = dict[str, Any]


def checkpoint(components: Mapping[str, Any], is_sd2: bool = False) -> Tensors:
    """`components`: those of a pipeline, by name. The text encoder of SD 2 and the second one of SDXL are written in
    OpenCLIP's layout."""
    found = {f"model.diffusion_model.{name}": tensor for name, tensor in unet(components["unet"]).items()}
    found |= {f"first_stage_model.{name}": tensor for name, tensor in vae(components["vae"]).items()}
    if is_sd2:
        text = open_clip(components["text_encoder"])
        return found | {f"cond_stage_model.model.{name}": tensor for name, tensor in text.items()}
    first = clip(components["text_encoder"])
    if "text_encoder_2" not in components:
        return found | {f"cond_stage_model.transformer.{name}": tensor for name, tensor in first.items()}
    second = open_clip(components["text_encoder_2"])
    found |= {f"conditioner.embedders.0.transformer.{name}": tensor for name, tensor in first.items()}
    return found | {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}


def unet(module: Any) -> Tensors:
    return {_unet_name(name, module.config): tensor for name, tensor in module.state_dict().items()}


def _unet_name(name: str, config: Any) -> str:
    for ours, theirs in UNET.items():
        if name.startswith(f"{ours}."):
            new = theirs + name.removeprefix(ours)
            return _in_resnet(new) if "resnets" in ours else new
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    assert match, name
    way, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    layers = config.layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * layers}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if "CrossAttn" in config.up_block_types[block] else 1
        return f"output_blocks.{block * layers + layers - 1}.{place}.{rest}"
    where = f"input_blocks.{1 + block * layers + index}" if way == "down" else f"output_blocks.{block * layers + index}"
    return _in_resnet(f"{where}.0.{rest}") if kind == "resnets" else f"{where}.1.{rest}"


def _in_resnet(name: str) -> str:
    match = re.fullmatch(r"(.*\.)(\w+)\.(weight|bias)", name)
    return f"{match[1]}{RESNET[match[2]]}.{match[3]}" if match and match[2] in RESNET else name


def vae(module: Any) -> Tensors:
    blocks = len(module.config.block_out_channels)
    found: Tensors = {}
    for name, tensor in module.state_dict().items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in new:
            part, _, rest = new.partition("mid_block.attentions.0.")
            ours = next(ours for ours in ATTENTION if rest.startswith(f"{ours}."))
            new = f"{part}mid.attn_1.{ATTENTION[ours]}{rest.removeprefix(ours)}"
            if ours != "group_norm" and tensor.dim() == 2:
                tensor = tensor[:, :, None, None]  # they are convolutions there
        found[new] = tensor
    return found


def clip(module: Any) -> Tensors:
    return {f"text_model.{_bare(name)}": tensor for name, tensor in module.state_dict().items()}


def open_clip(module: Any) -> Tensors:
    import torch

    found: Tensors = {}
    state = {_bare(name): tensor for name, tensor in module.state_dict().items()}
    for name, tensor in state.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if match and match[2].startswith("self_attn.") and match[2] != "self_attn.out_proj":
            parts = [state[f"encoder.layers.{match[1]}.self_attn.{part}_proj.{match[3]}"] for part in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(parts)
        elif match:
            found[f"transformer.resblocks.{match[1]}.{OPEN_CLIP[match[2]]}.{match[3]}"] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif name == "embeddings.position_embedding.weight":
            found["positional_embedding"] = tensor
        else:
            names = {"embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
            stem, _, kind = name.rpartition(".")
            found[f"{names[stem]}.{kind}"] = tensor
    return found


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def write(pipeline: Any, file: Path, is_sd2: bool = False) -> Path:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    found = checkpoint(pipeline.components, is_sd2)
    save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, file)
    return file


def write_configs(folder: Path, configs: Path) -> Path:
    """Of a pipeline's folder, without its weights."""
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".txt", ".model"):
            target = configs / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    assert json.loads((configs / "model_index.json").read_bytes())
    return configs
