"""How quick a pipeline is: a picture, and several together, step by step, so that other jobs have their turn.

Only the time of its own steps counts, so what others do in between is not in the figures.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from instructors import measure
from instructors.pictures import check_size
from instructors.pipelines import loading, trial
from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.streams import Stream
from instructors.task import Context, step_units
from protocol.enums import EventName
from protocol.errors import InvalidRequest
from protocol.schemas.model_worker import ModelBenchmark

SIZES = (1, 2)
SIZE_MAX = 64  # pictures together
RUNS, WARMUP, STEPS = 3, 1, 4


def run(model_id: str, data: ModelBenchmark, context: Context, found: dict[str, Any]) -> Iterator[None]:
    """Gives way after each quantum; `found` is filled with the fields of `ModelBenchmarkResult` that it finds out.
    Raises InvalidRequest, and what loading and painting raise."""
    if data.axes or max(data.batch_sizes or SIZES) > SIZE_MAX:
        raise InvalidRequest(f"A pipeline has no axes, and paints at most {SIZE_MAX} pictures together.")
    kept = any(context.is_kept(key) for key in context.keys_of(model_id))
    found["cold_load_ms"] = _load_cold(model_id, context)
    begun, there = time.perf_counter(), bool(context.keys_of(model_id))
    loaded = loading.resident(model_id, context)
    found["warm_load_ms"] = None if there else round((time.perf_counter() - begun) * 1000, 3)
    context.keep(loading.key_of(loaded.model, loaded.settings), kept)
    yield
    own_width, own_height = loaded.default_size or (trial.SIDE, trial.SIDE)
    width, height, steps = data.width or own_width, data.height or own_height, data.steps or STEPS
    sizes = data.batch_sizes or SIZES
    check_size(width, height, loaded, max(sizes))
    found["nbytes"] = loaded.nbytes
    found["settings"] = {"width": width, "height": height, "steps": steps, "dtype": loaded.dtype}
    found["batches"] = []
    for number, size in enumerate(sizes):
        context.emit(EventName.PROGRESS, {"progress": number / len(sizes), "eta_ms": None, "batch_size": size})
        yield from _measure(loaded, (width, height, steps), size, data, context, found["batches"])


def _load_cold(model_id: str, context: Context) -> float | None:
    """Milliseconds to load it from the disk, and let go of it again; None where a job uses it."""
    place = context.lasting
    if not all(context.forget(key) for key in context.keys_of(model_id)):
        return None
    measure.forget_cached(context.models.path_of(model_id))
    begun = time.perf_counter()
    loading.resident(model_id, place)
    load_ms = round((time.perf_counter() - begun) * 1000, 3)
    place.close()
    for key in context.keys_of(model_id):
        context.forget(key)
    return load_ms


def _measure(
    loaded: LoadedModel,
    form: tuple[int, int, int],
    size: int,
    data: ModelBenchmark,
    context: Context,
    batches: list[dict[str, Any]],
) -> Iterator[None]:
    warmup = WARMUP if data.warmup is None else data.warmup
    for _ in range(warmup):
        yield from _paint(loaded, form, size, context, [])
    peak, seconds = _Peak(context.device), list[float]()
    while len(seconds) < (data.runs or RUNS) and sum(seconds) < measure.BATCH_S_MAX:
        yield from _paint(loaded, form, size, context, seconds)
    batches.append(measure.figures(size, seconds, peak.nbytes))


def _paint(
    loaded: LoadedModel, form: tuple[int, int, int], size: int, context: Context, seconds: list[float]
) -> Iterator[None]:
    """So many pictures together."""
    pictures = [_picture(loaded, form, seed, context) for seed in range(size)]
    spent = 0.0
    try:
        while waiting := [picture for picture in pictures if not picture.done]:
            yield
            begun = time.perf_counter()
            step_units([picture for picture in waiting if picture.lane is waiting[0].lane])
            spent += time.perf_counter() - begun
            for picture in pictures:
                if picture.error is not None:
                    raise picture.error
    finally:
        for picture in pictures:
            picture.close()
    seconds.append(spent)


def _picture(loaded: LoadedModel, form: tuple[int, int, int], seed: int, context: Context) -> Stream:
    plan = trial.plan(loaded, *form)
    _, scheduler = loaded.schedulers.get(None, form[2], seed, None)
    return Stream(lambda: loaded.generate(plan, scheduler, seed, lambda *_: context.quantum()))


class _Peak:
    """Of the device's memory: what torch took of a GPU, else this process's own."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._process = measure.Peak(os.getpid())
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def nbytes(self) -> int | None:
        return self._process.nbytes if self._device == "cpu" else int(torch.cuda.max_memory_allocated(self._device))
