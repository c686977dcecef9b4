"""`inference.predict` and `predict.batch`."""

from collections.abc import Sequence
from importlib.util import find_spec

import msgpack

from instructors import images
from instructors.registry import Registry
from instructors.task import Blob, Context, Result, SharedTask
from protocol.errors import AtelierError
from protocol.schemas import ACTIONS
from protocol.schemas.predict import BatchData, PredictData, PredictValues, read_items


class Predict(SharedTask):
    """`inference.predict`: one prediction."""

    def __init__(self, data: PredictData, context: Context) -> None:
        from instructors.prediction import Pictures, Prediction

        self._prediction = Prediction(context, data, data, Pictures())
        if self._prediction.failure is not None:
            raise self._prediction.failure
        self.units = [self._prediction.unit]

    def result(self) -> Result:
        if self._prediction.failure is not None:
            raise self._prediction.failure
        blobs: list[Blob] = []
        return Result(self._prediction.answer(blobs), blobs)


class Batch(SharedTask):
    """`predict.batch`: several predictions of one model, each of which fails for itself."""

    def __init__(self, data: BatchData, context: Context) -> None:
        from instructors.prediction import Pictures, Prediction

        entries: Sequence[PredictValues | AtelierError] = data.requests
        if data.items is not None:
            entries = read_items(images.file_of(data.items, context.blobs, "items"))
        self._predictions: list[Prediction] = []
        pictures = Pictures()
        try:
            for entry in entries:
                self._predictions.append(Prediction(context, data, entry, pictures))
        finally:
            self.units = [prediction.unit for prediction in self._predictions]
            if len(self.units) < len(entries):
                self.close()  # equal requests must not wait for those that were begun

    def result(self) -> Result:
        answers = [prediction.answer_or_error() for prediction in self._predictions]
        failed = sum("error" in answer for answer in answers)
        blob = Blob("application/msgpack", lambda: msgpack.packb(answers))
        return Result({"results": 0, "count": len(answers), "failed": failed}, [blob])


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that compute are not installed."""
    if not (find_spec("onnxruntime") and find_spec("numpy")):
        return
    registry.add(ACTIONS["inference.predict"], Predict, shares=True)
    registry.add(ACTIONS["predict.batch"], Batch, shares=True)
