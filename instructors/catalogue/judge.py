"""What a file of tensors is, by the names and shapes of its tensors: no suffix and no folder's name is believed."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Shapes = Mapping[str, tuple[int, ...]]

WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl", 2048: "sdxl"}  # of the text that a UNet attends to
REFINER_WIDTH = 1280
BASE_MODELS = {768: "SD 1", 1024: "SD 2", 2048: "SDXL"}  # of a LoRA, by the same
LORA = re.compile(
    r"\.(lora_down|lora_up|lora_A|lora_B)\.weight$|lora(_linear_layer)?\.(down|up)\.weight$"
    r"|\.(lokr|hada|oft)_|\.dora_scale$"
)
LORA_FAMILIES = {"SD 1": "sd1", "SD 2": "sd2", "SDXL": "sdxl", "SD 3": "sd3", "Flux": "flux"}
DENOISERS = {  # a tensor of a transformer's, in the original layout or in diffusers' -> its family; the first counts
    "single_stream_modulation.lin.weight": "flux2",
    "distilled_guidance_layer.in_proj.bias": "chroma",
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": "hunyuan_video",
    "double_stream_blocks.0.block.adaLN_modulation.1.bias": "hidream",
    "double_blocks.0.img_attn.norm.key_norm.scale": "flux",
    "single_transformer_blocks.0.attn.norm_q.weight": "flux",
    "joint_blocks.0.context_block.adaLN_modulation.1.bias": "sd3",
    "transformer_blocks.0.img_mod.1.weight": "qwen_image",
    "double_layers.0.attn.w1q.weight": "auraflow",
    "joint_transformer_blocks.0.attn.to_q.weight": "auraflow",
    "layers.0.adaLN_modulation.0.weight": "z_image",
    "cap_embedder.0.weight": "lumina2",
    "caption_projection.linear_1.weight": "pixart",
    "blocks.0.cross_attn.q_linear.weight": "sana",
    "patchify_proj.weight": "ltx_video",
    "head.modulation": "wan",
    "transformer_blocks.0.attn.add_k_proj.weight": "sd3",
}
VAES = ("first_stage_model.", "vae.")
TEXT_ENCODERS = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")
DENOISER = "model.diffusion_model."
CONTROLNETS = (
    "control_model.", "input_hint_block.0.", "controlnet_cond_embedding.conv_in.", "controlnet_x_embedder.",
    "controlnet_blocks.0.", "lora_controlnet"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """`type` "unknown": of none that is known here. `family` None: its tensors do not tell."""

    type: str
    family: str | None = None
    variants: tuple[str, ...] = ()  # inpainting, refiner, v_prediction, …
    facts: Mapping[str, int] = field(default_factory=dict)  # rank, latent_channels, scale, vectors, …


UNKNOWN = Kind("unknown")


def judge(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Kind:
    """`shapes`: tensor's name -> shape. `metadata`: that of the file."""
    for look in _JUDGES:
        if (found := look(shapes, metadata or {})) is not None:
            return found
    return UNKNOWN


