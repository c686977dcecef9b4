"""What was run of which model on this worker, since its process began: counted by tasks, told in heartbeats."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from protocol.errors import AtelierError
from protocol.histogram import Histogram
from protocol.limits import HEARTBEAT_MODELS_MAX

MODELS_MAX = 1000  # counted; past it the one that nothing happened to for longest is counted anew when it comes back


@dataclass(slots=True)
class _Figures:
    since_ms: int
    changed: int = 0
    inference_count: int = 0
    failures: int = 0
    items: int = 0
    batches: int = 0
    batched_items: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    loads: int = 0
    load_ms: int | None = None
    loaded_at_ms: int | None = None
    reloaded_at_ms: int | None = None
    nbytes: int | None = None
    times: Histogram = field(default_factory=Histogram)

    def to_wire(self, model_id: str) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {"model_id": model_id, **plain, "total_us": self.times.total_us, "times": self.times.to_wire()}


_PLAIN = [name for name in _Figures.__slots__ if name not in ("changed", "times")]


class Statistics:
    """Models are named by their resolved ids, e.g. `loc:1`. Counted on the device thread, told on any."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._models: dict[str, _Figures] = {}  # the one that changed last is the last
        self._changes = 0

    def ran(self, model_id: str, seconds: float, items: int = 1) -> None:
        """One request (or one picture) went through the model well, in so much time, with so many items."""
        with self._lock:
            figures = self._changed(model_id)
            figures.inference_count += 1
            figures.items += items
            figures.times.add(max(round(seconds * 1_000_000), 0))

    def failed(self, model_id: str) -> None:
        """The model failed a request that was right."""
        with self._lock:
            self._changed(model_id).failures += 1

    def batch(self, model_id: str, items: int) -> None:
        """So many items, perhaps of several requests, were computed together."""
        with self._lock:
            figures = self._changed(model_id)
            figures.batches += 1
            figures.batched_items += items

    def cache(self, model_id: str, *, hit: bool) -> None:
        """A request that may be answered from the results that are kept was looked up there."""
        with self._lock:
            figures = self._changed(model_id)
            figures.cache_hits += hit
            figures.cache_misses += not hit

    def loaded(self, model_id: str, seconds: float, nbytes: int) -> None:
        """It was loaded, in so much time, and takes so many bytes of the device's memory."""
        with self._lock:
            figures = self._changed(model_id)
            figures.load_ms = round(seconds * 1000)
            self._load_ended(figures, nbytes)

    def reloaded(self, model_id: str, nbytes: int) -> None:
        """It was loaded beside what had been loaded under its name, and took over."""
        with self._lock:
            figures = self._changed(model_id)
            figures.reloaded_at_ms = self._load_ended(figures, nbytes)

    @contextmanager
    def timed(self, model_id: str) -> Iterator[None]:
        """Count what is done inside as one run or, where it ends with an error that is not the request's own, as one
        failure."""
        begun = time.monotonic()
        try:
            yield
        except AtelierError:  # the request was cancelled, or asks for what cannot be
            raise
        except Exception:
            self.failed(model_id)
            raise
        self.ran(model_id, time.monotonic() - begun)

    def news(self, known: int) -> tuple[list[dict[str, Any]], int]:
        """Of the models that changed after `known`, those that changed first, as many as a heartbeat takes; and up to
        which change they tell all. Figures count from the start, so what was told twice or never does no harm."""
        with self._lock:
            changed = [(model_id, figures) for model_id, figures in self._models.items() if figures.changed > known]
            told = changed[:HEARTBEAT_MODELS_MAX]
            upto = told[-1][1].changed if told else known
            return [figures.to_wire(model_id) for model_id, figures in told], upto

    def _load_ended(self, figures: _Figures, nbytes: int) -> int:
        now_ms = round(self._wall_clock() * 1000)
        figures.loads += 1
        figures.loaded_at_ms, figures.nbytes = now_ms, nbytes
        return now_ms

    def _changed(self, model_id: str) -> _Figures:
        figures = self._models.pop(model_id, None) or _Figures(round(self._wall_clock() * 1000))
        self._models[model_id] = figures
        if len(self._models) > MODELS_MAX:
            del self._models[next(iter(self._models))]
        self._changes += 1
        figures.changed = self._changes
        return figures
