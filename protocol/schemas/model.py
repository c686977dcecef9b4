"""`model.*`: what the fleet can run, and which versions of it answer to which names."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from protocol.codec import pack
from protocol.limits import INT_MAX, KIB
from protocol.messages import FIRST_FAULT, Count, Int, Name
from protocol.model_ids import ALIAS, NAME, VERSION
from protocol.schemas.artifact import ArtifactRef
from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.model_figures import DeviceFigures, RunFigures
from protocol.schemas.values import AttachmentRef, ModelId, Share

DEFAULT_ALIAS = "default"
SPLITS_MAX = 16
FALLBACKS_MAX = 8
WEIGHTS_SUM = 100
WORDS_MAX = 64  # tags, trigger words, hashes, metrics of a model
USER_BYTES_MAX = 16 * KIB
FILES_MAX = 1000  # of one model that is sent

ModelName = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
VersionName = Annotated[str, Field(pattern=f"^{VERSION.pattern}$")]
AliasName = Annotated[str, Field(pattern=f"^{ALIAS.pattern}$")]
Words = Annotated[list[Name], Field(max_length=WORDS_MAX), FIRST_FAULT]
Text = Annotated[str, Field(max_length=10_000)]


def _plain(value: Any, depth: int = 8) -> Iterator[str]:
    """What is wrong with a value that is to be told as JSON again."""
    if depth == 0:
        yield "is nested too deep"
    elif isinstance(value, dict):
        yield from (problem for item in value.values() for problem in _plain(item, depth - 1))
    elif isinstance(value, list):
        yield from (problem for item in value for problem in _plain(item, depth - 1))
    elif isinstance(value, float) and not math.isfinite(value):
        yield "must hold finite numbers"
    elif not (value is None or isinstance(value, bool | int | float | str)):
        yield "must hold numbers, strings, true, false, null, lists and maps alone"


def _small_and_plain(value: dict[str, Any]) -> dict[str, Any]:
    problem = next(_plain(value), None)
    if problem is None and len(pack(value)) > USER_BYTES_MAX:
        problem = f"has more than {USER_BYTES_MAX} bytes"
    if problem is not None:
        raise ValueError(problem)
    return value


Plain = Annotated[dict[Name, Any], AfterValidator(_small_and_plain)]


class ModelRef(ActionData):
    model_id: ModelId  # `name`, or any form that a request may name a model by, see Models by name


class MetadataFields(ActionData):
    """What is known of a model or a version. In a request: what is left out stays as it is, null takes it away."""

    type: Name | None = None  # diffusion, onnx, …
    architecture: Name | None = None
    family: Name | None = None
    nbytes: Count | None = None  # of its files
    dtype: Name | None = None
    tags: Words | None = None
    license: Name | None = None
    trigger_words: Words | None = None  # words of a prompt that call it up
    source: Annotated[str, Field(max_length=1000)] | None = None  # where it came from
    hashes: Annotated[dict[Name, Name], Field(max_length=WORDS_MAX)] | None = None  # what of -> hexadecimal digits
    description: Text | None = None
    cost: Annotated[float, Field(ge=0)] | None = None  # of one request, in a unit of your own; see the traffic's policy
    user: Plain | None = None  # fields of your own; replaced as a whole


class PutMetadata(ActionData):
    name: ModelName
    version: VersionName | None = None  # null: what holds for all its versions
    metadata: MetadataFields  # what to change
    revision: Count | None = None  # change it only if this is its revision; null: whatever it is
    author: Name | None = None  # who changes it, for the history


class GetMetadata(ActionData):
    name: ModelName
    version: VersionName | None = None  # null: what holds for all its versions


class MetadataInfo(ResultData):
    name: str
    version: str | None = None
    revision: int  # rises by one with each change; 0: nothing was ever put
    metadata: MetadataFields


class ModelFile(ActionData):
    """A file of a model that is sent."""

    path: Annotated[str, Field(min_length=1, max_length=200)]  # in the model's folder, e.g. `unet/config.json`
    parts: Annotated[list[AttachmentRef | ArtifactRef], Field(min_length=1, max_length=64)]  # its bytes, in order


class ModelSource(ActionData):
    """Where a version's files are. Give exactly one field."""

    folder: Annotated[str, Field(min_length=1, max_length=400)] | None = None  # in a worker's model folder
    url: Annotated[str, Field(min_length=1, max_length=1000)] | None = (
        None  # of a folder or file, e.g. `s3://bucket/key`
    )
    mlflow: Annotated[str, Field(min_length=1, max_length=400)] | None = None  # e.g. `models:/name@alias`
    files: Annotated[list[ModelFile], Field(min_length=1, max_length=FILES_MAX)] | None = None  # sent with the request

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.folder, self.url, self.mlflow, self.files)) != 1:
            raise ValueError("give exactly one of folder, url, mlflow and files")
        return self


