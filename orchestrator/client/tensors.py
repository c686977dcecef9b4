"""Tensors that go with a request, and what comes back: from arrays and lists to the wire and back.

numpy is used where it is installed; without it tensors are `Tensor`, with their bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.client.errors import NUMPY_EXTRA
from orchestrator.client.pictures import reference
from orchestrator.client.results import Blob, Result
from protocol.codec import Buffer, pack, unpack
from protocol.errors import AtelierError, MalformedMessage
from protocol.schemas.predict import BatchResult, PredictResult, TensorOut
from protocol.tensors import MEDIA_TYPE, Tensor, from_list, from_numpy, to_numpy

INLINE_BYTES_MAX = 4096  # of a tensor; a frame of its own costs more than to carry so few in the header


def attach_inputs(data: Mapping[str, Any], attachments: Sequence[Blob] = ()) -> tuple[dict[str, Any], list[Blob]]:
    """`data` of `inference.predict` for the wire, and all attachments: for `submit` and `run`.

    `inputs` is a map from names to arrays, `Tensor`s, or (nested) lists of numbers, bools or strings: of those, one
    number with a fraction makes all of them float32, else they are int64. An artifact is a map as the wire takes it,
    without its name. `images` are pictures as `attach_pictures` takes them. Raises TypeError or ValueError for what is
    no tensor, OSError for a file that cannot be read, and PayloadTooLarge.
    """
    blobs = list(attachments)
    given = dict(data)
    if isinstance(inputs := given.get("inputs"), Mapping):
        given["inputs"] = [_named(name, value, blobs) for name, value in inputs.items()]
    if given.get("images"):
        given["images"] = [reference(picture, blobs) for picture in given["images"]]
    return given, blobs


def attach_requests(data: Mapping[str, Any], attachments: Sequence[Blob] = ()) -> tuple[dict[str, Any], list[Blob]]:
    """`data` of `predict.batch` for the wire, and all attachments: each of its `requests` is as `attach_inputs` takes
    it, and all travel as one attachment."""
    items = [_with_bytes(*attach_inputs(request)) for request in data["requests"]]
    rest = {name: value for name, value in data.items() if name != "requests"}
    return {**rest, "items": {"attachment": len(attachments)}}, [*attachments, Blob(pack(items), MEDIA_TYPE)]


def as_tensor(value: Any) -> Tensor:
    """An array, a `Tensor` or a list as a tensor. Raises TypeError or ValueError."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__array__"):  # numpy's, and those of other libraries that lie on the CPU
        import numpy

        return from_numpy(numpy.asarray(value))
    return from_list(value)


@dataclass(frozen=True)
class Prediction:
    """What a model answered. `batch_size` items were computed together; `result` tells how the job went, and is None
    for one of a batch."""

    told: PredictResult
    blobs: Sequence[Blob]
    result: Result | None = None

    @property
    def model_id(self) -> str:
        return self.told.model_id

    @property
    def model_version(self) -> str | None:
        return self.told.model_version

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The fields that the model's steps made, one map an item; empty where there are none."""
        return self.told.predictions

    @property
    def inference_time_ms(self) -> float:
        """In the model, without waiting."""
        return self.told.inference_time_ms

    @property
    def cached(self) -> bool:
        """The answer was at hand."""
        return self.told.cached

    @property
    def batch_size(self) -> int:
        return self.told.batch_size

    @property
    def device(self) -> str | None:
        return self.told.device

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The outputs with their bytes, by name."""
        return {info.name: self._tensor(info) for info in self.told.outputs}

    @cached_property
    def outputs(self) -> dict[str, Any]:
        """The outputs as numpy arrays, by name: read-only, bfloat16 as uint16, strings as objects.

        Raises ImportError without numpy (see `tensors`), MalformedMessage where the bytes are not a tensor's.
        """
        try:
            return {name: to_numpy(tensor) for name, tensor in self.tensors.items()}
        except ImportError:
            raise ImportError(f"Outputs as arrays need numpy: {NUMPY_EXTRA}") from None
        except AtelierError as error:
            raise MalformedMessage(f"The server's answer is no tensor: {error.message}") from None

    def _tensor(self, info: TensorOut) -> Tensor:
        data: Buffer | None = info.data
        if info.attachment is not None and 0 <= info.attachment < len(self.blobs):
            data = self.blobs[info.attachment].content
        if data is None:
            raise MalformedMessage("A tensor's bytes did not come with the answer.")
        return Tensor(info.dtype, tuple(info.shape), data)


def prediction_of(result: Result) -> Prediction:
    """What a job of `inference.predict` answered. Raises MalformedMessage where it is something else."""
    return Prediction(result.parse(PredictResult), result.attachments, result)


def predictions_of(result: Result) -> list[Prediction | AtelierError]:
    """What a job of `predict.batch` answered, in the order of its requests; an error in place of one that failed."""
    told = result.parse(BatchResult)
    if not 0 <= told.results < len(result.attachments):
        raise MalformedMessage("The batch's results did not come with the answer.")
    entries = unpack(result.attachments[told.results].content)
    if type(entries) is not list or len(entries) != told.count:
        raise MalformedMessage("The server's answer is no list of the batch's results.")
    return [_entry(entry) for entry in entries]


def _entry(entry: Any) -> Prediction | AtelierError:
    if type(entry) is dict and type(entry.get("error")) is dict:
        return AtelierError.from_wire(entry["error"])
    try:
        return Prediction(PredictResult.model_validate(entry), ())
    except ValueError:
        raise MalformedMessage("The server's answer to one of the batch is no prediction.") from None


def _named(name: str, value: Any, blobs: list[Blob]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {**value, "name": name}
    try:
        tensor = as_tensor(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"The input {name!r} is no tensor: {error}") from None
    content: Any = bytes(tensor.data)  # a copy: what is sent must not change with the caller's array
    if len(content) > INLINE_BYTES_MAX:
        blobs.append(Blob(content, MEDIA_TYPE))
        content = {"attachment": len(blobs) - 1}
    return {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape), "data": content}


def _with_bytes(request: dict[str, Any], blobs: list[Blob]) -> dict[str, Any]:
    """A request of a batch, its attachments inside it."""

    def inside(value: Any) -> Any:
        return blobs[value["attachment"]].content if isinstance(value, dict) and "attachment" in value else value

    inputs = [{**tensor, "data": inside(tensor["data"])} for tensor in request.get("inputs", [])]
    images = [inside(image) for image in request.get("images", [])]
    return {**request, **({"inputs": inputs} if inputs else {}), **({"images": images} if images else {})}
