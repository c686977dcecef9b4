"""`client.models`, of both clients: what the server can run, and which versions answer to which names."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from orchestrator.client.core import RequestOptions
from orchestrator.client.model_sources import Source, source_of
from orchestrator.client.model_work import AsyncModelWork, ModelWork
from orchestrator.client.results import Blob, Result
from protocol.schemas.model import (
    DEFAULT_ALIAS,
    AliasInfo,
    ChangeInfo,
    HistoryResult,
    MetadataInfo,
    ModelInfo,
    ModelListResult,
    StatusResult,
    TrafficInfo,
    VersionInfo,
    WorkerModels,
)
from protocol.schemas.model_files import DiscoveredModel, ModelConvertResult, ModelDiscoverResult, ModelValidateResult

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncClient
    from orchestrator.client.sync import Client

Target = Literal["onnx", "diffusers"]
Precision = Literal["float32", "float16", "int8"]


def _registration(source: Source, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[Blob]]:
    """The `data`, header fields and attachments of a `model.register`."""
    told, blobs = source_of(source)
    header = {"worker_id": fields.pop("worker_id")} if fields.get("worker_id") is not None else {}
    fields.pop("worker_id", None)
    return {**fields, "source": told}, header, blobs


class Discovering(TypedDict, total=False):
    """What `discover` takes; the fields of `ModelDiscover`."""

    folders: Sequence[str]
    types: Sequence[str]
    families: Sequence[str]
    worker_id: str


class Models(ModelWork):
    """`client.models`. `author`, where a call takes it, is who changes something, for the history.

    A model is asked for as `name`, `name:version`, `name@alias`, or as MLflow calls it (`models:/name@alias`).
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

    def list(self, name: str | None = None, *, after: str | None = None) -> ModelListResult:
        """Models of the connected workers, registered versions, and the models of requests that name none. `after` (a
        model_id) goes on where an answer ended that has `more`."""
        return self._client.fetch(ModelListResult, "model.list", {"name": name, "after": after})

    def info(self, model_id: str) -> ModelInfo:
        """All that is known of a version, or of a model that comes in none."""
        return self._client.fetch(ModelInfo, "model.info", {"model_id": model_id})

    def status(self, model_id: str | None = None) -> "Sequence[WorkerModels]":
        """What each connected worker has, and has loaded."""
        return self._client.fetch(StatusResult, "model.status", {"model_id": model_id}).workers

    def register(
        self,
        name: str,
        source: Source,
        *,
        version: str | None = None,
        metadata: dict[str, Any] | None = None,
        alias: str | None = None,
        author: str | None = None,
        worker_id: str | None = None,
        timeout_s: float | None = None,
    ) -> VersionInfo:
        """Bring in a new version; `version` None: the next number. A Path is sent; a text is a URL, MLflow's name of a
        model, or a folder in the worker's model folder. Raises RequestConflict for a version that is there already."""
        fields = {"name": name, "version": version, "metadata": metadata or {}, "alias": alias, "author": author}
        data, header, blobs = _registration(source, {**fields, "worker_id": worker_id})
        core = self._client.core
        return core.wait(core.ask("model.register", data, blobs, **header), timeout_s).parse(VersionInfo)

    def set_alias(
        self, name: str, alias: str, version: str | None, *, author: str | None = None, timeout_s: float | None = None
    ) -> AliasInfo:
        """Let `name@alias` be this version, once the workers that serve the one before have loaded it; None takes the
        alias away. Raises the error of a worker that cannot load it: then the alias stays."""
        data = {"name": name, "alias": alias, "version": version, "author": author}
        return self._client.fetch(AliasInfo, "model.set_alias", data, timeout_s=timeout_s)

    def rollback(
        self, name: str, alias: str = DEFAULT_ALIAS, *, author: str | None = None, timeout_s: float | None = None
    ) -> AliasInfo:
        """Let an alias point to the version before; again, to the one before that."""
        data = {"name": name, "alias": alias, "author": author}
        return self._client.fetch(AliasInfo, "model.rollback", data, timeout_s=timeout_s)

    def set_traffic(self, name: str, splits: dict[str, float] | None = None, **fields: Any) -> TrafficInfo:
        """Split the requests for a name: `{"1": 90, "2": 10}`. `fields` are those of `SetTraffic`: `shadow`,
        `fallbacks`, `policy`, `author`. Nothing of it: as without traffic."""
        return self._client.fetch(TrafficInfo, "model.set_traffic", _traffic(name, splits, fields))

    def get_metadata(self, name: str, version: str | None = None) -> MetadataInfo:
        return self._client.fetch(MetadataInfo, "model.get_metadata", {"name": name, "version": version})

    def put_metadata(
        self,
        name: str,
        metadata: dict[str, Any],
        version: str | None = None,
        *,
        revision: int | None = None,
        author: str | None = None,
    ) -> MetadataInfo:
        """Change the fields that are given; None takes one away. Raises RequestConflict where `revision` is given and
        somebody else was first."""
        data = {"name": name, "version": version, "metadata": metadata, "revision": revision, "author": author}
        return self._client.fetch(MetadataInfo, "model.put_metadata", data)

    def history(self, name: str, limit: int = 50, before: str | None = None) -> "Sequence[ChangeInfo]":
        """Who changed what, the newest first. `before` (a change_id) goes on where a page ended."""
        data = {"name": name, "limit": limit, "before": before}
        return self._client.fetch(HistoryResult, "model.history", data).changes

    def discover(self, **fields: Unpack[Discovering]) -> "Sequence[DiscoveredModel]":
        """What lies in a worker's folders of models. `worker_id` names one, where several are connected."""
        data, options = _discovering(fields)
        found: list[DiscoveredModel] = []
        while True:
            result = self._client.run("model.discover", data, **options)
            page = result.parse(ModelDiscoverResult)
            found += page.models
            if page.next is None:
                return found
            data, options = _next_page(data, page, result)

    def validate(
        self, model_id: str, *, deep: bool = False, values: bool = True, **options: Unpack[RequestOptions]
    ) -> ModelValidateResult:
        """Check the files of a model, or of what `discover` tells by its `name`; `deep` runs it, too. An invalid one
        is an answer, not an error."""
        data = {_named(model_id): model_id, "deep": deep, "values": values}
        return self._client.run("model.validate", data, **options).parse(ModelValidateResult)

    def convert(
        self,
        source: str,
        name: str,
        *,
        to: Target = "onnx",
        precision: Precision = "float32",
        version: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> ModelConvertResult:
        """Make another form of a worker's model; `version` None: the next number. Takes minutes for a large model.

        Raises RequestConflict for a version that is there already, and ModelInvalid where what was made differs too
        much from the source.
        """
        data = _conversion(source, name, to, precision, version)
        return self._client.run("model.convert", data, **options).parse(ModelConvertResult)

    def delete_version(self, name: str, version: str, *, author: str | None = None) -> VersionInfo:
        """Take a version out of the registry; its files stay. Raises RequestConflict while something points to it."""
        data = {"name": name, "version": version, "author": author}
        return self._client.fetch(VersionInfo, "model.delete_version", data)


class AsyncModels(AsyncModelWork):
    """`client.models`, as `Models`."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def list(self, name: str | None = None, *, after: str | None = None) -> ModelListResult:
        return await self._client.fetch(ModelListResult, "model.list", {"name": name, "after": after})

    async def info(self, model_id: str) -> ModelInfo:
        return await self._client.fetch(ModelInfo, "model.info", {"model_id": model_id})

    async def status(self, model_id: str | None = None) -> "Sequence[WorkerModels]":
        return (await self._client.fetch(StatusResult, "model.status", {"model_id": model_id})).workers

    async def register(
        self,
        name: str,
        source: Source,
        *,
        version: str | None = None,
        metadata: dict[str, Any] | None = None,
        alias: str | None = None,
        author: str | None = None,
        worker_id: str | None = None,
        timeout_s: float | None = None,
    ) -> VersionInfo:
        fields = {"name": name, "version": version, "metadata": metadata or {}, "alias": alias, "author": author}
        data, header, blobs = await asyncio.to_thread(_registration, source, {**fields, "worker_id": worker_id})
        pending = self._client.core.ask("model.register", data, blobs, **header)
        return (await self._client.answer(pending, timeout_s)).parse(VersionInfo)

    async def set_alias(
        self, name: str, alias: str, version: str | None, *, author: str | None = None, timeout_s: float | None = None
    ) -> AliasInfo:
        data = {"name": name, "alias": alias, "version": version, "author": author}
        return await self._client.fetch(AliasInfo, "model.set_alias", data, timeout_s=timeout_s)

    async def rollback(
        self, name: str, alias: str = DEFAULT_ALIAS, *, author: str | None = None, timeout_s: float | None = None
    ) -> AliasInfo:
        data = {"name": name, "alias": alias, "author": author}
        return await self._client.fetch(AliasInfo, "model.rollback", data, timeout_s=timeout_s)

    async def set_traffic(self, name: str, splits: dict[str, float] | None = None, **fields: Any) -> TrafficInfo:
        return await self._client.fetch(TrafficInfo, "model.set_traffic", _traffic(name, splits, fields))

    async def get_metadata(self, name: str, version: str | None = None) -> MetadataInfo:
        return await self._client.fetch(MetadataInfo, "model.get_metadata", {"name": name, "version": version})

    async def put_metadata(
        self,
        name: str,
        metadata: dict[str, Any],
        version: str | None = None,
        *,
        revision: int | None = None,
        author: str | None = None,
    ) -> MetadataInfo:
        data = {"name": name, "version": version, "metadata": metadata, "revision": revision, "author": author}
        return await self._client.fetch(MetadataInfo, "model.put_metadata", data)

    async def history(self, name: str, limit: int = 50, before: str | None = None) -> "Sequence[ChangeInfo]":
        data = {"name": name, "limit": limit, "before": before}
        return (await self._client.fetch(HistoryResult, "model.history", data)).changes

    async def discover(self, **fields: Unpack[Discovering]) -> "Sequence[DiscoveredModel]":
        data, options = _discovering(fields)
        found: list[DiscoveredModel] = []
        while True:
            result = await self._client.run("model.discover", data, **options)
            page = result.parse(ModelDiscoverResult)
            found += page.models
            if page.next is None:
                return found
            data, options = _next_page(data, page, result)

    async def validate(
        self, model_id: str, *, deep: bool = False, values: bool = True, **options: Unpack[RequestOptions]
    ) -> ModelValidateResult:
        data = {_named(model_id): model_id, "deep": deep, "values": values}
        return (await self._client.run("model.validate", data, **options)).parse(ModelValidateResult)

    async def convert(
        self,
        source: str,
        name: str,
        *,
        to: Target = "onnx",
        precision: Precision = "float32",
        version: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> ModelConvertResult:
        data = _conversion(source, name, to, precision, version)
        return (await self._client.run("model.convert", data, **options)).parse(ModelConvertResult)

    async def delete_version(self, name: str, version: str, *, author: str | None = None) -> VersionInfo:
        data = {"name": name, "version": version, "author": author}
        return await self._client.fetch(VersionInfo, "model.delete_version", data)


def _conversion(source: str, name: str, to: Target, precision: Precision, version: str | None) -> dict[str, str | None]:
    return {"source": source, "name": name, "to": to, "precision": precision, "version": version}


def _named(model_id: str) -> str:
    """The field for it: names of `discover` are paths below a label."""
    return "name" if "/" in model_id and not model_id.startswith("models:/") else "model_id"


def _discovering(fields: "Discovering") -> tuple[dict[str, Any], RequestOptions]:
    data: dict[str, Any] = {**fields}
    worker_id = data.pop("worker_id", None)
    return data, RequestOptions() if worker_id is None else RequestOptions(worker_id=worker_id)


def _next_page(
    data: dict[str, Any], page: ModelDiscoverResult, result: Result
) -> tuple[dict[str, Any], RequestOptions]:
    """Of the same worker: another one has other folders."""
    options = RequestOptions() if result.worker_id is None else RequestOptions(worker_id=result.worker_id)
    return {**data, "after": page.next}, options


def _traffic(name: str, splits: dict[str, float] | None, fields: dict[str, Any]) -> dict[str, Any]:
    shares = [{"version": version, "weight": float(weight)} for version, weight in (splits or {}).items()]
    return {"name": name, "splits": shares, **fields}
