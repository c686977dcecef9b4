"""Which modules of a pipeline several pictures share, family by family. What is not named here is not shared."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import structlog
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from instructors.pipelines import streams
from instructors.pipelines.lanes import Adapters, Call, SharedForward, Sharing, over_tensors
from instructors.pipelines.lora import LoraBase, mix_key
from instructors.pipelines.onnx_components import OnnxUNet, OnnxVae
from instructors.task import Padding

TEXT_ROWS_MAX = 32
TEXT_CACHE_BYTES = 128 * 1024 * 1024
DECODE_LATENTS = 4 * 64 * 64  # latent pixels in one decode: four pictures of 512 x 512, one of 1024 x 1024
DECODE_ROWS_MAX = 16

UNET = Sharing(
    per_row={"timestep": ()},
    optional=frozenset({"down_block_additional_residuals", "mid_block_additional_residual"}),
    ignored=frozenset({"cross_attention_kwargs"}),  # of LoRAs, which have a way of their own
)
CONTROLNET = Sharing(per_row={"timestep": (), "conditioning_scale": (1, 1, 1)})
DECODE = Sharing(ignored=frozenset({"generator"}))  # this family's decoder draws nothing
TEXT = Sharing()

log = structlog.get_logger("instructors.sharing")


class TextForward(SharedForward):
    """A text encoder's forward, with a memory: the same text with the same LoRAs is encoded once."""

    def __init__(self, name: str, forward: Any, padding: Padding, adapters: Adapters) -> None:
        super().__init__(forward, TEXT, padding, adapters)
        self._name = name  # of the component
        self._known: OrderedDict[Any, tuple[Any, int, bool]] = OrderedDict()  # -> (result, bytes, exact)
        self._nbytes = 0

    def rows_max(self, call: Call) -> int:
        return TEXT_ROWS_MAX

    def _wait(self, call: Call, key: Hashable) -> Any:
        text = (
            key,
            mix_key(self._name, call.mix),
            tuple(tensor.cpu().numpy().tobytes() for tensor in call.tensors.values()),
        )
        known = self._known.get(text)
        if known is not None and (known[2] or not streams.alone()):  # alone, a picture equals stock to the last bit
            self._known.move_to_end(text)
            return known[0]
        result = super()._wait(call, key)
        own = over_tensors(torch.clone, result)  # a few rows of a forward would keep all of it
        self._remember(text, own, call.exact)
        return own

    def forget(self) -> None:
        """Let go of all results."""
        self._known.clear()
        self._nbytes = 0

    def _remember(self, text: Hashable, result: Any, exact: bool) -> None:
        before = self._known.pop(text, None)
        nbytes = _nbytes(result)
        self._known[text] = (result, nbytes, exact)
        self._nbytes += nbytes - (before[1] if before else 0)
        while self._nbytes > TEXT_CACHE_BYTES:
            _, (_, freed, _) = self._known.popitem(last=False)
            self._nbytes -= freed


class DecodeForward(SharedForward):
    """The VAE's decoder. In half precision some pictures overflow: those are decoded again in full."""

    def __init__(self, vae: Any, padding: Padding) -> None:
        super().__init__(vae.decode, DECODE, padding)
        self._vae = vae

    def rows_max(self, call: Call) -> int:
        height, width = call.tensors["z"].shape[-2:]
        return max(1, min(DECODE_ROWS_MAX, DECODE_LATENTS // (height * width)))

    def fixed_rows(self, call: Call) -> int | None:
        """No more than fit: filling up a decode of large pictures would take several times the memory of one."""
        fixed_rows = super().fixed_rows(call)
        return None if fixed_rows is None else min(fixed_rows, self.rows_max(call))

    def _invoke(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._vae.dtype != torch.float16:
            return self._forward(z, *args, **kwargs)
        if self._vae.config.force_upcast:
            return self._in_full(z, *args, **kwargs)
        result = self._forward(z, *args, **kwargs)
        damaged = _damaged(result[0])
        if not bool(damaged.any()):
            return result
        log.info("pictures overflowed: decoding them again in float32", pictures=int(damaged.sum()))
        full = self._in_full(z, *args, **kwargs)[0].half()  # all, for a row's result depends on how many there are
        return (torch.where(damaged.view(-1, 1, 1, 1), full, result[0]),)

    def _in_full(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._vae.to(torch.float32)
        try:
            return self._forward(z.float(), *args, **kwargs)
        finally:
            self._vae.to(torch.float16)


def share(pipeline: Any, padding: Padding) -> bool:
    """Make the pipeline's modules wait for company when they are called within a stream. False: its family has no
    lanes, and it runs as it is."""
    if type(pipeline.components.get("unet")) not in (UNet2DConditionModel, OnnxUNet):
        return False
    if type(pipeline.components.get("vae")) not in (AutoencoderKL, OnnxVae):
        return False
    unet = pipeline.unet
    adapters = _adapters("unet", unet, padding)
    _share_forward(unet, lambda forward: SharedForward(forward, UNET, padding, adapters))
    for name in ("text_encoder", "text_encoder_2"):
        encoder = pipeline.components.get(name)
        if isinstance(encoder, CLIPTextModel | CLIPTextModelWithProjection):
            adapters = _adapters(name, encoder, padding)
            _share_forward(encoder, partial(TextForward, name, padding=padding, adapters=adapters))
    share_decode(pipeline.vae, padding)
    return True


def share_decode(vae: AutoencoderKL, padding: Padding) -> None:
    """The same for a VAE's decoder."""
    if not isinstance(vae.decode, DecodeForward):
        vae.decode = DecodeForward(vae, padding)


def share_controlnet(controlnet: ControlNetModel, padding: Padding) -> None:
    """The same for a ControlNet."""
    _share_forward(controlnet, lambda forward: SharedForward(forward, CONTROLNET, padding))


def forget_results(module: Any) -> None:
    """Let go of what a shared module remembers, which would stay on the device that the module leaves."""
    if isinstance(module.forward, TextForward):
        module.forward.forget()


def _adapters(name: str, module: Any, padding: Padding) -> Adapters:
    """Of this module alone: it may outlive the model that it came with."""
    base = LoraBase({name: module}, str(module.device), module.dtype)
    return lambda mixes: base.rows(name, mixes, reproducible=padding.fixed_rows is not None)


def _share_forward(module: Any, make: Callable[[Any], SharedForward]) -> None:
    if not isinstance(module.forward, SharedForward):  # a component may belong to several models
        module.forward = make(module.forward)


def _damaged(images: torch.Tensor) -> torch.Tensor:
    """[rows]: which pictures are black all over or hold values that are not numbers."""
    flat = images.flatten(1)
    return ~(torch.isfinite(flat).all(1) & (flat.amax(1) > -1))


def _nbytes(result: Any) -> int:
    if isinstance(result, torch.Tensor):
        return result.nbytes
    if isinstance(result, dict):
        return sum(_nbytes(item) for item in result.values())
    return sum(_nbytes(item) for item in result) if isinstance(result, list | tuple) else 0
