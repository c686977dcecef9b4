"""Pictures to change, and the two ways of changing them that must agree: the task's, and the stock pipeline's."""

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from instructors.pipelines.streams import BEGINNING, Stream
from instructors.registry import Registry
from instructors.task import Blob, Result, step_units
from tests.instructors.conftest import Desk, files

BOX = (8, 8, 24, 24)  # of the mask that `box` makes


def noise(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box(width: int = 32, height: int = 32, where: tuple[int, int, int, int] = BOX) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, where)
    return mask


def file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def open_image(raw: bytes) -> Image.Image:
    return Image.open(io.BytesIO(raw)).convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest of any channel of any pixel."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def make(registry: Registry, desk: Desk, action: str, pictures: Sequence[Image.Image | bytes], **data: Any) -> Any:
    """The task of a request with these attachments: the image, and the mask where there is one."""
    raws = [file(picture) if isinstance(picture, Image.Image) else picture for picture in pictures]
    desk.blobs = [Blob("image/png", raw) for raw in raws]
    names = ("image", "mask_image")[: len(raws)]
    refs: dict[str, Any] = {name: {"attachment": index} for index, name in enumerate(names)}
    return registry.make_task(
        f"inference.{action}", {"prompt": "a red circle", "steps": 3, "seed": 1, **refs, **data}, desk
    )


def run(registry: Registry, desk: Desk, action: str, pictures: Sequence[Image.Image | bytes], **data: Any) -> Result:
    return finish(make(registry, desk, action, pictures, **data))


def finish(task: Any) -> Result:
    while (result := task.step()) is None:
        pass
    return result  # type: ignore[no-any-return]


def paint(registry: Registry, desk: Desk, action: str, pictures: Any, **data: Any) -> Image.Image:
    """The one picture of `run`."""
    return open_image(files(run(registry, desk, action, pictures, **data))[0])


def together(tasks: Sequence[Any]) -> tuple[list[Image.Image], int]:
    """The pictures of tasks that share their quanta, the fullest lane first, once all have begun; and how often three
    kinds of work stood in one lane."""
    units = {unit: task for task in tasks for unit in task.units}
    mixed = 0
    while waiting := [unit for unit in units if not unit.done]:
        lanes = [unit.lane for unit in waiting]
        lane = BEGINNING if BEGINNING in lanes else max(lanes, key=lanes.count)
        chosen = [unit for unit in waiting if unit.lane is lane]
        mixed += lane is not BEGINNING and len({units[unit]._plan.kind for unit in chosen}) == 3
        step_units(chosen)
    for unit in units:
        if unit.error is not None:
            raise unit.error
    return [open_image(raw) for task in tasks for raw in files(task.result())], mixed


def unpasted(registry: Registry, desk: Desk, action: str, pictures: Any, output_type: str = "np", **data: Any) -> Any:
    """What the pipeline makes within a task, before the task does anything to it; with "np" as floats."""
    task = make(registry, desk, action, pictures, **data)
    task._plan.arguments["output_type"] = output_type
    _, scheduler = task._loaded.schedulers.get(task._scheduler, task._data.steps, task._seed)
    stream = Stream(lambda: task._loaded.generate(task._plan, scheduler, task._seed, lambda *_: None))
    while not stream.done:
        step_units([stream])
    if stream.error is not None:
        raise stream.error
    return stream.value


def stock(folder: Path, kind: str, scheduler: str, seed: int = 1, **arguments: Any) -> Any:
    """What the library's own pipeline makes; nothing of ours is between."""
    import diffusers
    import torch

    from instructors.pipelines.schedulers import SHORT_NAMES

    pipeline = _stock_pipeline(folder, kind)
    class_name, settings = SHORT_NAMES[scheduler]
    pipeline.scheduler = getattr(diffusers, class_name).from_config(_own_scheduler(folder).config, **settings)
    arguments = {
        "prompt": "a red circle",
        "num_inference_steps": 3,
        "guidance_scale": 7.5,
        "output_type": "np",
    } | arguments
    return pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(seed)).images[0]


@cache
def _stock_pipeline(folder: Path, kind: str) -> Any:
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    auto = {"img2img": AutoPipelineForImage2Image, "inpainting": AutoPipelineForInpainting}[kind]
    index = json.loads((folder / "model_index.json").read_text())
    pipeline = auto.from_pretrained(folder, **{name: None for name, part in index.items() if part == [None, None]})
    pipeline.set_progress_bar_config(disable=True)
    if kind == "inpainting":  # the overlay of padding_mask_crop is ours, and is left out of the comparison
        pipeline.image_processor.apply_overlay = lambda _mask, _image, generated, _region: generated
    return pipeline


@cache
def _own_scheduler(folder: Path) -> Any:
    return _stock_pipeline(folder, "inpainting").scheduler
