"""`inference.predict` and `predict.batch`: tensors and pictures through models of any kind."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from protocol.codec import Buffer, unpack
from protocol.errors import AtelierError, InvalidRequest
from protocol.limits import DEFAULT_LIMITS
from protocol.messages import EMPTY_LIST, EMPTY_MAP, FIRST_FAULT, Int, Name
from protocol.schemas.artifact import ArtifactRef
from protocol.schemas.base import Action, ActionData, ResultData, validate
from protocol.schemas.values import AttachmentRef, ModelId, byte_form
from protocol.tensors import RANK_MAX, TENSOR_BYTES_MAX, Dtype, nbytes_of, size_problem

INPUTS_MAX = OUTPUTS_MAX = IMAGES_MAX = DEFAULT_LIMITS.attachments_max
PARAMETERS_MAX, PARAMETER_ENTRIES_MAX, PARAMETER_TEXT_MAX = 64, 1000, 1000
FALLBACKS_MAX = 8
REQUESTS_MAX = 1024  # of one batch
DIMENSION_MAX = 2**31 - 1

# The tags stand in brackets so that an error's path leaves them out, as those of `ImageRef`.
Bytes = Annotated[
    Annotated[AttachmentRef, Tag("(attachment)")]
    | Annotated[ArtifactRef, Tag("(artifact)")]
    | Annotated[bytes, Field(max_length=TENSOR_BYTES_MAX), Tag("(inline)")],
    Discriminator(
        byte_form,
        custom_error_type="byte_form",
        custom_error_message='must be {"attachment": i}, {"artifact_id": "…"} or bytes',
    ),
]
Dimension = Annotated[Int, Field(ge=0, le=DIMENSION_MAX)]


def _plain(value: Any) -> Any:
    """One value or a flat list of them, as a step's parameters are."""
    items = value if isinstance(value, list) else [value]
    if len(items) > PARAMETER_ENTRIES_MAX:
        raise ValueError(f"has {len(items)} entries; {PARAMETER_ENTRIES_MAX} are allowed")
    for item in items:
        if not (item is None or isinstance(item, bool | int | float | str)):
            raise ValueError("must be a number, a string, true, false, null, or a list of those")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("must be a finite number")
        if isinstance(item, str) and len(item) > PARAMETER_TEXT_MAX:
            raise ValueError(f"has more than {PARAMETER_TEXT_MAX} characters")
    return value


Parameters = Annotated[dict[Name, Annotated[Any, AfterValidator(_plain)]], Field(max_length=PARAMETERS_MAX)]


class TensorIn(ActionData):
    """A tensor that is sent."""

    name: Name  # of the model's (or its first step's) input
    dtype: Dtype  # what its numbers are, see Tensors
    shape: Annotated[list[Dimension], Field(max_length=RANK_MAX), FIRST_FAULT]
    # the first axis counts the items, unless the model has none of that kind; empty: a scalar
    data: Bytes  # its numbers, little-endian, the last axis fastest

    @model_validator(mode="after")
    def _as_many_bytes_as_the_shape_says(self) -> Self:
        if self.shape[:1] == [0]:
            raise ValueError("has zero items; send at least one")
        nbytes = nbytes_of(self.dtype, self.shape)
        if nbytes > TENSOR_BYTES_MAX:
            raise ValueError(f"has {nbytes} bytes by its shape; {TENSOR_BYTES_MAX} are allowed")
        if isinstance(self.data, bytes) and (problem := size_problem(self.dtype, self.shape, len(self.data))):
            raise ValueError(problem)
        return self


class PredictValues(ActionData):
    """What one prediction is made of."""

    inputs: Annotated[list[TensorIn], Field(max_length=INPUTS_MAX), FIRST_FAULT] = EMPTY_LIST  # each name once
    images: Annotated[list[Bytes], Field(max_length=IMAGES_MAX), FIRST_FAULT] = EMPTY_LIST
    # PNG, JPEG or WebP files, one an item, for a model whose first steps take pictures
    parameters: Parameters = EMPTY_MAP
    # of the model's steps, where they let a request set them: name -> plain value or list of those

    @model_validator(mode="after")
    def _something_to_predict_from(self) -> Self:
        if not self.inputs and not self.images:
            raise ValueError("give inputs, images or both")
        if len({tensor.name for tensor in self.inputs}) < len(self.inputs):
            raise ValueError("an input's name stands in the list once")
        return self