def _lora(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    if "lora_controlnet" in shapes or not any(LORA.search(name) for name in shapes):
        return None
    told = base_model(shapes, metadata)
    family = LORA_FAMILIES[told] if told is not None else _lora_family(shapes)
    ranks = [shape[0] for name, shape in shapes.items() if re.search(r"(down|lora_A)\.weight$", name) and shape]
    return Kind("lora", family, facts={"rank": max(ranks)} if ranks else {})


def base_model(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """What a LoRA was made for: by what the shapes prove; else by what its trainer wrote."""
    for name, shape in shapes.items():
        is_key = re.search(r"attn2[._](processor\.)?to_[kv].*(down|lora_A)\.weight$", name)
        if is_key and len(shape) > 1 and shape[1] in BASE_MODELS:
            return BASE_MODELS[shape[1]]
        if re.search(r"double_blocks|single_transformer_blocks", name):
            return "Flux"
    told = (metadata.get("ss_base_model_version", "") + " " + metadata.get("modelspec.architecture", "")).lower()
    marks = {"xl": "SDXL", "sd_v1": "SD 1", "diffusion-v1": "SD 1", "sd_v2": "SD 2", "diffusion-v2": "SD 2"}
    marks |= {"sd3": "SD 3", "diffusion-3": "SD 3", "flux": "Flux"}
    return next((model for mark, model in marks.items() if mark in told), None)


def _lora_family(shapes: Shapes) -> str | None:
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in shapes):
        return "sdxl"
    if any("joint_blocks" in name or "add_k_proj" in name for name in shapes):
        return "sd3"
    for name, shape in shapes.items():
        if re.search(r"text.*self_attn[._]q_proj.*(down|lora_A)\.weight$", name) and len(shape) > 1:
            return {768: "sd1", 1024: "sd2"}.get(shape[1])
    return None


def _controlnet(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    if not any(name.startswith(CONTROLNETS) for name in shapes):
        return None
    inner = _within(shapes, "control_model.") or shapes
    if any(name.startswith(("controlnet_x_embedder.", "double_blocks.")) for name in inner):
        return Kind("controlnet", "flux")
    if any("add_k_proj" in name or name.startswith(("pos_embed_input.", "joint_blocks.")) for name in inner):
        return Kind("controlnet", "sd3")
    variants = ("union",) if "task_embedding" in inner else ()
    return Kind("controlnet", WIDTHS.get(_context_width(inner) or 0), variants)


def _checkpoint(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """A whole pipeline, or its denoiser alone with the prefix that it has in one."""
    inner = _within(shapes, DENOISER)
    found = denoiser(inner, metadata) if inner else None
    if found is None:
        return None
    whole = any(name.startswith((*VAES, *TEXT_ENCODERS)) for name in shapes)
    family = found.family or _family_by_text_encoder(shapes)
    variants = found.variants
    if "v_prediction" not in variants and "v_pred" in shapes:
        variants = (*variants, "v_prediction")
    return Kind("checkpoint" if whole else "diffusion_model", family, variants, found.facts)


def _family_by_text_encoder(shapes: Shapes) -> str | None:
    """SD 1 has CLIP in the layout of transformers, SD 2 OpenCLIP, SDXL two of them."""
    marks = {"conditioner.embedders.": "sdxl", "cond_stage_model.model.": "sd2", "cond_stage_model.transformer.": "sd1"}
    return next((family for mark, family in marks.items() if any(name.startswith(mark) for name in shapes)), None)


def denoiser(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """`shapes`: without a prefix."""
    for mark, family in DENOISERS.items():
        if mark in shapes:
            return Kind("diffusion_model", family, _transformer_variants(family, shapes))
    first = shapes.get("input_blocks.0.0.weight")
    if first is None and "up_blocks.0.resnets.0.norm1.weight" in shapes:
        first = shapes.get("conv_in.weight")
    if first is None or len(first) != 4:
        return None
    width = _context_width(shapes)
    variants = {5: ("depth",), 7: ("upscaler",), 8: ("pix2pix",), 9: ("inpainting",)}.get(first[1], ())
    if width == REFINER_WIDTH:
        variants = ("refiner", *variants)
    variants = (*variants, *_told_prediction(metadata))
    facts = {"in_channels": first[1], **({"cross_attention_dim": width} if width else {})}
    return Kind("diffusion_model", WIDTHS.get(width or 0), variants, facts)


def _transformer_variants(family: str, shapes: Shapes) -> tuple[str, ...]:
    if family == "sd3":
        return ("3.5",) if any("ln_k" in name or "norm_added_k" in name for name in shapes) else ()
    if family != "flux":
        return ()
    first = shapes.get("img_in.weight") or shapes.get("x_embedder.weight") or (0, 0)
    variants = {384: ("inpainting",), 128: ("control",)}.get(first[-1], ())
    guided = any(name.startswith(("guidance_in.", "time_text_embed.guidance_embedder.")) for name in shapes)
    return variants or (("dev",) if guided else ("schnell",))


def _told_prediction(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What the denoiser predicts, where the file says so: its tensors cannot tell."""
    told = metadata.get("modelspec.prediction_type", "").lower()
    return {"v": ("v_prediction",), "v_prediction": ("v_prediction",), "epsilon": ("epsilon",)}.get(told, ())


def _context_width(shapes: Shapes) -> int | None:
    """Of the text that cross attention reads; None without any."""
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2:
            return shape[1]
    return None


def _vae(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    inner = _within(shapes, "first_stage_model.") or _within(shapes, "vae.") or shapes
    decoder = inner.get("decoder.conv_in.weight")
    known = ("decoder.mid.block_1.norm1.weight", "decoder.mid_block.resnets.0.norm1.weight")
    if decoder is None or len(decoder) != 4 or not any(name in inner for name in known):
        return None
    return Kind("vae", facts={"latent_channels": decoder[1]})


def _encoder(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    for name, shape in shapes.items():
        if name.endswith("vision_model.embeddings.patch_embedding.weight"):
            return Kind("image_encoder", "clip")
        if name.endswith(("token_embedding.weight", "embed_tokens.weight")) and len(shape) == 2:
            marks = (".self_attn.q_proj.weight", ".resblocks.0.attn.in_proj_weight")
            if any(other.endswith(marks) for other in shapes):
                clip = "token_embedding" in name
                return Kind("text_encoder", "clip" if clip else None, facts={"width": shape[1]})
        if name.endswith("encoder.block.0.layer.0.SelfAttention.q.weight") and len(shape) == 2:
            return Kind("text_encoder", "t5", facts={"width": shape[1]})
    return None


def _upscaler(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """ESRGAN in its new and its old layout, SwinIR and its like, and the small one without skips."""
    first = shapes.get("conv_first.weight")
    if first is not None and len(first) == 4 and "body.0.rdb1.conv1.weight" in shapes:
        unshuffled = {12: 2, 48: 4}.get(first[1], 1)
        doubled = 2 ** sum(f"conv_up{number}.weight" in shapes for number in (1, 2, 3))
        return Kind("upscaler", "esrgan", facts={"scale": doubled // unshuffled})
    if "model.0.weight" in shapes and any(".RDB1.conv1.0.weight" in name for name in shapes):
        return Kind("upscaler", "esrgan")
    if first is not None and any("residual_group" in name or ".rstb" in name.lower() for name in shapes):
        return Kind("upscaler", "swinir")
    body = shapes.get("body.0.weight")
    if body is not None and len(body) == 4 and body[1] == 3 and len(shapes.get("body.1.weight", ())) == 1:
        return Kind("upscaler", "compact")
    return None


def _textual_inversion(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    """One vector a token or several, for each text encoder."""
    if not 1 <= len(shapes) <= 2 or any(name.endswith((".weight", ".bias")) for name in shapes):
        return None
    if not all(len(shape) in (1, 2) and shape[-1] in WIDTHS for shape in shapes.values()):
        return None
    vectors = max(shape[0] if len(shape) == 2 else 1 for shape in shapes.values())
    if vectors > 256:
        return None
    widths = {shape[-1] for shape in shapes.values()}
    family = "sdxl" if widths == {768, 1280} else WIDTHS[max(widths)] if len(widths) == 1 else None
    return Kind("textual_inversion", family, facts={"vectors": vectors})


def _within(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


_JUDGES: tuple[Callable[[Shapes, Mapping[str, str]], Kind | None], ...] = (
    _lora, _controlnet, _checkpoint, denoiser, _vae, _encoder, _upscaler, _textual_inversion
)  # fmt: skip
