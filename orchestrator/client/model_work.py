"""The part of `client.models` that workers answer: models in their memory, and how quick they are there."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

from orchestrator.client.core import RequestOptions
from protocol.errors import AtelierError
from protocol.schemas.base import ResultData
from protocol.schemas.model import StatusResult, WorkerModels
from protocol.schemas.model_worker import (
    BenchmarkInfo,
    ModelBenchmarkResult,
    ModelBenchmarksResult,
    ModelComponentsResult,
    ModelLoadResult,
    ModelReloadResult,
    ModelUnloadResult,
)

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncClient
    from orchestrator.client.sync import Client

Verb = Literal["load", "unload", "components", "reload"]
RESULTS: dict[Verb, type[ResultData]] = {
    "load": ModelLoadResult,
    "unload": ModelUnloadResult,
    "components": ModelComponentsResult,
    "reload": ModelReloadResult,
}
Outcomes = dict[str, ResultData | AtelierError]


class ModelWork:
    """Pin a worker by `worker_id`, or a device by `device_id`, or the server chooses one; or see `everywhere`."""

    _client: "Client"

    def load(self, model_id: str, *, keep: bool = False, **options: Unpack[RequestOptions]) -> ModelLoadResult:
        """Load a model and try it once. With `keep` it is never evicted, until `unload`."""
        data = {"model_id": model_id, "keep": keep}
        return self._client.run("model.load", data, **options).parse(ModelLoadResult)

    def unload(self, model_id: str, **options: Unpack[RequestOptions]) -> ModelUnloadResult:
        """Let go of a model as soon as no job uses it."""
        return self._client.run("model.unload", {"model_id": model_id}, **options).parse(ModelUnloadResult)

    def components(self, model_id: str, **options: Unpack[RequestOptions]) -> ModelComponentsResult:
        """What a model is made of, and where its parts are."""
        return self._client.run("model.components", {"model_id": model_id}, **options).parse(ModelComponentsResult)

    def reload(self, model_id: str | None = None, **options: Unpack[RequestOptions]) -> ModelReloadResult:
        """Look at the files of this loaded model, or of all, again now; what has changed takes over when it works."""
        return self._client.run("model.reload", {"model_id": model_id}, **options).parse(ModelReloadResult)

    def everywhere(self, verb: Verb, model_id: str | None, **fields: Any) -> Outcomes:
        """`load`, `unload`, … on each connected worker that has the model; worker_id -> what came of it there."""
        told = self._client.fetch(StatusResult, "model.status", {"model_id": model_id}).workers
        data = {"model_id": model_id, **fields}
        jobs = {name: self._client.submit(f"model.{verb}", data, worker_id=name) for name in _having(told)}
        found: Outcomes = {}
        for worker_id, job in jobs.items():
            try:
                found[worker_id] = job.result().parse(RESULTS[verb])
            except AtelierError as error:
                found[worker_id] = error
        return found

    def benchmark(self, model_id: str, *, timeout_s: float | None = None, **fields: Any) -> ModelBenchmarkResult:
        """Measure a model. `fields` are those of `ModelBenchmark` (`batch_sizes`, `runs`, …) and of `RequestOptions`.
        What came of it is kept, see `benchmarks`."""
        data, options = _parted(model_id, fields)
        return self._client.run("model.benchmark", data, timeout_s=timeout_s, **options).parse(ModelBenchmarkResult)

    def benchmarks(self, model_id: str, limit: int = 20, before: str | None = None) -> Sequence[BenchmarkInfo]:
        """What was measured of a model, the newest first. `before` (a job_id) goes on where a page ended."""
        data = {"model_id": model_id, "limit": limit, "before": before}
        return self._client.fetch(ModelBenchmarksResult, "model.benchmarks", data).benchmarks


class AsyncModelWork:
    """As `ModelWork`."""

    _client: "AsyncClient"

    async def load(self, model_id: str, *, keep: bool = False, **options: Unpack[RequestOptions]) -> ModelLoadResult:
        data = {"model_id": model_id, "keep": keep}
        return (await self._client.run("model.load", data, **options)).parse(ModelLoadResult)

    async def unload(self, model_id: str, **options: Unpack[RequestOptions]) -> ModelUnloadResult:
        return (await self._client.run("model.unload", {"model_id": model_id}, **options)).parse(ModelUnloadResult)

    async def components(self, model_id: str, **options: Unpack[RequestOptions]) -> ModelComponentsResult:
        made = await self._client.run("model.components", {"model_id": model_id}, **options)
        return made.parse(ModelComponentsResult)

    async def reload(self, model_id: str | None = None, **options: Unpack[RequestOptions]) -> ModelReloadResult:
        return (await self._client.run("model.reload", {"model_id": model_id}, **options)).parse(ModelReloadResult)

    async def everywhere(self, verb: Verb, model_id: str | None, **fields: Any) -> Outcomes:
        told = (await self._client.fetch(StatusResult, "model.status", {"model_id": model_id})).workers
        data = {"model_id": model_id, **fields}
        jobs = {name: await self._client.submit(f"model.{verb}", data, worker_id=name) for name in _having(told)}
        found: Outcomes = {}
        for worker_id, job in jobs.items():
            try:
                found[worker_id] = (await job.result()).parse(RESULTS[verb])
            except AtelierError as error:
                found[worker_id] = error
        return found

    async def benchmark(self, model_id: str, *, timeout_s: float | None = None, **fields: Any) -> ModelBenchmarkResult:
        data, options = _parted(model_id, fields)
        made = await self._client.run("model.benchmark", data, timeout_s=timeout_s, **options)
        return made.parse(ModelBenchmarkResult)

    async def benchmarks(self, model_id: str, limit: int = 20, before: str | None = None) -> Sequence[BenchmarkInfo]:
        data = {"model_id": model_id, "limit": limit, "before": before}
        return (await self._client.fetch(ModelBenchmarksResult, "model.benchmarks", data)).benchmarks


def _having(workers: Sequence[WorkerModels]) -> list[str]:
    return [worker.worker_id for worker in workers if worker.models]


def _parted(model_id: str, fields: dict[str, Any]) -> tuple[dict[str, Any], RequestOptions]:
    """The request's `data`, and what holds for any job."""
    names = RequestOptions.__annotations__
    options = RequestOptions(**{name: value for name, value in fields.items() if name in names})  # type: ignore[typeddict-item]
    data = {name: value for name, value in fields.items() if name not in names and value is not None}
    return {"model_id": model_id, **data}, options