class PredictOptions(ActionData):
    """What is said of all predictions of a request."""

    model_id: ModelId | None = None  # null: the server's default
    outputs: Annotated[list[Name], Field(min_length=1, max_length=OUTPUTS_MAX), FIRST_FAULT] | None = None
    # the tensors to answer; null: all
    cache: bool = True  # false: compute it, even where the answer to the same values is at hand
    routing_key: Name | None = None  # traffic that is split sticks to it; null: to the session, else to the request
    fallbacks: Annotated[list[ModelId], Field(max_length=FALLBACKS_MAX)] = EMPTY_LIST
    # models to use in turn where this one cannot be loaded or run


class PredictData(PredictOptions, PredictValues):
    """All its inputs and images are of the same number of items."""


class BatchData(PredictOptions):
    """Give either `requests` or `items`."""

    requests: Annotated[list[PredictValues], Field(max_length=REQUESTS_MAX), FIRST_FAULT] = EMPTY_LIST
    items: Bytes | None = None  # in place of `requests`: a msgpack list of such maps, with all bytes inside them;
    # one that is not valid is answered by an error of its own

    @model_validator(mode="after")
    def _either_inline_or_attached(self) -> Self:
        if bool(self.requests) == (self.items is not None):
            raise ValueError("give either requests or items")
        return self


class TensorOut(ResultData):
    """A tensor of an answer; its bytes are in one of the last two."""

    name: str
    dtype: str
    shape: list[int]
    attachment: int | None = None  # index of the attachment that holds them
    data: bytes | None = None  # the bytes themselves


class PredictResult(ResultData):
    model_id: str  # what was run: name, or name:version
    model_version: str | None = None  # null: the model has no versions
    outputs: list[TensorOut]  # what the last step left as tensors
    predictions: list[dict[str, Any]] = []  # what the last step left as fields, a map for each item
    inference_time_ms: float  # in the model, without waiting and steps; of the first asker where `cached`
    cached: bool = False  # the answer was at hand
    batch_size: int = 0  # items that were computed together, others' too; 0: none were
    device: str | None = None  # where


class BatchResult(ResultData):
    """The attachment is a msgpack list with, for each request in order, a map as in the result of `inference.predict`
    (with `data` in its outputs), or `{"error": {…}}`, see Errors."""

    results: int  # index of the attachment
    count: int  # of requests
    failed: int  # of them


def tensors_in(data: ActionData) -> Iterator[tuple[str, TensorIn]]:
    """(where, tensor) of each tensor in the `data` of a request."""
    if isinstance(data, PredictValues):
        for index, tensor in enumerate(data.inputs):
            yield f"inputs.{index}", tensor
    elif isinstance(data, BatchData):
        for number, request in enumerate(data.requests):
            for index, tensor in enumerate(request.inputs):
                yield f"requests.{number}.inputs.{index}", tensor


def check_tensors(data: ActionData, sizes: Sequence[int]) -> None:
    """Raise InvalidRequest where a tensor's attachment has not as many bytes as its shape says. `sizes`: of the
    attachments, in bytes; that all which the data names are there is checked before."""
    for where, tensor in tensors_in(data):
        if isinstance(ref := tensor.data, AttachmentRef):
            problem = size_problem(tensor.dtype, tensor.shape, sizes[ref.attachment])
            if problem is not None:
                fields = [{"field": where, "problem": problem}]
                raise InvalidRequest(f"{where}: {problem}.", details={"fields": fields})


def read_items(raw: Buffer) -> list[PredictValues | AtelierError]:
    """The requests in the attachment of a batch; an error in place of one that is not valid.

    Raises InvalidRequest or MalformedMessage where the attachment is no such list at all.
    """
    items = unpack(raw)
    if type(items) is not list or not 1 <= len(items) <= REQUESTS_MAX:
        raise InvalidRequest(f"items: must be a msgpack list of 1 to {REQUESTS_MAX} maps.")
    return [_item(item) for item in items]


def _item(item: Any) -> PredictValues | AtelierError:
    if type(item) is not dict:
        return InvalidRequest("Each of a batch's items is a map.")
    try:
        values = validate(PredictValues, item)
    except AtelierError as error:
        return error
    assert isinstance(values, PredictValues)
    refs = [*values.images, *(tensor.data for tensor in values.inputs)]
    if not all(isinstance(ref, bytes) for ref in refs):
        return InvalidRequest("The bytes of a batch's items stand in them; they name no attachments.")
    return values


ACTIONS = [
    Action("inference.predict", "worker", PredictData, PredictResult, "Tensors from tensors or pictures.", light=True),
    Action("predict.batch", "worker", BatchData, BatchResult, "Several predictions in one request.", light=True),
]
