"""What was run of a model, as `model.info` and `system.stats` tell it."""

from protocol.schemas.base import ResultData


class RunFigures(ResultData):
    """Counted since the workers' processes began; those of workers that ended before the server's start are not in."""

    inference_count: int = 0  # requests that went through the model well, or pictures
    failures: int = 0  # requests that it failed, not those that were wrong
    items: int = 0  # of those that went well
    batches: int = 0  # computed, where items of several requests may be computed together
    mean_batch_size: float | None = None  # items in one; null: there were none
    cache_hits: int = 0  # answered without computing
    cache_misses: int = 0
    cache_hit_rate: float | None = None  # 0 to 1; null: nothing was looked up
    loads: int = 0  # into a device's memory
    avg_ms: float | None = None  # inference time of a request; null: there were none
    p50_ms: float | None = None  # this and the next two within 4 %
    p95_ms: float | None = None
    p99_ms: float | None = None


class DeviceFigures(RunFigures):
    """On one worker."""

    worker_id: str
    device_id: str
    kind: str  # of the device
    resident: bool  # it is loaded there now
    nbytes: int | None = None  # it takes on the device while it is loaded
    load_ms: int | None = None  # its last load took
    last_loaded_at: str | None = None  # RFC 3339
    last_reloaded_at: str | None = None  # it last took over from what had been loaded under its name
