"""One prediction on its way: values through a model's steps, its process, and the steps after it, model by model."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from instructors import images, tensor_bytes
from instructors.memory import NoRoomNow
from instructors.pipelines.onnx.facts import BFLOAT16, Array, check, check_outputs
from instructors.pipelines.onnx.loading import Problem
from instructors.pipelines.onnx.serving import Request, Serving, Tensors
from instructors.pipelines.onnx.steps import items_of
from instructors.processing import Chain, Values
from instructors.results_cache import Claim
from instructors.task import Blob, Context
from protocol.codec import Buffer
from protocol.enums import ErrorCode
from protocol.errors import AtelierError, InternalError, InvalidRequest, PayloadTooLarge
from protocol.schemas.base import nearest
from protocol.schemas.predict import PredictOptions, PredictValues
from protocol.tensors import MEDIA_TYPE, Tensor, from_numpy, to_numpy

if TYPE_CHECKING:
    from PIL.Image import Image

INLINE_BYTES_MAX = 1024  # a larger tensor of an answer is an attachment
MODELS_MAX = 8  # one after another, each of which takes what the one before it left
PASSED_ON = frozenset(
    {
        ErrorCode.MODEL_INVALID,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.INTERNAL,
        ErrorCode.TIMEOUT_RUN,
        ErrorCode.UNAVAILABLE,
    }
)
"""What another model may help against."""

log = structlog.get_logger("instructors.predict")


class Pictures:
    """Decodes the pictures of a job, up to so many pixels."""

    def __init__(self) -> None:
        self._left = images.JOB_PIXELS_MAX

    def decode(self, file: Buffer, field: str) -> "Image":
        """Raises PayloadTooLarge, and as `images.decode` does."""
        image = images.decode(file, field)
        pixels = image.width * image.height
        if pixels > self._left:
            raise PayloadTooLarge(
                f"{field}: all pictures of a request may have {images.JOB_PIXELS_MAX} pixels together."
            )
        self._left -= pixels
        return image


class Prediction:
    """One prediction on its way. `unit` is what the worker steps; `failure` or `answer` when that is done."""

    def __init__(
        self, context: Context, options: PredictOptions, values: PredictValues | AtelierError, pictures: Pictures
    ) -> None:
        """Raises NoRoomNow; all else that goes wrong is a `failure`. `values` may be what is wrong with them."""
        self._context = context
        self._options = options
        self._left = [options.model_id, *options.fallbacks]
        self._claim: Claim | None = None
        self._cached = False
        self.unit = Request(self._ended)
        self.unit.on_close = self._closed
        try:
            if isinstance(values, AtelierError):
                raise values
            self._parameters: Mapping[str, Any] = values.parameters
            self._values = _read(values, context.blobs, pictures)
            self._first_that_takes_it(None)
        except AtelierError as error:
            self.unit.failure, self.unit.over = error, True
        except BaseException:
            self._closed()  # equal requests must not wait for it
            raise

    @property
    def failure(self) -> AtelierError | None:
        return self.unit.failure

    def _first_that_takes_it(self, failure: AtelierError | None) -> None:
        """Begin with the next model that can. Raises the last one's error where none can, an InvalidRequest at once."""
        while self._left:
            model_id = self._left.pop(0)
            if failure is not None:
                log.warning("falling back", model_id=model_id, problem=failure.message)
            try:
                self._known: set[str] = set()
                self._models, self._run_ms, self._cached, self._batch_size = 0, 0.0, True, 0
                self._ask_for(model_id, self._values)
                return
            except AtelierError as error:
                if error.code not in PASSED_ON:
                    raise
                failure = error
        if failure is not None:
            raise failure

    def _ask_for(self, model_id: str | None, values: Values) -> None:
        """Begin with this model, at once or when it is loaded."""
        ready = partial(self._loaded, model_id, values, time.monotonic())
        serving = self._context.loader.serving(model_id, self._context, ready)
        if serving is None:
            self.unit.wait()
        else:
            self._enter(serving, values)

    def _loaded(self, model_id: str | None, values: Values, since: float, problem: Problem) -> None:
        """The model is there, or cannot be loaded."""

        def go_on() -> None:
            if isinstance(problem, NoRoomNow):
                self.unit.error = problem  # begun again, as in `_failure_of`
                return
            failure = problem or self._failure_of(partial(self._ask_for, model_id, values))
            if failure is not None and failure.code in PASSED_ON and self._left:
                failure = self._failure_of(partial(self._first_that_takes_it, failure))
            self.unit.failure = failure or self.unit.failure

        self._context.waited(time.monotonic() - since)
        self.unit.arrived(go_on)

    def _enter(self, serving: Serving, values: Values) -> None:
        """Begin with this model: with the steps before it."""
        self._serving = serving
        self._models += 1
        if self._parameters:
            self._known |= serving.before.per_request | serving.after.per_request
            if not serving.model.manifest.then:
                self._check_parameters()
        self._through(serving.before, values, self._prepared)

    def _through(self, chain: Chain, values: Values, then: Callable[[Values], None]) -> None:
        """Take the values through steps, with others' if there are any, and go on with what they leave."""
        if chain.steps:
            lane = self._serving.steps_lane(chain, self._parameters, values)
            self.unit.begin_steps(values, items_of(values), lane, partial(self._stepped, then))
        else:
            then(values)

    def _stepped(self, then: Callable[[Values], None], values: Values | AtelierError) -> None:
        if isinstance(values, AtelierError):
            self.unit.end(None, values)
            return
        failure = self._failure_of(partial(then, values))
        if failure is not None:
            self.unit.end(None, failure)

    def _prepared(self, values: Values) -> None:
        """The steps before the model are done: wait for its turn, or for an equal request's result."""
        serving = self._serving
        names = {info.name for info in serving.facts.inputs}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        if serving.before.steps:  # which may leave more than the model takes
            arrays = {name: array for name, array in arrays.items() if name in names}
        self._carried = {name: value for name, value in values.items() if name not in arrays}
        check(serving.facts, arrays)
        if self._options.outputs is not None and not (serving.after.steps or serving.model.manifest.then):
            check_outputs(serving.facts, self._options.outputs)
        self._tensors, self._items = arrays, _items(arrays) if serving.batched else 1
        self._ask_cache()

    def _check_parameters(self) -> None:
        for name in self._parameters:
            if name not in self._known:
                field = {"field": f"parameters.{name}", "problem": "no step of this model has a parameter of this name"}
                raise InvalidRequest(
                    f"{field['field']}: {field['problem']}.",
                    details={"fields": [{**field, "nearest": nearest(name, self._known)}]},
                )

    def _ask_cache(self) -> None:
        model, settings = self._serving.model, self._serving.model.manifest.cache
        if not (self._options.cache and settings.enabled):
            self._compute()
            return
        key = tensor_bytes.key_of(model.content_hash, self._tensors, None, {})
        self._claim = self._context.results.claim(key, settings.ttl_s, self._claimed)
        if self._claim.value is None and not self._claim.mine:
            self.unit.away = True  # until somebody else has it
        else:
            self._claimed()

    def _claimed(self) -> None:
        """The cache has it, or it is to be computed here."""
        claim = self._claim
        if claim is None or self.unit.closed:
            return
        statistics, name = self._context.statistics, self._serving.name
        if claim.mine:
            statistics.cache(name, hit=False)
            self._compute()
        elif claim.value is not None:
            statistics.cache(name, hit=True)
            outputs, facts = tensor_bytes.unpack(claim.value)
            self.unit.run_ms, self.unit.batch_size = float(facts["run_ms"]), 0
            self._claim = None
            self.unit.end(outputs)
        elif claim.error is not None:
            error = claim.error
            self._claim = None
            self.unit.fail(error if isinstance(error, AtelierError) else InternalError())

    def _compute(self) -> None:
        self._cached = False
        self.unit.begin(self._tensors, self._items, self._serving.lane(self._tensors))

    def _ended(self, unit: Request) -> None:
        """The model has answered, or something has failed."""
        unit.failure = self._failure_of(partial(self._go_on, unit)) or unit.failure

    def _failure_of(self, go_on: Callable[[], None]) -> AtelierError | None:
        """What went wrong with it; None: nothing."""
        try:
            go_on()
        except AtelierError as error:
            return error
        except NoRoomNow as error:
            self.unit.error = error  # the whole job is begun again when there is room
        except Exception:
            log.exception("a prediction failed")
            return InternalError()
        return None

    def _go_on(self, unit: Request) -> None:
        claim, self._claim = self._claim, None
        name, statistics = self._serving.name, self._context.statistics
        if unit.failure is not None:
            failure = unit.failure
            if failure.code in PASSED_ON:
                statistics.failed(name)
            if claim is not None:
                claim.fail(failure)
            if failure.code in PASSED_ON and self._left:
                unit.failure = None
                self._first_that_takes_it(failure)
            return
        outputs = unit.outputs
        assert outputs is not None
        if not self._cached:
            statistics.ran(name, unit.run_ms / 1000, self._items)
        if claim is not None:
            self._settle(claim, outputs, unit.run_ms)
        self._run_ms += unit.run_ms
        self._batch_size = max(self._batch_size, unit.batch_size)
        if self._serving.after.steps:  # which see numbers
            outputs = {name: _widened(array) if name in self._bits else array for name, array in outputs.items()}
        self._through(self._serving.after, {**self._carried, **outputs}, self._finish)

    def _settle(self, claim: Claim, outputs: Tensors, run_ms: float) -> None:
        try:
            claim.settle(tensor_bytes.pack(outputs, {"run_ms": run_ms}))
        except BaseException:
            claim.close()  # the next one computes it
            raise

    def _finish(self, values: Values) -> None:
        """The steps after the model are done: this is the answer, or what the next model takes."""
        then = self._serving.model.manifest.then
        if not then:
            self._left_over = values
            return
        if self._models >= MODELS_MAX:
            raise InvalidRequest(f"A chain has at most {MODELS_MAX} models.")
        self._ask_for(then, values)

    def _closed(self) -> None:
        """Nobody waits for it any more."""
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def answer(self, blobs: list[Blob] | None) -> dict[str, Any]:
        """The result's `data`; what is too large for it goes to `blobs`, if there are any."""
        outputs, predictions = self._asked_for(), self._predictions()
        return {
            "model_id": self._serving.model.model_id,
            "model_version": self._serving.model.version,
            "outputs": [_told(name, tensor, blobs) for name, tensor in outputs.items()],
            "predictions": predictions,
            "inference_time_ms": round(self._run_ms, 3),
            "cached": self._cached,
            "batch_size": self._batch_size,
            "device": self._context.device,
        }

    def answer_or_error(self) -> dict[str, Any]:
        """For a list of answers: one that failed is `{"error": …}`."""
        failure = self.failure
        if failure is None:
            try:
                return self.answer(None)
            except AtelierError as error:
                failure = error
        return {"error": failure.to_wire()}

    @property
    def _bits(self) -> frozenset[str]:
        """The model's outputs of bfloat16, which come as its bits."""
        return frozenset(info.name for info in self._serving.facts.outputs if info.dtype == BFLOAT16)

    def _asked_for(self) -> dict[str, Tensor]:
        bits = frozenset[str]() if self._serving.after.steps else self._bits
        arrays = {name: value for name, value in self._left_over.items() if isinstance(value, np.ndarray)}
        if self._options.outputs is not None:
            for name in self._options.outputs:
                if name not in arrays:
                    known = ", ".join(arrays)
                    raise InvalidRequest(f"outputs: the model answers no {name[:60]!r}; it answers {known}.")
            arrays = {name: arrays[name] for name in self._options.outputs}
        return {name: from_numpy(array, BFLOAT16 if name in bits else None) for name, array in arrays.items()}

    def _predictions(self) -> list[dict[str, Any]]:
        values = self._left_over.items()
        fields = {
            name: value for name, value in values if isinstance(value, list) and name != "images" and name[0] != "_"
        }
        if not fields:
            return []
        return [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]


