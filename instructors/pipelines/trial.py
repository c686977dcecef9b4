"""A model tried out: loaded, and run once for next to nothing, to see that numbers come of it."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from instructors.catalogue.target import Target
from instructors.pictures import Plan
from instructors.pipelines import loading, vae
from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.streams import Stream
from instructors.task import Context, step_units
from protocol.errors import ModelInvalid

SIDE = 64  # pixels, or the next size that the model can make
LATENTS = 8  # a side, of a decode
PROMPT = "a red circle"


def can(target: Target) -> bool:
    """Whether such a thing runs by itself."""
    return target.content.type in ("pipeline", "checkpoint", "onnx", "vae")


def run(target: Target, model_id: str, context: Context, facts: dict[str, Any]) -> Iterator[None]:
    """Gives way after each quantum. Raises what loading and running raise, and ModelInvalid where no numbers come of
    it. `facts` is filled with what was done."""
    if target.content.type == "onnx":
        yield from _predict(model_id, context, facts)
    elif target.content.type == "vae":
        yield from _decode(model_id, context, facts)
    else:
        yield from _paint(loading.resident(model_id, context), context, facts)


def _paint(loaded: LoadedModel, context: Context, facts: dict[str, Any]) -> Iterator[None]:
    """One step and a decode."""
    side = -(-SIDE // loaded.size_multiple) * loaded.size_multiple
    wanted = plan(loaded, side, side, 1)
    _, scheduler = loaded.schedulers.get(None, 1, 0, None)
    with np.errstate(invalid="ignore"):  # what is no number becomes black, and is found below
        picture = Stream(lambda: loaded.generate(wanted, scheduler, 0, lambda *_: context.quantum()))
    made = yield from _through(picture)
    if np.asarray(made).std() == 0:
        raise ModelInvalid("A step with it makes a picture of one colour: its VAE makes values that are not numbers.")
    facts.update(ran="one step", width=made.width, height=made.height, dtype=loaded.dtype)


def _decode(vae_id: str, context: Context, facts: dict[str, Any]) -> Iterator[None]:
    """A picture of nothing, in float32."""
    files = vae.SHELF.find(vae_id, context.models)
    module = loading.component("VAE", AutoencoderKL, files, torch.float32, context).module
    latents = torch.zeros(1, module.config.latent_channels, LATENTS, LATENTS, device=context.device)
    made = yield from _through(Stream(lambda: module.decode(latents, return_dict=False)[0]))
    if not bool(torch.isfinite(made).all()):
        raise ModelInvalid("It makes values that are not numbers of latents that are zero.")
    facts.update(ran="one decode", width=made.shape[-1], height=made.shape[-2])


def _through(stream: Stream) -> Generator[None, None, Any]:
    """What it returns, quantum by quantum."""
    try:
        while not stream.done:
            yield
            step_units([stream])
            if stream.error is not None:
                raise stream.error
        return stream.value
    finally:
        stream.close()


def plan(loaded: LoadedModel, width: int, height: int, steps: int) -> Plan:
    """A picture of no interest, as this model can make it."""
    arguments = {"prompt": PROMPT, "num_inference_steps": steps, "width": width, "height": height}
    if not loaded.model.only_inpaints:
        return Plan("text2img", arguments)
    grey, everything = Image.new("RGB", (width, height), "grey"), Image.new("L", (width, height), 255)
    return Plan("inpainting", {**arguments, "image": grey, "mask_image": everything, "strength": 1.0})


def _predict(model_id: str, context: Context, facts: dict[str, Any]) -> Iterator[None]:
    """One run with zeros."""
    from instructors.pipelines.onnx.loading import spec_of, zeros
    from instructors.pipelines.onnx.runner import Runner

    runner = Runner.start(spec_of(context.models.onnx(model_id), context))
    try:
        yield
        _check_finite(runner.run({info.name: zeros(info) for info in runner.facts.inputs}))
        facts.update(ran="one inference", providers=list(runner.facts.providers), load_ms=round(runner.facts.load_ms))
    finally:
        runner.close()


def _check_finite(outputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
    for name, array in outputs.items():
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise ModelInvalid(f"Its output {name[:100]!r} for zeros holds values that are not numbers.")
