"""Pictures that come in: from a file's bytes to pixels, or to an error that names the field.

PNG, JPEG and WebP are taken, judged by content. Sizes are read from the header before any pixel is decoded. Files are
turned upright as their EXIF data says. Pillow is imported when a picture is at hand.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from instructors.memory import is_out_of_memory
from instructors.task import Blob
from protocol.codec import Buffer
from protocol.errors import AtelierError, InvalidRequest, PayloadTooLarge
from protocol.limits import DEFAULT_LIMITS
from protocol.schemas.artifact import ArtifactRef
from protocol.schemas.values import AttachmentRef

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS_MAX = 4096 * 4096
JOB_PIXELS_MAX = 4 * PIXELS_MAX  # of all pictures of a job, those that are sent or those that are made
SIDE_MAX = 8192  # pixels
FORMATS = ("PNG", "JPEG", "WEBP")
JPEG_SCANS_MAX = 200  # a few bytes can ask for one more pass over all pixels; progressive files have about ten
WHITE, BLACK = 255, 0


def file_of(ref: AttachmentRef | ArtifactRef | bytes, blobs: Sequence[Blob], field: str) -> Buffer:
    """The file that a request names, out of its attachments `blobs`. Raises InvalidRequest."""
    if isinstance(ref, bytes):
        return ref
    if isinstance(ref, ArtifactRef):  # the orchestrator puts an attachment in its place
        raise invalid(field, "names an artifact, and a worker cannot fetch it; send the bytes")
    if ref.attachment >= len(blobs):
        raise invalid(field, f"there is no attachment {ref.attachment}; {len(blobs)} came with this request")
    data = blobs[ref.attachment].data
    return data() if callable(data) else data


def decode(raw: Buffer, field: str) -> "Image":
    """The picture in a file, upright, as RGB. `field` is the request's field that it came in, for errors.

    Transparent parts show white, as on paper. Colours are taken to sRGB where the file has a profile that can be read
    and is not sRGB itself. 16 bits become 8 by rounding. Raises InvalidRequest or PayloadTooLarge.
    """
    with _judged(field):
        image = _load(raw, field)
        flat = _to_srgb(_flatten(image, WHITE), image.info.get("icc_profile"))
        return _upright(flat, image).convert("RGB")


def decode_grey(raw: Buffer, field: str) -> "Image":
    """The luminance of the picture in a file, upright, in mode L. As `decode`, for pictures whose numbers matter.

    Transparent parts are black, so that strokes on a transparent layer are a mask. Profiles are ignored.
    """
    with _judged(field):
        image = _load(raw, field)
        return _upright(_flatten(image, BLACK), image).convert("L")


def check_size(width: int, height: int, field: str) -> None:
    """Raise PayloadTooLarge for more pixels than a picture may have."""
    if max(width, height) > SIDE_MAX or width * height > PIXELS_MAX:
        problem = f"is {width} × {height}; a picture may have {PIXELS_MAX} pixels and sides up to {SIDE_MAX}"
        raise PayloadTooLarge(f"{field}: {problem}.", details=_details(field, problem))


def model_size(width: int, height: int, multiple: int, field: str) -> tuple[int, int]:
    """The nearest size that a model can compute: both sides a multiple of `multiple`, halves rounded up.

    Raises InvalidRequest where a side is below one multiple: it would only be blown up.
    """
    if min(width, height) < multiple:
        raise invalid(field, f"is {width} × {height}; this model needs sides of at least {multiple} pixels")
    near = (width + multiple // 2) // multiple * multiple, (height + multiple // 2) // multiple * multiple
    check_size(*near, field)
    return near


def resized(image: "Image", size: tuple[int, int]) -> "Image":
    """The picture at `size` (width, height), by the filter of the stock pipelines' image processor."""
    from PIL.Image import Resampling

    return image if image.size == size else image.resize(size, Resampling.LANCZOS)


def invalid(field: str, problem: str) -> InvalidRequest:
    """The error for a picture that cannot be used."""
    return InvalidRequest(f"{field}: {problem}.", details=_details(field, problem))


def _details(field: str, problem: str) -> dict[str, list[dict[str, str]]]:
    return {"fields": [{"field": field, "problem": problem}]}


@contextmanager
def _judged(field: str) -> Iterator[None]:
    """Whatever Pillow raises of a file is the file's fault, except where memory ran out; its warnings say nothing
    that is not judged here."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        except AtelierError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise invalid(field, "is damaged or cut short") from None


def _load(raw: Buffer, field: str) -> "Image":
    """The decoded picture in the file's own mode."""
    from PIL import Image

    _check_file(raw, field)
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError:
        raise PayloadTooLarge(f"{field}: has far too many pixels.", details=_details(field, "too large")) from None
    check_size(image.width, image.height, field)
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise invalid(field, "is animated; send one picture")
    image.load()
    return image


def _check_file(raw: Buffer, field: str) -> None:
    """Judge the file by its length and first bytes."""
    if len(raw) > DEFAULT_LIMITS.frame_bytes_max:
        raise PayloadTooLarge(f"{field}: the file is too large.", details=_details(field, "too large"))
    start = bytes(raw[:12])
    is_jpeg = start.startswith(b"\xff\xd8\xff")
    if not (is_jpeg or start.startswith(b"\x89PNG\r\n\x1a\n") or (start[:4], start[8:]) == (b"RIFF", b"WEBP")):
        raise invalid(field, "is not a PNG, JPEG or WebP picture (the content counts, not the name)")
    if is_jpeg and bytes(raw).count(b"\xff\xda") > JPEG_SCANS_MAX:
        raise invalid(field, f"is a JPEG of more than {JPEG_SCANS_MAX} scans")


def _flatten(image: "Image", backdrop: int) -> "Image":
    """Without palette, transparency and 16 bits: mode L, RGB or CMYK."""
    from PIL import Image

    if image.mode == "I;16":
        return _eight_bits(image, backdrop)
    if image.has_transparency_data:
        sheet = Image.new("RGBA", image.size, (backdrop, backdrop, backdrop, 255))
        return Image.alpha_composite(sheet, image.convert("RGBA")).convert("RGB")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: "Image", backdrop: int) -> "Image":
    """A grey picture of 16 bits, scaled: Pillow's own conversion of some of them clips."""
    import numpy as np
    from PIL import Image

    deep = np.asarray(image).astype(np.uint32)
    grey = ((deep + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:
        grey[deep == image.info["transparency"]] = backdrop
    return Image.fromarray(grey)


def _to_srgb(image: "Image", profile: bytes | None) -> "Image":
    """A profile that cannot be read, or is for another kind of picture, is ignored, as viewers do."""
    if not profile:
        return image
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image  # a conversion would only round: kept pixels must stay what they are
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ImportError):
        return image


def _upright(flat: "Image", image: "Image") -> "Image":
    """`flat` turned as the EXIF data of `image` says; damaged EXIF data is ignored, as viewers do."""
    from PIL import ExifTags
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # Pillow's reader raises of every kind
        if is_out_of_memory(error):
            raise
        return flat
    return flat if turn is None else flat.transpose(turn)
