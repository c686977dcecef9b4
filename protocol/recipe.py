"""Recipes: what made a picture, kept inside its file, so that it can be made again.

A recipe is a small JSON map. PNG keeps it in an iTXt chunk called "atelier", JPEG and WebP in the EXIF field
UserComment. Pillow is imported when a picture is at hand, so that a client without it can do all else.
"""

import io
import json
from typing import TYPE_CHECKING, Any

from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.limits import KIB, MIB

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1
PNG_KEY = "atelier"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
ENCODING_MARK = b"ASCII\0\0\0"  # what EXIF calls the first 8 bytes; the JSON behind it is kept in ASCII
FILE_BYTES_MAX = 64 * MIB
PIXELS_MAX = 8192 * 8192
RECIPE_BYTES_MAX = {"png": 512 * KIB, "jpeg": 60 * KIB, "webp": 512 * KIB}  # a JPEG segment ends at 64 KiB
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
REPEATED = (
    "model_id", "prompt", "negative_prompt", "seed", "steps", "scheduler", "guidance_scale", "width", "height", "output"
)  # fmt: skip


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


def request_data(recipe: dict[str, Any]) -> dict[str, Any]:
    """The `data` of the request that makes the picture again (its action: `recipe["action"]`)."""
    return {name: recipe[name] for name in REPEATED if name in recipe}


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
