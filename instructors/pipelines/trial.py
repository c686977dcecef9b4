"""A model tried out: loaded, and run once for next to nothing, to see that numbers come of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from instructors.catalogue.target import Target
from instructors.pictures import Plan
from instructors.pipelines import loading
from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.streams import Stream
from instructors.task import Context, step_units
from protocol.errors import ModelInvalid

SIDE = 64  # pixels, or the next size that the model can make
PROMPT = "a red circle"


def can(target: Target) -> bool:
    """Whether such a thing runs by itself."""
    return target.content.type in ("pipeline", "checkpoint", "onnx")


def run(target: Target, model_id: str, context: Context, facts: dict[str, Any]) -> Iterator[None]:
    """Gives way after each quantum. Raises what loading and running raise, and ModelInvalid where no numbers come of
    it. `facts` is filled with what was done."""
    if target.content.type == "onnx":
        yield from _predict(model_id, context, facts)
    else:
        yield from _paint(loading.resident(model_id, context), context, facts)


def _paint(loaded: LoadedModel, context: Context, facts: dict[str, Any]) -> Iterator[None]:
    """One step and a decode."""
    plan = _plan(loaded)
    _, scheduler = loaded.schedulers.get(None, 1, 0, None)
    with np.errstate(invalid="ignore"):  # what is no number becomes black, and is found below
        picture = Stream(lambda: loaded.generate(plan, scheduler, 0, lambda *_: context.quantum()))
    try:
        while not picture.done:
            yield
            step_units([picture])
            if picture.error is not None:
                raise picture.error
        made = picture.value
    finally:
        picture.close()
    if np.asarray(made).std() == 0:
        raise ModelInvalid("A step with it makes a picture of one colour: its VAE makes values that are not numbers.")
    facts.update(ran="one step", width=made.width, height=made.height, dtype=loaded.dtype)


def _plan(loaded: LoadedModel) -> Plan:
    side = -(-SIDE // loaded.size_multiple) * loaded.size_multiple
    arguments = {"prompt": PROMPT, "num_inference_steps": 1, "width": side, "height": side}
    if not loaded.model.only_inpaints:
        return Plan("text2img", arguments)
    grey, everything = Image.new("RGB", (side, side), "grey"), Image.new("L", (side, side), 255)
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
