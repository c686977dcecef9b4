"""A ControlNet in the device's memory, and whether it fits a model."""

from typing import Any

import diffusers
import torch

from instructors.controlnet_files import UNION, family
from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.loading import LoadedComponent, component
from instructors.pipelines.sharing import share_controlnet
from instructors.shelf import ComponentFiles
from instructors.task import Context
from protocol.errors import ModelInvalid

PICTURE_CHANNELS = 3
UNET_SETTINGS = (
    "cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "class_embed_type",
)  # fmt: skip
TRANSFORMER_SETTINGS = (
    "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim", "patch_size",
    "in_channels", "guidance_embeds",
)  # fmt: skip
SUITS = {  # class -> the model's component that it was made of, that one's class, and the settings they share
    "ControlNetModel": ("unet", "UNet2DConditionModel", UNET_SETTINGS),
    UNION: ("unet", "UNet2DConditionModel", UNET_SETTINGS),
    "SD3ControlNetModel": ("transformer", "SD3Transformer2DModel", TRANSFORMER_SETTINGS),
    "FluxControlNetModel": ("transformer", "FluxTransformer2DModel", TRANSFORMER_SETTINGS),
}


def resident(files: ComponentFiles, loaded: LoadedModel, context: Context) -> LoadedComponent:
    """The ControlNet on the context's device, in the model's dtype. Raises ModelInvalid, also where it was made for
    another base model, and OutOfMemory."""
    check_fits(files, loaded)
    kind, dtype = getattr(diffusers, files.class_name), getattr(torch, loaded.dtype)
    net = component("ControlNet", kind, files, dtype, context)
    if files.class_name == "ControlNetModel":
        share_controlnet(net.module, context.padding)
    return net


def check_fits(files: ComponentFiles, loaded: LoadedModel) -> None:
    """Raise ModelInvalid where the ControlNet was made for another base model. Reads no tensor."""
    name, class_name, settings = SUITS[files.class_name]
    base = loaded.component(name)
    if type(base).__name__ != class_name:
        raise ModelInvalid(
            f"This ControlNet is for models of the family {family(files)}, and the model is {loaded.model.family}."
        )
    theirs: dict[str, Any] = dict(files.config)
    ours = {setting: base.config.get(setting) for setting in settings}
    if name == "unet":
        ours["in_channels"] = base.config.out_channels  # of the latents: a model for inpainting sees more
        ours["conditioning_channels"] = PICTURE_CHANNELS
        ours["conditioning_embedding_out_channels"] = loaded.scale_factor
        sizes = theirs.get("conditioning_embedding_out_channels")
        theirs["conditioning_embedding_out_channels"] = 2 ** (len(sizes) - 1) if isinstance(sizes, list) else None
    for setting, own in ours.items():
        told = theirs.get(setting)
        if told is not None and told != (list(own) if isinstance(own, tuple) else own):
            raise ModelInvalid(
                f"This ControlNet was made for another base model: its {setting} is {str(told)[:60]}, and the model "
                f"wants {own}."
            )