class Register(ActionData):
    """Pin the worker whose model folder it is to lie in by the request's `worker_id`."""

    name: ModelName
    version: VersionName | None = None  # null: one more than the highest number among its versions
    source: ModelSource
    metadata: MetadataFields = MetadataFields()  # of the version, beside what its files tell
    alias: AliasName | None = None  # to be moved to it then; null: none
    author: Name | None = None


class FetchData(ActionData):
    """For the server's own use: `model.register` asks a worker for it."""

    name: ModelName
    version: VersionName
    source: ModelSource


class FetchResult(ResultData):
    """What was fetched, checked, and lies in the model folder."""

    content_hash: str
    nbytes: int
    files: int | None = None  # how many
    metadata: dict[str, Any] = {}  # as MetadataFields
    run_id: str | None = None  # of the experiment that made it
    metrics: dict[str, float] = {}  # as they were registered where it came from
    tags: dict[str, str] = {}  # likewise
    warnings: list[str] = []  # what was taken, and should be said otherwise


class VersionInfo(ResultData):
    """A registered version."""

    name: str
    version: str
    model_id: str  # what to ask for: `name:version`
    created_at: str  # when it was registered
    source: dict[str, Any] = {}  # as ModelSource, without bytes
    content_hash: str | None = None
    nbytes: int | None = None  # of its files
    run_id: str | None = None
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    aliases: list[str] = []  # that point to it
    warnings: list[str] = []  # of a registration: what was taken, and should be said otherwise


class SetAlias(ActionData):
    """Workers that have the version before loaded load the new one first; if one cannot, the alias stays."""

    name: ModelName
    alias: AliasName
    version: VersionName | None  # null: take the alias away
    author: Name | None = None


class Rollback(ActionData):
    name: ModelName
    alias: AliasName = DEFAULT_ALIAS
    author: Name | None = None


class AliasInfo(ResultData):
    name: str
    alias: str
    version: str | None  # what it points to now; null: it is gone
    before: str | None  # what it pointed to; null: there was none
    loaded_on: list[str] = []  # workers that loaded the version before the alias moved


class DeleteVersion(ActionData):
    """Its row alone: no file is deleted. Refused while an alias or traffic points to it."""

    name: ModelName
    version: VersionName
    author: Name | None = None


class Split(ActionData):
    version: VersionName
    weight: Annotated[float, Field(gt=0, le=WEIGHTS_SUM)]  # in percent


class Shadow(ActionData):
    """A version that gets a copy of some requests; what it answers is compared and dropped."""

    version: VersionName
    fraction: Share  # of the requests


class Policy(ActionData):
    """Which models of the chain may take a request."""

    latency_ms_max: Annotated[Int, Field(ge=1, le=INT_MAX)] | None = None
    # slower ones are passed over where a faster one follows, by the run times that were measured; null: none is
    devices: Annotated[list[Name], Field(min_length=1, max_length=16)] | None = None
    # only on these, by device_id or kind: `cpu`, `cuda`, `cuda:1`, `NVIDIA H200`; null: on any
    cost_max: Annotated[float, Field(ge=0)] | None = None  # only those whose metadata tells no greater cost; null: any


class SetTraffic(ActionData):
    """Where requests go that ask for a model by its name alone. Without splits, shadow and fallbacks: as without
    traffic."""

    name: ModelName
    splits: Annotated[list[Split], Field(max_length=SPLITS_MAX)] = []
    # weights sum to 100; [] is as the alias `default` says, else the newest version
    shadow: Shadow | None = None
    fallbacks: Annotated[list[ModelId], Field(max_length=FALLBACKS_MAX)] = []  # to use in turn where that one cannot be
    policy: Policy = Policy()
    author: Name | None = None

    @model_validator(mode="after")
    def _weights(self) -> Self:
        versions = [split.version for split in self.splits]
        if len(set(versions)) < len(versions):
            raise ValueError("a version stands in the splits once")
        total = sum(split.weight for split in self.splits)
        if self.splits and abs(total - WEIGHTS_SUM) > 1e-6:
            raise ValueError(f"the weights must sum to {WEIGHTS_SUM}; they sum to {total:g}")
        return self


class TrafficInfo(ResultData):
    name: str
    splits: list[Split] = []
    shadow: Shadow | None = None
    fallbacks: list[str] = []
    policy: Policy = Policy()


