"""How quick an ONNX model is: measured in a process of its own, on a thread of its own, so that others are served."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from instructors import measure
from instructors.models import Model
from instructors.pipelines.onnx.facts import BFLOAT16, DTYPES, STRING, Array, Facts, RunnerSpec, TensorInfo
from instructors.pipelines.onnx.runner import Runner
from instructors.pipelines.onnx.serving import has_batch_axis
from protocol.errors import Cancelled, InvalidRequest
from protocol.limits import MIB
from protocol.schemas.model_worker import ModelBenchmark

SIZES = (1, 8, 32)
RUNS, WARMUP = 50, 2
FEED_BYTES_MAX = 256 * MIB
ONE = 0x3F80  # as bfloat16

Progress = Callable[[float], None]


class Benchmark:
    """`run` is for a thread of its own; `stop` ends it at its next run, from any."""

    def __init__(self, model: Model, spec: RunnerSpec, data: ModelBenchmark, progress: Progress) -> None:
        """`progress` is told the share that is done."""
        self._model, self._spec, self._data, self._progress = model, spec, data, progress
        self._stopped = False
        self._before = _gpu_bytes(spec.device)

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> dict[str, Any]:
        """The fields of `ModelBenchmarkResult` that it finds out. Raises Cancelled, InvalidRequest, and what starting
        and running the model raise."""
        measure.forget_cached(self._model.path)
        runner, cold_ms = _started(dataclasses.replace(self._spec, cache=None))
        runner.close()
        self._check()
        runner, warm_ms = _started(self._spec)
        if self._spec.cache is not None and not runner.facts.from_cache:  # it was made just now
            runner.close()
            runner, warm_ms = _started(self._spec)
        try:
            sizes = self._sizes(runner.facts)
            return {
                "cold_load_ms": round(cold_ms, 3),
                "warm_load_ms": round(warm_ms, 3),
                "nbytes": runner.facts.nbytes,
                "providers": list(runner.facts.providers),
                "batches": [self._measure(runner, size, number / len(sizes)) for number, size in enumerate(sizes)],
            }
        finally:
            runner.close()

    def _check(self) -> None:
        if self._stopped:
            raise Cancelled

    def _sizes(self, facts: Facts) -> Sequence[int]:
        asked, batching = self._data.batch_sizes, self._model.manifest.batching
        if not (batching.max_batch_size > 1 and has_batch_axis(facts)):
            if asked not in (None, [1]):
                raise _invalid("batch_sizes", "this model takes one request at a time; ask for 1")
            return [1]
        return asked or [size for size in SIZES if size <= batching.max_batch_size]

    def _measure(self, runner: Runner, size: int, done: float) -> dict[str, Any]:
        feed = self._feed(runner.facts, size)
        self._progress(done)
        warmup = WARMUP if self._data.warmup is None else self._data.warmup
        for _ in range(warmup):
            self._check()
            runner.run(feed)
        peak, seconds = measure.Peak(runner.pid), list[float]()
        until = time.monotonic() + measure.BATCH_S_MAX
        while len(seconds) < (self._data.runs or RUNS) and (not seconds or time.monotonic() < until):
            self._check()
            begun = time.perf_counter()
            runner.run(feed)
            seconds.append(time.perf_counter() - begun)
        on_gpu = self._spec.device != "cpu"
        nbytes = max(_gpu_bytes(self._spec.device) - self._before, 0) if on_gpu else peak.nbytes
        return measure.figures(size, seconds, nbytes)

    def _feed(self, facts: Facts, size: int) -> dict[str, Array]:
        """Numbers at random, the same each time; whole numbers are 0, which every vocabulary has."""
        axes, known = self._data.axes, set[str]()
        batched, rng = has_batch_axis(facts), np.random.default_rng(0)
        feed, nbytes = {}, 0
        for info in facts.inputs:
            shape = _shape(info, size if batched else None, axes)
            known.update(side for side in info.shape[batched:] if isinstance(side, str))
            nbytes += int(np.prod(shape, dtype=float)) * DTYPES[info.dtype].itemsize
            if nbytes > FEED_BYTES_MAX:
                raise _invalid("batch_sizes", f"{size} items are more than {FEED_BYTES_MAX // MIB} MiB")
            feed[info.name] = _values(info, shape, rng)
        if unknown := axes.keys() - known:
            raise _invalid("axes", f"the model has no open axis {min(unknown)[:60]!r}; it has {sorted(known)[:20]}")
        return feed


def _shape(info: TensorInfo, size: int | None, axes: Mapping[str, int]) -> list[int]:
    sides = [side if isinstance(side, int) else axes.get(side or "", 1) for side in info.shape]
    return sides if size is None else [size, *sides[1:]]


def _values(info: TensorInfo, shape: list[int], rng: np.random.Generator) -> Array:
    if info.dtype == STRING:
        return np.full(shape, "", object)
    if info.dtype == BFLOAT16:
        return np.full(shape, ONE, DTYPES[BFLOAT16])
    dtype = DTYPES[info.dtype]
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)


def _started(spec: RunnerSpec) -> tuple[Runner, float]:
    """The model's process, and how many milliseconds it took until that could compute."""
    begun = time.perf_counter()
    runner = Runner.start(spec)
    return runner, (time.perf_counter() - begun) * 1000


def _gpu_bytes(device: str) -> int:
    """What all processes have of the GPU's memory; 0 without one."""
    if device == "cpu":
        return 0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)


def _invalid(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {problem}.", details={"fields": [{"field": field, "problem": problem}]})
