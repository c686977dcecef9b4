"""Recipes: what made a picture, kept inside its file, so that it can be made again.

A recipe is a small JSON map. PNG keeps it in an iTXt chunk called "atelier", JPEG and WebP in the EXIF field
UserComment. Pillow is imported when a picture is at hand, so that a client without it can do all else.
"""

import io
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.limits import KIB, MIB
from protocol.schemas.values import ArtifactRef, AttachmentRef, byte_refs, put_at

if TYPE_CHECKING:
    from PIL.Image import Image

    from protocol.schemas.inference import PictureData

VERSION = 1
PNG_KEY = "atelier"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
ENCODING_MARK = b"ASCII\0\0\0"  # what EXIF calls the first 8 bytes; the JSON behind it is kept in ASCII
FILE_BYTES_MAX = 64 * MIB
PIXELS_MAX = 8192 * 8192
RECIPE_BYTES_MAX = {"png": 512 * KIB, "jpeg": 60 * KIB, "webp": 512 * KIB}  # a JPEG segment ends at 64 KiB
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
REPEATED = (
    "model_id", "prompt", "negative_prompt", "seed", "steps", "scheduler", "sigmas", "eta", "guidance_scale",
    "guidance_rescale", "guidance_end", "width", "height", "vae_id", "loras", "controlnets", "strength", "mask_blur",
    "invert_mask", "padding_mask_crop", "outpaint", "output",
)  # fmt: skip
MADE = frozenset({"seed", "width", "height"})  # told of each picture, as it came out
WEIGHTS = ("model_hash", "vae_hash", "lora_hashes", "controlnet_hashes")
NUMERICS = ("device", "threads", "libraries", "dtype")  # where recipes kept them before there was `numerics`


def request_fields(data: "PictureData", digest: Callable[[AttachmentRef | ArtifactRef | bytes], str]) -> dict[str, Any]:
    """What a recipe keeps of a request. `digest` gives the SHA-256 of an input picture's file, in hex.

    What the server chose (model, scheduler) and what is told of each picture (seed, width, height) is to be put on top.
    """
    dumped = data.model_dump(include=set(REPEATED) - MADE, exclude={"controlnets": {"__all__": {"image"}}})
    fields = {name: value for name, value in dumped.items() if value is not None and value != []}
    inputs = {path: digest(ref) for path, ref in byte_refs(data)}
    if inputs:
        fields["inputs"] = inputs
    if "image" in inputs and data.width is None:
        fields["own_size"] = True
    return fields


def dumps(recipe: dict[str, Any]) -> str:
    """The recipe as it stands in a file: JSON in ASCII, sorted, so equal recipes give equal bytes."""
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"))


def check_size(recipe: dict[str, Any], output_format: str) -> None:
    """Raise PayloadTooLarge where a file of this format cannot hold the recipe (an enormous prompt)."""
    if len(dumps(recipe)) > RECIPE_BYTES_MAX[output_format]:
        raise PayloadTooLarge(f"The prompts are too long to be kept in a {output_format} file; png holds longer ones.")


def encode(image: "Image", recipe: dict[str, Any], output_format: str, quality: int) -> bytes:
    """The picture's file with its recipe inside. `quality` is for jpeg and webp; webp at 100 is lossless."""
    from PIL import Image, PngImagePlugin

    stream = io.BytesIO()
    if output_format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(PNG_KEY, dumps(recipe))
        image.save(stream, "PNG", pnginfo=chunks)
        return stream.getvalue()
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ENCODING_MARK + dumps(recipe).encode()
    lossless = {"lossless": True} if output_format == "webp" and quality == 100 else {}
    image.save(stream, output_format.upper(), quality=quality, exif=exif, **lossless)
    return stream.getvalue()


def read(raw: bytes) -> dict[str, Any] | None:
    """The recipe in a PNG, JPEG or WebP file; None where it has none. Decodes no pixels.

    Raises PayloadTooLarge or InvalidRequest (not such a picture, or a recipe this version cannot read).
    """
    if len(raw) > FILE_BYTES_MAX:
        raise PayloadTooLarge("The file is too large.")
    text = _text(raw)
    if text is None:
        return None
    if len(text) > max(RECIPE_BYTES_MAX.values()):
        raise PayloadTooLarge("The recipe is too large.")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest("The picture's recipe cannot be read.") from None
    if type(recipe) is not dict or recipe.get("version") != VERSION:
        raise InvalidRequest(f"The picture's recipe is not of version {VERSION}.")
    return recipe


def request_data(recipe: dict[str, Any], pictures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `data` of the request that makes the picture again (its action: `recipe["action"]`).

    `pictures` has, for each path of `inputs`, what is to stand there. Raises InvalidRequest where one is missing.
    """
    data = {name: deepcopy(recipe[name]) for name in REPEATED if name in recipe}
    if recipe.get("own_size"):
        data = {name: value for name, value in data.items() if name not in ("width", "height")}
    given = pictures or {}
    for path in inputs(recipe):
        if path not in given:
            raise InvalidRequest(f"The recipe needs the picture that stood at {path}.")
        put_at(data, path, given[path])
    return data


def inputs(recipe: dict[str, Any]) -> dict[str, str]:
    """The pictures the request came with: path in `data` -> SHA-256 of the file, in hex. Raises InvalidRequest."""
    told, uses = recipe.get("inputs", {}), recipe.get("controlnets", [])
    readable = type(told) is dict and type(uses) is list and all(type(use) is dict for use in uses)
    if readable:
        places = {"image", "mask_image", *(f"controlnets.{index}.image" for index in range(len(uses)))}
        readable = all(path in places and type(digest) is str for path, digest in told.items())
    if not readable:
        raise InvalidRequest("The picture's recipe cannot be read.")
    return dict(told)


def numerics(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a picture's last bits depend on beside its request and weights: device kind, threads, libraries, dtype …"""
    told = recipe.get("numerics")
    return told if isinstance(told, dict) else {name: recipe[name] for name in NUMERICS if name in recipe}


def _text(raw: bytes) -> str | None:
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of a decompression bomb
            with Image.open(io.BytesIO(raw), formats=["PNG", "JPEG", "WEBP"]) as image:
                if image.width * image.height > PIXELS_MAX:
                    raise PayloadTooLarge("The picture has too many pixels.")
                if image.format == "PNG":
                    return image.info.get(PNG_KEY)
                comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except PayloadTooLarge:
        raise
    except Exception:  # Pillow's readers raise of every kind on damaged files
        raise InvalidRequest("This is not a PNG, JPEG or WebP picture.") from None
    if not isinstance(comment, bytes) or not comment.startswith(ENCODING_MARK + b"{"):
        return None
    return comment.removeprefix(ENCODING_MARK).decode("ascii", errors="replace")
