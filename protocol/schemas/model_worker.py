"""`model.load`, `model.unload`, `model.components`, `model.reload`, `model.benchmark`: models in a worker's memory."""

from typing import Annotated, Any

from pydantic import Field

from protocol.messages import FIRST_FAULT, Int, Name
from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.values import ModelId, Pixels

BENCHMARK_SIZES_MAX = 8

BatchSize = Annotated[Int, Field(ge=1, le=65_536)]


class ModelLoad(ActionData):
    """Load a model and try it once, while others are served. Pin the worker by the request's `worker_id`."""

    model_id: ModelId
    keep: bool = False  # never evict it, until `model.unload`


class ModelLoadResult(ResultData):
    model_id: str
    content_hash: str
    nbytes: int  # of memory
    load_ms: int  # that this request waited for it
    device: str
    was_loaded: bool
    kept: bool  # it is never evicted


class ModelUnload(ActionData):
    """Let go of a model as soon as no job uses it, also of one that was kept."""

    model_id: ModelId


class ModelUnloadResult(ResultData):
    model_id: str
    was_loaded: bool
    in_use: bool = False  # jobs at work use it; it leaves with the last of them


class ModelComponents(ActionData):
    model_id: ModelId


class TensorInfo(ResultData):
    name: str
    dtype: str
    shape: list[int | str | None]  # an open axis is its name, or null


class ComponentInfo(ResultData):
    """Of a pipeline."""

    name: str
    class_name: str
    elements: int  # numbers in its weights
    nbytes: int  # what they take, or would
    dtype: str | None = None  # null: it has no weights
    where: str  # the device; `aside`: in the machine's memory, from where it comes back quickly; `files`: not loaded
    shared_with: list[str] = []  # other loaded models that have the same
    providers: list[str] | None = None  # of a loaded ONNX graph: what it really runs on


class GraphInfo(ResultData):
    """An ONNX model."""

    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    opset: int  # of ONNX's own operators
    elements: int  # numbers in its weights
    providers: list[str] | None = None  # what it really runs on; null: it is not loaded
    fell_back: bool | None = None  # whether that is less than what was asked for
    batched: bool  # whether requests share a batch
    max_batch_size: int
    instances: int  # batches that are computed at a time
    preprocess: list[str] = []  # the steps before it
    postprocess: list[str] = []  # and after it


class ModelComponentsResult(ResultData):
    """What a model is made of, on one worker."""

    model_id: str
    content_hash: str
    family: str
    device: str
    loaded: bool
    kept: bool
    nbytes: int | None = None  # what it takes, or what its files would; null: not all of it is there at a time
    components: list[ComponentInfo] = []  # of a pipeline
    graph: GraphInfo | None = None  # of an ONNX model


class ModelReload(ActionData):
    """Look at the files of loaded models again, now. What has changed is loaded beside what is in use, tried, and takes
    its place; if it is not usable, the old one stays."""

    model_id: ModelId | None = None  # null: all that are loaded


class ReloadFailure(ResultData):
    model_id: str
    error: dict[str, Any]  # {code, message, …}


class ModelReloadResult(ResultData):
    reloaded: list[str]
    unchanged: list[str]
    failed: list[ReloadFailure]


class ModelBenchmark(ActionData):
    """Measure a model on the worker that gets this. Other jobs go on meanwhile, at the cost of both."""

    model_id: ModelId
    batch_sizes: Annotated[list[BatchSize], Field(min_length=1, max_length=BENCHMARK_SIZES_MAX), FIRST_FAULT] | None = (
        None
    )
    # items, or pictures, that are computed together; null: 1, 8 and 32 as far as the model takes them, of pictures 1, 2
    runs: Annotated[Int, Field(ge=1, le=1000)] | None = None  # of each batch size; null: 50, of pictures 3
    warmup: Annotated[Int, Field(ge=0, le=100)] | None = None  # runs before those; null: 2, of pictures 1
    axes: Annotated[dict[Name, Annotated[Int, Field(ge=1, le=65_536)]], Field(max_length=64)] = {}
    # of an ONNX model: the sizes of its other open axes, by name; 1 where it is not said
    width: Pixels | None = None  # of pictures; null: the model's own
    height: Pixels | None = None
    steps: Annotated[Int, Field(ge=1, le=100)] | None = None  # of pictures; null: 4


class BatchFigures(ResultData):
    """Of one batch size."""

    batch_size: int
    runs: int  # measured; fewer than asked for where the time was over
    p50_ms: float  # of a whole batch
    p95_ms: float
    per_s: float  # items, or pictures, a second
    peak_nbytes: int | None = None  # of memory: the process's on a CPU, what torch or the device counted on a GPU


class ModelBenchmarkResult(ResultData):
    model_id: str
    content_hash: str
    family: str
    device: str
    device_kind: str
    cold_load_ms: float | None = None  # loaded anew, its files read from the disk; null: it was in use
    warm_load_ms: float | None = None  # loaded anew right after
    nbytes: int  # of memory, when it was loaded
    batches: list[BatchFigures]
    providers: list[str] | None = None  # of an ONNX model: what it really ran on
    settings: dict[str, Any] = {}  # what of the request matters for the figures: width, height, steps, axes, dtype
    versions: dict[str, str] = {}  # library -> version


class ModelBenchmarks(ActionData):
    model_id: ModelId
    limit: Annotated[Int, Field(ge=1, le=1000)] = 20
    before: Name | None = None  # go on below this job_id


class BenchmarkInfo(ModelBenchmarkResult):
    """A benchmark that was made."""

    job_id: str
    at: str  # RFC 3339
    worker_id: str | None = None


class ModelBenchmarksResult(ResultData):
    benchmarks: list[BenchmarkInfo]  # the newest first


ACTIONS = [
    Action("model.load", "worker", ModelLoad, ModelLoadResult, "Load a model, and keep it if asked.", light=True),
    Action("model.unload", "worker", ModelUnload, ModelUnloadResult, "Let go of a loaded model.", light=True),
    Action(
        "model.components",
        "worker",
        ModelComponents,
        ModelComponentsResult,
        "What a model is made of, and where that is.",
        light=True,
    ),
    Action("model.reload", "worker", ModelReload, ModelReloadResult, "Take up changed files of models.", light=True),
    Action("model.benchmark", "worker", ModelBenchmark, ModelBenchmarkResult, "Measure a model."),
    Action("model.benchmarks", "orchestrator", ModelBenchmarks, ModelBenchmarksResult, "What was measured of a model."),
]
