"""Values that several domains share: names of models, sizes in pixels, shares, and bytes that are sent in."""

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Discriminator, Field, Tag

from protocol.errors import InvalidRequest
from protocol.limits import DEFAULT_LIMITS, KIB
from protocol.messages import Int
from protocol.schemas.artifact import ArtifactRef
from protocol.schemas.base import ActionData, ResultData

ModelId = Annotated[str, Field(min_length=1, max_length=200)]
Pixels = Annotated[Int, Field(ge=8, le=8192, multiple_of=8)]
Share = Annotated[float, Field(ge=0, le=1)]


class AttachmentRef(ActionData):
    """Bytes that come with the message."""

    attachment: Annotated[Int, Field(ge=0, le=DEFAULT_LIMITS.attachments_max - 1)]  # index of the attachment, from 0


def byte_form(value: Any) -> str | None:
    forms = {"(attachment)": AttachmentRef, "(artifact)": ArtifactRef, "(inline)": bytes}
    if isinstance(value, dict):
        names = value.keys() & {"attachment", "artifact_id"}
        return f"({names.pop().removesuffix('_id')})" if len(names) == 1 else None
    return next((form for form, kind in forms.items() if isinstance(value, kind)), None)


# The tags stand in brackets so that an error's path leaves them out: they are no part of what was sent.
ImageRef = Annotated[
    Annotated[AttachmentRef, Tag("(attachment)")]
    | Annotated[ArtifactRef, Tag("(artifact)")]
    | Annotated[bytes, Field(min_length=1, max_length=64 * KIB), Tag("(inline)")],
    Discriminator(
        byte_form,
        custom_error_type="image_form",
        custom_error_message='must be {"attachment": i}, {"artifact_id": "…"} or bytes',
    ),
]


class PictureInfo(ResultData):
    """A picture of an answer: where its bytes are."""

    attachment: int | None = None  # index of the attachment that holds it
    artifact_id: str | None = None  # or the artifact that does
    media_type: str
    width: int
    height: int


def check_references(data: ActionData, attachments: int) -> None:
    """Raise InvalidRequest where `data` names an attachment and the request has only so many."""
    for field, ref in byte_refs(data):
        if isinstance(ref, AttachmentRef) and ref.attachment >= attachments:
            problem = f"there is no attachment {ref.attachment}; {attachments} came with this request"
            raise InvalidRequest(f"{field}: {problem}.", details={"fields": [{"field": field, "problem": problem}]})


def byte_refs(value: Any, path: str = "") -> Iterator[tuple[str, AttachmentRef | ArtifactRef | bytes]]:
    """(where, bytes) of all bytes that the `data` of a request names, e.g. at `controlnets.0.image`, `inputs.0.data`.

    A field that takes any value (`echo`) names none, whatever its maps look like.
    """
    if isinstance(value, AttachmentRef | ArtifactRef | bytes):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in _naming_fields(type(value)):
            yield from byte_refs(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from byte_refs(item, f"{path}.{index}")


@cache
def _naming_fields(schema: type[BaseModel]) -> list[str]:
    """The fields of a schema that may name bytes: the others of a request need not be looked through."""
    return [name for name, field in schema.model_fields.items() if _may_name(field.annotation)]


def _may_name(annotation: Any) -> bool:
    if annotation in (AttachmentRef, ArtifactRef, bytes):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return bool(_naming_fields(annotation))
    return get_origin(annotation) is not dict and any(_may_name(argument) for argument in get_args(annotation))


def put_at(data: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` into `data`, as it is on the wire, at a path that `byte_refs` tells."""
    *parents, name = path.split(".")
    place: Any = data
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    place[int(name) if isinstance(place, list) else name] = value
