"""Pictures that go with a request: from a file, bytes or a PIL image to an attachment."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from orchestrator.client.results import Blob, Image
from protocol.errors import PayloadTooLarge
from protocol.limits import DEFAULT_LIMITS, MIB

if TYPE_CHECKING:
    from PIL import Image as PillowImage

Picture = Union[str, Path, bytes, Image, Blob, "PillowImage.Image", dict[str, Any]]
"""A path, a file's bytes, a picture of a result, a PIL image, or what the wire takes (`{"artifact_id": …}`)."""

FIELDS = ("image", "mask_image")
SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def attach_pictures(data: dict[str, Any], attachments: Sequence[Blob] = ()) -> tuple[dict[str, Any], list[Blob]]:
    """`data` with each picture in it as an attachment, and all attachments: for `submit` and `run`.

    Looks at `image`, `mask_image` and the `image` of each of `controlnets`. Raises OSError for a file that cannot be
    read, and PayloadTooLarge.
    """
    blobs = list(attachments)

    def attached(fields: dict[str, Any]) -> dict[str, Any]:
        given = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
        return fields | {name: reference(picture, blobs) for name, picture in given.items()}

    result = attached(data)
    if isinstance(uses := data.get("controlnets"), list | tuple):
        result["controlnets"] = [attached(use) for use in uses]
    return result, blobs


def reference(picture: Any, blobs: list[Blob]) -> dict[str, Any]:
    """What names a picture on the wire; its file is added to `blobs`."""
    if isinstance(picture, dict):
        return picture
    blobs.append(_blob(picture))
    return {"attachment": len(blobs) - 1}


def _blob(picture: Any) -> Blob:
    if isinstance(picture, Blob):
        return picture
    if isinstance(picture, Image):
        return Blob(picture.content, picture.media_type)
    if isinstance(picture, str | Path):
        picture = _read(Path(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        content = bytes(picture)
        kinds = [kind for signature, kind in SIGNATURES.items() if content.startswith(signature)]
        return Blob(content, kinds[0] if kinds else "application/octet-stream")  # the server judges by content
    if hasattr(picture, "has_transparency_data"):
        return Blob(_png(picture), "image/png")
    raise TypeError(f"A picture is a path, bytes, or a PIL image, not a {type(picture).__name__}.")


def _read(path: Path) -> bytes:
    limit = DEFAULT_LIMITS.frame_bytes_max
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise PayloadTooLarge(f"The file {path.name} has more than {limit // MIB} MiB.")
    return content


def _png(image: "PillowImage.Image") -> bytes:
    """The image's pixels as they are: an EXIF orientation that was not applied is not sent."""
    if image.mode not in PNG_MODES:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