def _read(values: PredictValues, blobs: Sequence[Blob], pictures: Pictures) -> Values:
    """The request's tensors as arrays, which read its bytes where they lie, and its pictures. Raises InvalidRequest
    and PayloadTooLarge."""
    found: Values = {}
    for index, tensor in enumerate(values.inputs):
        raw = images.file_of(tensor.data, blobs, f"inputs.{index}.data")
        found[tensor.name] = to_numpy(Tensor(tensor.dtype, tuple(tensor.shape), raw))
    if values.images:
        files = [images.file_of(ref, blobs, f"images.{index}") for index, ref in enumerate(values.images)]
        found["images"] = [pictures.decode(file, f"images.{index}") for index, file in enumerate(files)]
    return found


def _items(tensors: Tensors) -> int:
    """How many items a request has. Raises InvalidRequest where its inputs differ in that."""
    counts = {name: array.shape[0] for name, array in tensors.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InvalidRequest(f"inputs: all have the same number of items along their first axis; these have {told}.")
    return next(iter(counts.values()))


def _widened(bits: Array) -> Array:
    """The numbers of a bfloat16's bits, as float32."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


def _told(name: str, tensor: Tensor, blobs: list[Blob] | None) -> dict[str, Any]:
    told = {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    data = memoryview(tensor.data)
    if blobs is None or data.nbytes <= INLINE_BYTES_MAX:
        return {**told, "data": bytes(data)}
    blobs.append(Blob(MEDIA_TYPE, data))
    return {**told, "attachment": len(blobs) - 1}