class ShadowStats(ResultData):
    """What came of the requests that were copied to a shadow, since the server's start."""

    version: str
    compared: int = 0  # both answered
    equal: int = 0  # of these, with the same answer
    differing: int = 0
    failed: int = 0  # the shadow failed
    dropped: int = 0  # copies that were not made, or given up, because the server had other work
    max_abs_diff: float | None = None  # of two numbers at the same place; null: no tensors were compared
    equal_share: float | None = None  # of the numbers that were compared
    avg_run_ms: float | None = None  # the shadow's


class History(ActionData):
    name: ModelName
    limit: Annotated[Int, Field(ge=1, le=1000)] = 50
    before: Name | None = None  # go on below this change_id


class ChangeInfo(ResultData):
    change_id: str
    at: str  # RFC 3339
    kind: str  # register, alias, rollback, traffic, metadata, delete_version
    subject: str | None = None  # the alias or version
    tenant: str
    author: str | None = None
    before: Any = None  # what it was, by `kind`
    after: Any = None  # what it became


class HistoryResult(ResultData):
    changes: list[ChangeInfo]  # the newest first
    more: bool = False  # there are older ones: long ones make a page shorter


class StatusData(ActionData):
    model_id: ModelId | None = None  # this model, in all its versions where none is named; null: all


class ModelOnWorker(ResultData):
    model_id: str
    resident: bool  # loaded
    kept: bool | None = None  # it stays loaded; null: the worker does not say
    loading: bool = False  # by the server's own doing
    problem: str | None = None  # why it cannot be used; null: it can


class WorkerModels(ResultData):
    worker_id: str
    device_id: str
    device_kind: str
    models: list[ModelOnWorker]


class StatusResult(ResultData):
    workers: list[WorkerModels]  # the connected ones
    more: bool = False  # there are more than one answer holds: ask for one model


class ModelInfo(ResultData):
    """Of a version, or of a model that comes in none."""

    model_id: str
    name: str
    version: str | None = None
    registered: bool = False  # the registry has a row of this version
    aliases: list[str] = []  # that point to it
    versions: list[str] = []  # all that are registered or offered, the newest first
    created_at: str | None = None  # when it was registered
    source: dict[str, Any] = {}
    content_hash: str | None = None
    nbytes: int | None = None  # of its files
    run_id: str | None = None
    metrics: dict[str, float] = {}  # as registered
    tags: dict[str, str] = {}
    metadata: MetadataFields = MetadataFields()  # the version's, over the name's
    family: str | None = None
    actions: list[str] = []
    workers: list[str] = []  # that have it
    resident_on: list[str] = []
    traffic: TrafficInfo | None = None  # of its name
    shadow: ShadowStats | None = None  # where it is or was a shadow
    per_device: list[DeviceFigures] = []  # what connected workers that ran or loaded it have counted
    totals: RunFigures = RunFigures()  # of all workers, also of those that are gone


class ModelList(ActionData):
    name: ModelName | None = None  # the versions of this model; null: all models
    after: ModelId | None = None  # go on behind this model_id
    limit: Annotated[Int, Field(ge=1, le=1000)] = 1000


class ModelListResult(ResultData):
    """What can be asked for by name, in the order of the ids."""

    models: list[dict[str, Any]]
    # {model_id, name, version, aliases, registered, family, actions, content_hash, nbytes, workers, resident_on:
    # [worker_id]}, of all that workers offer or that is registered; `nbytes`: what the weights take on one of the
    # workers' devices, null: not known
    more: bool = False  # there are more behind the last
    default_model_id: str | None = None  # of pictures, where a request names none
    default_model_ids: dict[str, str] = {}  # action -> the model of requests that name none


ACTIONS = [
    Action("model.list", "orchestrator", ModelList, ModelListResult, "Models of the connected workers, and versions."),
    Action("model.info", "orchestrator", ModelRef, ModelInfo, "All that is known of a model."),
    Action("model.status", "orchestrator", StatusData, StatusResult, "What each worker has, and has loaded."),
    Action("model.register", "orchestrator", Register, VersionInfo, "Bring in a new version of a model."),
    Action("model.set_alias", "orchestrator", SetAlias, AliasInfo, "Let an alias point to a version."),
    Action("model.rollback", "orchestrator", Rollback, AliasInfo, "Let an alias point to the version before."),
    Action("model.set_traffic", "orchestrator", SetTraffic, TrafficInfo, "Split a name's requests between versions."),
    Action("model.get_metadata", "orchestrator", GetMetadata, MetadataInfo, "What is known of a model."),
    Action("model.put_metadata", "orchestrator", PutMetadata, MetadataInfo, "Say what is known of a model."),
    Action("model.history", "orchestrator", History, HistoryResult, "Who changed what of a model, and when."),
    Action("model.delete_version", "orchestrator", DeleteVersion, VersionInfo, "Take a version out of the registry."),
    Action("model.fetch", "worker", FetchData, FetchResult, "Bring a version's files into a worker's model folder."),
]
