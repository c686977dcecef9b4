"""Any action that makes pictures, as one task: a unit a picture, its progress, its items and its recipe.

What an action means stands in its `Plan` (instructors.inference and its neighbours). Importing this module is cheap.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

from instructors import controlnet, images, lora
from instructors.numerics import fingerprint
from instructors.pipelines.schedulers import ending_in_zero
from instructors.task import Blob, Context, Result, SharedTask
from protocol import recipe as recipes
from protocol.codec import pack, unpack
from protocol.enums import EventName
from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.limits import INT_MAX, KIB
from protocol.schemas.inference import SEED_MAX, PictureData

if TYPE_CHECKING:
    from PIL.Image import Image

    from instructors.pipelines.diffusion import LoadedModel
    from instructors.pipelines.loading import LoadedComponent

JOB_RECIPE_BYTES_MAX = 768 * KIB  # the recipes of all pictures stand in one header

Kind = Literal["text2img", "img2img", "inpainting"]


@dataclass(slots=True)
class Plan:
    """What one request wants of the pipelines. `arguments` are those of the stock pipeline's call."""

    kind: Kind
    arguments: dict[str, Any]
    finish: "Callable[[Image], Image]" = lambda image: image  # what is done to a picture after its decode
    frame: "Callable[[Image], Image]" = lambda image: image  # the part of a control picture that the model works on
    controlnets: "Sequence[LoadedComponent]" = ()
    vae: "LoadedComponent | None" = None  # in place of the model's own


MakePlan = Callable[[Any, "LoadedModel", Context], Plan]


class Pictures(SharedTask):
    """One job of `num_images` pictures."""

    def __init__(self, action: str, make_plan: MakePlan, data: PictureData, context: Context) -> None:
        from instructors.pipelines import loading, vae
        from instructors.pipelines.streams import Stream

        self._data = data
        self._context = context
        check_pixels(data.width or 8, data.height or 8, data.num_images)
        self._loaded = loading.resident(data.model_id, context)
        self._plan = make_plan(data, self._loaded, context)
        self._controls = controlnet.follow(data, self._plan, self._loaded, context)
        if data.vae_id is not None:
            self._plan.vae = vae.resident(data.vae_id, self._loaded, context)
        self._loaded.check(self._plan)
        self._scheduler, scheduler = self._loaded.schedulers.get(data.scheduler, data.steps, 0, data.sigmas)
        self._loaded.check_sampling(data, scheduler)
        if isinstance(data.sigmas, list):
            self._plan.arguments["sigmas"] = ending_in_zero(scheduler, data.sigmas)
        self._seed = secrets.randbelow(INT_MAX) if data.seed_number is None else data.seed_number
        mix = lora.mix(data.loras, self._loaded, context)
        self._recipe = self._common_recipe(action)
        if mix:
            self._recipe["lora_hashes"] = [adapter.content_hash for adapter, _ in mix]
        if self._plan.vae is not None:
            self._recipe["vae_hash"] = self._plan.vae.content_hash
        if self._controls:
            self._recipe["controlnet_hashes"] = [control.net.content_hash for control in self._controls]
        recipes.check_size(self._recipe, data.output.format)
        if len(recipes.dumps(self._recipe)) * data.num_images > JOB_RECIPE_BYTES_MAX:
            raise PayloadTooLarge("The prompts are too long for so many pictures in one job.")
        self._images: list[dict[str, Any] | None] = [None] * data.num_images
        self._blobs: list[Blob | None] = [None] * data.num_images
        self._shares = [0.0] * data.num_images  # how far each picture is, 0 to 1
        self._share_before = 0.0  # of the whole job, when this task took it up
        self._begun = time.monotonic()
        self.units = [Stream(partial(self._paint, index), mix) for index in range(data.num_images)]

    def result(self) -> Result:
        made = [blob for blob in self._blobs if blob is not None]
        data: dict[str, Any] = {"images": list(self._images)}
        if self._controls:
            data["controlnet_images"] = [c.to_wire(len(made) + index) for index, c in enumerate(self._controls)]
        return Result(data, [*made, *(control.blob() for control in self._controls)])

    def save(self) -> bytes | None:
        """The seed and the finished pictures; those at work are begun again."""
        files = [None if blob is None else _bytes(blob) for blob in self._blobs]
        return pack({"seed": str(self._seed), "images": self._images, "files": files})

    def restore(self, state: bytes) -> None:
        saved = unpack(state)
        self._seed, self._images = int(saved["seed"]), saved["images"]
        media_type = recipes.MEDIA_TYPES[self._data.output.format]
        self._blobs = [None if file is None else Blob(media_type, file) for file in saved["files"]]
        self._shares = [float(entry is not None) for entry in self._images]
        self._share_before = self._share()

    def _share(self) -> float:
        """How far the job is, 0 to 1."""
        return sum(self._shares) / len(self._shares)

    def _paint(self, index: int) -> None:
        if self._images[index] is not None:
            return  # it was finished before the task was saved
        seed = (self._seed + index) % (SEED_MAX + 1)
        _, scheduler = self._loaded.schedulers.get(self._scheduler, self._data.steps, seed, self._data.sigmas)
        after_step = partial(self._after_step, index)
        with self._context.statistics.timed(self._loaded.model.model_id):
            image = self._loaded.generate(self._plan, scheduler, seed, after_step, self._data.guidance_end)
        self._add(index, self._plan.finish(image), seed if seed <= INT_MAX else str(seed))

    def _after_step(self, index: int, step: int, steps: int, latents: Any) -> None:
        self._context.quantum()
        self._shares[index] = step / steps
        done = self._share()
        elapsed_s = time.monotonic() - self._begun
        eta_ms = round(1000 * elapsed_s * (1 - done) / (done - self._share_before))
        where = {"step": step, "steps": steps, "image": index, "images": self._data.num_images}
        self._context.emit(EventName.PROGRESS, {**where, "progress": min(done, 1.0), "eta_ms": max(eta_ms, 0)})
        preview = self._data.preview
        if preview is not None and step % preview.every_steps == 0 and step < steps:
            make = self._loaded.preview(latents, self._plan.arguments)
            if make is not None:
                self._context.emit(EventName.PREVIEW, where, [Blob("image/jpeg", make)])

    def _add(self, index: int, image: "Image", seed: int | str) -> None:
        output = self._data.output
        media_type = recipes.MEDIA_TYPES[output.format]
        size = {"width": image.width, "height": image.height}
        recipe = {**self._recipe, **size, "seed": seed}
        blob = Blob(media_type, cache(lambda: recipes.encode(image, recipe, output.format, output.quality)))
        entry = {"attachment": index, "media_type": media_type, **size, "seed": seed, "recipe": recipe}
        self._blobs[index], self._images[index] = blob, entry
        self._context.emit(EventName.ITEM, {"index": index, **entry, "attachment": 0}, [blob])

    def _common_recipe(self, action: str) -> dict[str, Any]:
        """What all pictures of the job share; each adds its seed and size."""
        data, model = self._data, self._loaded.model
        return {
            **recipes.request_fields(data, self._digest),
            "version": recipes.VERSION,
            "action": action,
            "model_id": model.model_id,
            "model_hash": model.content_hash,
            "scheduler": self._scheduler,
            "numerics": fingerprint(self._loaded.dtype, self._loaded.settings, self._context),
        }

    def _digest(self, ref: Any) -> str:
        """Of an input picture's file: SHA-256 in hex."""
        return hashlib.sha256(images.file_of(ref, self._context.blobs, "image")).hexdigest()


