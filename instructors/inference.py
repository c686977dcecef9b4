"""`inference.*`. Importing this module is cheap; `warm_up` imports the libraries that compute."""

import secrets
import time
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from instructors.pipelines import schedulers
from instructors.registry import Registry
from instructors.task import Blob, Context, Result, Task
from protocol import recipe as recipes
from protocol.codec import pack, unpack
from protocol.enums import EventName
from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.limits import INT_MAX, KIB
from protocol.schemas import ACTIONS
from protocol.schemas.inference import SEED_MAX, Text2ImgData

if TYPE_CHECKING:
    from PIL.Image import Image

    from instructors.pipelines.diffusion import LoadedModel

IMAGE_PIXELS_MAX = 4096 * 4096
JOB_PIXELS_MAX = 4 * IMAGE_PIXELS_MAX
JOB_RECIPE_BYTES_MAX = 768 * KIB  # the recipes of all pictures stand in one header


class Text2Img(Task):
    """One step is one picture; within it the pipeline's callback ends a quantum after each denoising step."""

    def __init__(self, data: Text2ImgData, context: Context) -> None:
        self._data = data
        self._context = context
        _check_pixels(data.width or 8, data.height or 8, data.num_images)
        self._loaded = _load(data.model_id, context)
        self._arguments = _arguments(data, self._loaded)
        self._scheduler, _ = self._loaded.schedulers.get(data.scheduler, data.steps, seed=0)
        self._seed = secrets.randbelow(INT_MAX) if data.seed_number is None else data.seed_number
        self._recipe = self._common_recipe()
        recipes.check_size(self._recipe, data.output.format)
        if len(recipes.dumps(self._recipe)) * data.num_images > JOB_RECIPE_BYTES_MAX:
            raise PayloadTooLarge("The prompts are too long for so many pictures in one job.")
        self._images: list[dict[str, Any]] = []
        self._blobs: list[Blob] = []
        self._steps_done = 0
        self._begun = time.monotonic()

    def step(self) -> Result | None:
        seed = (self._seed + len(self._images)) % (SEED_MAX + 1)
        _, scheduler = self._loaded.schedulers.get(self._scheduler, self._data.steps, seed)
        image = self._loaded.generate(self._arguments, scheduler, seed, self._after_step)
        self._add(image, seed if seed <= INT_MAX else str(seed))
        return Result({"images": self._images}, self._blobs) if len(self._images) == self._data.num_images else None

    def save(self) -> bytes | None:
        """The seed and the finished pictures; the one at work is begun again."""
        return pack({"seed": str(self._seed), "images": self._images, "files": [_bytes(blob) for blob in self._blobs]})

    def restore(self, state: bytes) -> None:
        saved = unpack(state)
        self._seed, self._images = int(saved["seed"]), saved["images"]
        media_type = recipes.MEDIA_TYPES[self._data.output.format]
        self._blobs = [Blob(media_type, file) for file in saved["files"]]

    def _after_step(self, step: int, steps: int, latents: Any) -> None:
        self._context.quantum()
        self._steps_done += 1
        images, image = self._data.num_images, len(self._images)
        left = steps - step + (images - image - 1) * steps
        eta_ms = round(1000 * left * (time.monotonic() - self._begun) / self._steps_done)
        where = {"step": step, "steps": steps, "image": image, "images": images}
        self._context.emit(EventName.PROGRESS, {**where, "eta_ms": eta_ms})
        preview = self._data.preview
        if preview is not None and step % preview.every_steps == 0 and step < steps:
            make = self._loaded.preview(latents, self._arguments.get("width"), self._arguments.get("height"))
            if make is not None:
                self._context.emit(EventName.PREVIEW, where, [Blob("image/jpeg", make)])

    def _add(self, image: "Image", seed: int | str) -> None:
        output, index = self._data.output, len(self._images)
        media_type = recipes.MEDIA_TYPES[output.format]
        size = {"width": image.width, "height": image.height}
        recipe = {**self._recipe, **size, "seed": seed}
        blob = Blob(media_type, cache(lambda: recipes.encode(image, recipe, output.format, output.quality)))
        self._blobs.append(blob)
        self._images.append({"attachment": index, "media_type": media_type, **size, "seed": seed, "recipe": recipe})
        item = {"index": index, **self._images[-1], "attachment": 0}
        self._context.emit(EventName.ITEM, item, [blob])

    def _common_recipe(self) -> dict[str, Any]:
        """What all pictures of the job share; each adds its seed and size."""
        data, model = self._data, self._loaded.model
        return {
            "version": recipes.VERSION,
            "action": "inference.text2img",
            "model_id": model.model_id,
            "model_hash": model.content_hash,
            "prompt": data.prompt,
            "negative_prompt": data.negative_prompt,
            "steps": data.steps,
            "scheduler": self._scheduler,
            "guidance_scale": data.guidance_scale,
            "output": data.output.model_dump(),
            "libraries": _libraries(),
            "device": self._context.device_kind,
            "dtype": self._loaded.dtype,
            "threads": _threads(),
        }


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that compute are not installed."""
    if find_spec("torch") and find_spec("diffusers"):
        registry.add(ACTIONS["inference.text2img"], Text2Img)


def scheduler_names() -> list[str]:
    """What `scheduler` may say, in the usual spelling."""
    return schedulers.names() if find_spec("diffusers") else []


def warm_up() -> None:
    """Import the libraries, which takes seconds, before the first job needs them."""
    import instructors.pipelines.diffusion  # noqa: F401


def _load(model_id: str | None, context: Context) -> "LoadedModel":
    model = context.models.find(model_id)
    from instructors.pipelines import diffusion

    key = f"{model.model_id} {model.content_hash}"  # changed files make another model
    nbytes = model.elements * diffusion.dtype_for(context.device, model).itemsize
    return context.resident(key, nbytes, lambda: diffusion.load(model, context.device))


def _arguments(data: Text2ImgData, loaded: "LoadedModel") -> dict[str, Any]:
    """The pipeline's arguments. Raises InvalidRequest for what the model cannot do."""
    own_width, own_height = loaded.default_size or (None, None)
    arguments: dict[str, Any] = {
        "prompt": data.prompt,
        "negative_prompt": data.negative_prompt or None,
        "width": data.width or own_width,
        "height": data.height or own_height,
        "num_inference_steps": data.steps,
        "guidance_scale": data.guidance_scale,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    loaded.check(arguments)
    for name in ("width", "height"):
        _check_multiple(name, arguments.get(name), loaded.size_multiple)
    _check_pixels(arguments.get("width", 8), arguments.get("height", 8), data.num_images)
    return arguments


def _check_multiple(name: str, pixels: int | None, multiple: int) -> None:
    if pixels is None or pixels % multiple == 0:
        return
    below = pixels // multiple * multiple
    near = " or ".join(str(size) for size in (below, below + multiple) if size)
    problem = f"must be a multiple of {multiple} for this model; nearest: {near}"
    raise InvalidRequest(f"{name}: {problem}.", details={"fields": [{"field": name, "problem": problem}]})


def _check_pixels(width: int, height: int, num_images: int) -> None:
    if width * height > IMAGE_PIXELS_MAX or width * height * num_images > JOB_PIXELS_MAX:
        raise PayloadTooLarge(
            f"A picture may have {IMAGE_PIXELS_MAX} pixels, and all pictures of a job {JOB_PIXELS_MAX} together."
        )


@cache
def _libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}


def _threads() -> int:
    """On a CPU the number of threads decides how sums are split, and so how they round."""
    import torch

    return int(torch.get_num_threads())


def _bytes(blob: Blob) -> bytes:
    return bytes(blob.data() if callable(blob.data) else blob.data)
