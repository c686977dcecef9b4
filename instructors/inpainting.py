"""`inference.inpainting`: repaint a part of a picture, or widen it, and keep the pixels of the rest."""

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from instructors import images, masks
from instructors.inference import check_strength, common_arguments, model_size
from instructors.pictures import Pictures, Plan, check_pixels
from instructors.registry import Registry
from instructors.task import Context
from protocol.schemas import ACTIONS
from protocol.schemas.inference import InpaintingData

if TYPE_CHECKING:
    from PIL.Image import Image

    from instructors.pipelines.diffusion import LoadedModel


def inpainting(data: InpaintingData, loaded: "LoadedModel", context: Context) -> Plan:
    """What is kept is pasted back at the end: the VAE alone would change every pixel."""
    check_strength(data)
    image, mask = picture_and_mask(data, context)
    check_pixels(*image.size, data.num_images)
    if data.width:
        size = model_size(data, image, loaded)
        image, mask = images.resized(image, size), images.resized(mask, size)
    width, height = size = working_size(data, image, loaded)
    crop = data.padding_mask_crop
    region = None if crop is None else masks.crop_region(mask, size, crop, "padding_mask_crop")
    seen = masks.seen(mask, size, region)
    masks.check_seen(seen, loaded.scale_factor, "mask_image")
    pictures = {"image": masks.seen(image, size, region), "mask_image": seen}
    sizes = {"width": width, "height": height}
    arguments = {**common_arguments(data), **pictures, **sizes, "strength": data.strength}
    plan = Plan("inpainting", arguments, partial(masks.paste_back, image, mask=mask, region=region))
    if region is not None:
        plan.frame = lambda control: masks.seen(images.resized(control, image.size), size, region)
    return plan


def working_size(data: InpaintingData, image: "Image", loaded: "LoadedModel") -> tuple[int, int]:
    """(width, height) at which the model works. A part of the picture (`padding_mask_crop`) is brought to the model's
    own size, where the request names none: that is what gives it more detail. Raises as `model_size`."""
    if data.padding_mask_crop is not None and data.width is None and loaded.default_size is not None:
        return loaded.default_size
    return model_size(data, image, loaded)


def picture_and_mask(data: InpaintingData, context: Context) -> tuple["Image", "Image"]:
    """Both of one size: with what `outpaint` adds, the mask blurred. Raises InvalidRequest and PayloadTooLarge."""
    image, mask = images.decode(images.file_of(data.image, context.blobs, "image"), "image"), None
    if data.mask_image is not None:
        raw = images.file_of(data.mask_image, context.blobs, "mask_image")
        mask = masks.read(raw, "mask_image", image.size, invert=data.invert_mask)
    if data.outpaint is not None:
        image, mask = masks.outpaint(image, mask, **data.outpaint.model_dump(), field="outpaint")
    assert mask is not None  # the schema sees to it
    return image, masks.blur(mask, data.mask_blur, "mask_image")


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that compute are not installed."""
    if find_spec("torch") and find_spec("diffusers"):
        name = "inference.inpainting"
        registry.add(ACTIONS[name], partial(Pictures, name, inpainting), shares=True)