def check_size(width: int | None, height: int | None, loaded: "LoadedModel", num_images: int) -> None:
    """Raises InvalidRequest where the model cannot make pictures of this size, in pixels."""
    for name, pixels in (("width", width), ("height", height)):
        _check_multiple(name, pixels, loaded.size_multiple)
        if pixels is not None and loaded.side_max is not None and pixels > loaded.side_max:
            problem = f"is {pixels}, and this model makes pictures of at most {loaded.side_max} pixels a side"
            raise InvalidRequest(f"{name}: {problem}.", details={"fields": [{"field": name, "problem": problem}]})
    check_pixels(width or 8, height or 8, num_images)


def check_pixels(width: int, height: int, num_images: int) -> None:
    """Raises PayloadTooLarge."""
    if width * height > images.PIXELS_MAX or width * height * num_images > images.JOB_PIXELS_MAX:
        raise PayloadTooLarge(
            f"A picture may have {images.PIXELS_MAX} pixels, and all pictures of a job {images.JOB_PIXELS_MAX}."
        )


def _check_multiple(name: str, pixels: int | None, multiple: int) -> None:
    if pixels is None or pixels % multiple == 0:
        return
    below = pixels // multiple * multiple
    near = " or ".join(str(size) for size in (below, below + multiple) if size)
    problem = f"must be a multiple of {multiple} for this model; nearest: {near}"
    raise InvalidRequest(f"{name}: {problem}.", details={"fields": [{"field": name, "problem": problem}]})


def _bytes(blob: Blob) -> bytes:
    return bytes(blob.data() if callable(blob.data) else blob.data)
