"""ControlNets of random weights for the tiny pipelines, whose last convolutions are not zero as in training's first
step."""

from pathlib import Path
from typing import Any


def build(folder: Path, model: Path, seed: int = 1, kind: str = "ControlNetModel") -> Path:
    """Save one for a model of UNets, in diffusers layout."""
    import torch
    from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    options: dict[str, Any] = {"conditioning_embedding_out_channels": (16, 32)}  # half the size, as the tiny VAE's
    net: Any
    if kind == "ControlNetModel":
        net = ControlNetModel.from_unet(unet, **options)
    else:
        net = ControlNetUnionModel(
            **_shared_settings(unet),
            **options,
            num_control_type=8,
            num_trans_channel=8,
            num_trans_head=2,
            num_proj_channel=8,
        )
    for name in ("controlnet_down_blocks", "controlnet_mid_block"):
        for parameter in getattr(net, name).parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.5)
    net.save_pretrained(folder)
    return folder


def _shared_settings(unet: Any) -> dict[str, Any]:
    import inspect

    from diffusers import ControlNetUnionModel

    known = inspect.signature(ControlNetUnionModel.__init__).parameters
    settings = {name: value for name, value in unet.config.items() if name in known}
    return settings | {"in_channels": unet.config.out_channels}
