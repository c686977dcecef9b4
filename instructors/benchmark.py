"""`model.benchmark`: how long a model takes to load and to run, and what memory, on this worker."""

import threading
from collections.abc import Iterator
from typing import Any

import structlog

from instructors import measure
from instructors.model import Waiting, check_libraries
from instructors.models import ONNX, Model
from instructors.registry import Registry
from instructors.task import Context, Result, SharedTask, Task
from protocol.enums import EventName
from protocol.errors import AtelierError, InternalError, InvalidRequest
from protocol.schemas import ACTIONS
from protocol.schemas.model_worker import ModelBenchmark

log = structlog.get_logger("instructors.benchmark")


def _about(model: Model, context: Context) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "content_hash": model.content_hash,
        "family": model.family,
        "device": context.device,
        "device_kind": context.device_kind,
        "versions": measure.versions(),
    }


class Predicting(SharedTask):
    """Of an ONNX model: away all the time, for it is measured in a process of its own."""

    def __init__(self, model: Model, data: ModelBenchmark, context: Context) -> None:
        from instructors.pipelines.onnx.benchmark import Benchmark
        from instructors.pipelines.onnx.loading import spec_of

        for field in ("width", "height", "steps"):
            if getattr(data, field) is not None:
                raise InvalidRequest(f"{field}: this model makes no pictures; say sizes of open axes by axes.")
        self._context = context
        self._answer = {**_about(model, context), "settings": {"axes": data.axes} if data.axes else {}}
        self._unit = Waiting()
        self.units = [self._unit]
        self._benchmark = Benchmark(model, spec_of(model, context), data, self._progress)
        self._unit.away = True
        threading.Thread(target=self._run, name="benchmark", daemon=True).start()

    def _progress(self, share: float) -> None:
        told = {"progress": share, "eta_ms": None}
        self._context.call_soon(lambda: None if self._unit.done else self._context.emit(EventName.PROGRESS, told))

    def _run(self) -> None:
        """On a thread of its own."""
        found: dict[str, Any] = {}
        problem: AtelierError | None = None
        try:
            found = self._benchmark.run()
        except AtelierError as error:
            problem = error
        except Exception:
            log.exception("a benchmark failed")
            problem = InternalError()

        def take() -> None:
            if problem is not None:
                raise problem
            self._answer |= found

        self._context.call_soon(lambda: self._unit.go_on(take))

    def result(self) -> Result:
        return Result(self._answer)

    def close(self) -> None:
        self._benchmark.stop()
        super().close()


class Painting(Task):
    """Of a pipeline."""

    def __init__(self, model: Model, data: ModelBenchmark, context: Context) -> None:
        from instructors.pipelines import benchmark

        self._answer = _about(model, context)
        self._work: Iterator[None] = benchmark.run(model.model_id, data, context, self._answer)

    def step(self) -> Result | None:
        for _ in self._work:
            return None
        return Result(self._answer)


def benchmark(data: ModelBenchmark, context: Context) -> Task:
    model = context.models.find(data.model_id)
    check_libraries(model)
    return (Predicting if model.family == ONNX else Painting)(model, data, context)


def register(registry: Registry) -> None:
    registry.add(ACTIONS["model.benchmark"], benchmark, shares=True)
