"""`inference.text2img` and `inference.img2img`, and what all actions that make pictures share.

Importing this is cheap; `warm_up` imports the libraries that compute.
"""

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from instructors import images
from instructors.pictures import MakePlan, Pictures, Plan, check_size
from instructors.pipelines import schedulers
from instructors.registry import Registry
from instructors.task import Context
from protocol.schemas import ACTIONS
from protocol.schemas.inference import ChangeData, Img2ImgData, InpaintingData, PictureData, Text2ImgData

if TYPE_CHECKING:
    from PIL.Image import Image

    from instructors.pipelines.diffusion import LoadedModel


def text2img(data: Text2ImgData, loaded: "LoadedModel", context: Context) -> Plan:
    own_width, own_height = loaded.default_size or (None, None)
    width, height = data.width or own_width, data.height or own_height
    check_size(width, height, loaded, data.num_images)
    return Plan("text2img", {**common_arguments(data), **given(width=width, height=height)})


def img2img(data: Img2ImgData, loaded: "LoadedModel", context: Context) -> Plan:
    """The picture has the size asked for, or the image's own; the model computes at the nearest one that it can."""
    check_strength(data)
    image = images.decode(images.file_of(data.image, context.blobs, "image"), "image")
    width, height = model_size(data, image, loaded)
    arguments = {**common_arguments(data), "image": images.resized(image, (width, height)), "strength": data.strength}
    if loaded.takes("img2img", "width"):
        arguments.update(width=width, height=height)
    size = (width, height) if data.width else image.size
    return Plan("img2img", arguments, partial(images.resized, size=size))


def model_size(data: ChangeData, image: "Image", loaded: "LoadedModel") -> tuple[int, int]:
    """(width, height) at which the model changes an image: as asked for, or nearest to the image's own.

    Raises InvalidRequest and PayloadTooLarge.
    """
    if data.width and data.height:
        size = data.width, data.height
    else:
        size = images.model_size(image.width, image.height, loaded.size_multiple, "image")
    check_size(*size, loaded, data.num_images)
    return size


def check_strength(data: Img2ImgData | InpaintingData) -> None:
    """Raise InvalidRequest where no step is left to run. The stock pipelines round down, too."""
    if int(data.steps * data.strength) < 1:
        problem = f"{data.strength} of {data.steps} steps is less than one; raise one of them"
        raise images.invalid("strength", problem)


def common_arguments(data: PictureData) -> dict[str, Any]:
    """What the pipelines of all kinds take."""
    return {
        "prompt": data.prompt,
        **given(negative_prompt=data.negative_prompt or None),
        "num_inference_steps": data.steps,
        "guidance_scale": data.guidance_scale if data.guidance_end else 1.0,
        **given(
            sigmas=data.sigmas if isinstance(data.sigmas, list) else None,
            guidance_rescale=data.guidance_rescale or None,
            eta=data.eta or None,
        ),
    }


def given(**arguments: Any) -> dict[str, Any]:
    """Those that are not None: the family's own default stands for the others."""
    return {name: value for name, value in arguments.items() if value is not None}


PLANS: dict[str, MakePlan] = {
    "inference.text2img": text2img,
    "inference.img2img": img2img,
    "inference.lora": text2img,
    "inference.controlnet": text2img,
}


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that compute are not installed."""
    if find_spec("torch") and find_spec("diffusers"):
        for name, plan in PLANS.items():
            registry.add(ACTIONS[name], partial(Pictures, name, plan), shares=True)


def scheduler_names() -> list[str]:
    """What `scheduler` may say, in the usual spelling."""
    return schedulers.names() if find_spec("diffusers") else []


def warm_up() -> None:
    """Import the libraries, which takes seconds, before the first job needs them."""
    from instructors.pipelines import loading  # noqa: F401
