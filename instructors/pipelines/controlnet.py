"""A ControlNet in the device's memory, and whether it fits a model."""

from dataclasses import dataclass
from typing import Any

import diffusers
import structlog
import torch

from instructors.controlnet_files import UNION, ControlNetFiles
from instructors.memory import is_out_of_memory
from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.loading import Part
from instructors.pipelines.sharing import share_controlnet
from instructors.task import Context
from protocol.errors import AtelierError, ModelInvalid

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

log = structlog.get_logger("instructors.controlnet")


@dataclass(slots=True)
class LoadedControlNet:
    """`name`, `nbytes` and `parts` are for the worker's residency."""

    name: str
    content_hash: str
    is_union: bool  # takes several control pictures, each with its kind
    module: Any
    parts: dict[str, Part]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


def resident(files: ControlNetFiles, loaded: LoadedModel, context: Context) -> LoadedControlNet:
    """The ControlNet on the context's device, in the model's dtype; it stays there until the job ends, at least.

    Raises ModelInvalid, also where it was made for another base model, and OutOfMemory.
    """
    check_fits(files, loaded)
    dtype = getattr(torch, loaded.dtype)
    content_hash, _, _ = context.models.inspect(files.path)
    key = f"controlnet {content_hash} {loaded.dtype}"  # a folder of another name may hold the same
    return context.resident(
        key, files.elements * dtype.itemsize, lambda: load(files, content_hash, key, dtype, context)
    )


def load(files: ControlNetFiles, content_hash: str, key: str, dtype: torch.dtype, context: Context) -> LoadedControlNet:
    """Raises ModelInvalid; running out of memory passes through."""
    try:
        module, report = getattr(diffusers, files.class_name).from_pretrained(
            files.path,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            variant=_variant(files),
            output_loading_info=True,
        )
        if wrong := [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]:
            raise ModelInvalid(f"The weights and the config do not fit together: {str(wrong[0])[:100]!r}.")
        module = module.to(context.device).eval().requires_grad_(False)
    except AtelierError:
        raise
    except Exception as error:  # the library raises of every kind on files that do not fit together
        if is_out_of_memory(error):
            raise
        log.warning("not usable", controlnet_id=files.controlnet_id, error=repr(error))
        raise ModelInvalid("This ControlNet's files do not make a ControlNet.") from None
    if files.class_name == "ControlNetModel":
        share_controlnet(module, context.padding)
    nbytes = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    parts = {key: Part(module, nbytes)}
    return LoadedControlNet(files.resident_name, content_hash, files.class_name == UNION, module, parts)


def check_fits(files: ControlNetFiles, loaded: LoadedModel) -> None:
    """Raise ModelInvalid where the ControlNet was made for another base model. Reads no tensor."""
    name, class_name, settings = SUITS[files.class_name]
    base = loaded.component(name)
    if type(base).__name__ != class_name:
        raise ModelInvalid(
            f"This ControlNet is for models of the family {files.family}, and the model is {loaded.model.family}."
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


def _variant(files: ControlNetFiles) -> str | None:
    weights = [file.name for file in files.path.glob("*.safetensors")]
    return "fp16" if weights and all(".fp16." in name for name in weights) else None
