"""What was run of which model on which worker, from the figures in heartbeats; nothing of it is stored.

A worker's figures count from the start of its process, so the latest ones say all. When its process is another one,
what the one before had counted goes into the sum of those that ended.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.clock import rfc3339
from orchestrator.core.fleet import Fleet, Worker
from protocol.histogram import Histogram, summary
from protocol.limits import INT_MAX
from protocol.messages import ModelFigures

ENTRIES_MAX = (
    10_000  # (worker, model) with figures of their own; past it the one that was silent longest counts as ended
)
MODELS_MAX = 10_000  # with figures of processes that ended; past it the one that changed longest ago is forgotten

COUNTS = ("inference_count", "failures", "items", "batches", "batched_items", "cache_hits", "cache_misses", "loads")


@dataclass(slots=True)
class Sum:
    """Figures of several processes, or models."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    times: Histogram = field(default_factory=Histogram)

    def add(self, other: "Sum", times: int = 1) -> None:
        """With -1, take it out again."""
        for name in COUNTS:
            self.counts[name] += times * other.counts[name]
        self.times.merge(other.times, times)

    def to_wire(self) -> dict[str, Any]:
        """The fields of `RunFigures`."""
        counts = {name: min(count, INT_MAX) for name, count in self.counts.items()}
        looked_up = counts["cache_hits"] + counts["cache_misses"]
        return {
            "mean_batch_size": _ratio(counts.pop("batched_items"), counts["batches"]),
            "cache_hit_rate": _ratio(counts["cache_hits"], looked_up),
            **counts,
            **summary(self.times),
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """What one process counted of one model. `device`: id and kind."""

    instance_id: str
    device: tuple[str, str]
    figures: ModelFigures

    def sum(self) -> Sum:
        figures = self.figures
        return Sum({name: getattr(figures, name) for name in COUNTS}, Histogram(figures.times, figures.total_us))


class ModelStats:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._latest: dict[tuple[str, str], Entry] = {}  # by worker and model, the one heard of last is the last
        self._workers: dict[str, dict[str, None]] = {}  # model -> workers with an entry
        self._ended: dict[str, Sum] = {}  # by model, the one that changed last is the last
        self._everything = Sum()

    def take(self, worker: Worker, models: Iterable[ModelFigures]) -> None:
        """What a heartbeat told."""
        for figures in models:
            key = worker.worker_id, figures.model_id
            entry = Entry(worker.instance_id, (worker.device_id, worker.profile.device_kind), figures)
            before = self._latest.get(key)
            if before is not None:
                same = _same_process(before, entry)
                self._drop(key, ended=not same)
                if same:
                    self._everything.add(before.sum(), -1)
            self._latest[key] = entry
            self._everything.add(entry.sum())
            self._workers.setdefault(figures.model_id, {})[worker.worker_id] = None
            if len(self._latest) > ENTRIES_MAX:
                self._drop(next(iter(self._latest)), ended=True)

    def info(self, model_id: str) -> dict[str, Any]:
        """`per_device`: a map of `DeviceFigures` for each connected worker that ran or loaded the model (by its
        resolved id), `totals`: `RunFigures` of all workers, also of those that are gone."""
        entries = [(worker_id, self._latest[worker_id, model_id]) for worker_id in self._workers.get(model_id, ())]
        connected = [(worker_id, entry) for worker_id, entry in sorted(entries) if worker_id in self._fleet.by_id]
        per_device = [self._on_device(worker_id, model_id, entry) for worker_id, entry in connected]
        return {"per_device": per_device, "totals": self._sum(model_id).to_wire()}

    def totals(self) -> dict[str, Any]:
        """`RunFigures` of all models together."""
        return self._everything.to_wire()

    def _sum(self, model_id: str) -> Sum:
        found = Sum()
        if model_id in self._ended:
            found.add(self._ended[model_id])
        for worker_id in self._workers.get(model_id, ()):
            found.add(self._latest[worker_id, model_id].sum())
        return found

    def _on_device(self, worker_id: str, model_id: str, entry: Entry) -> dict[str, Any]:
        figures, (device_id, kind) = entry.figures, entry.device
        return {
            "worker_id": worker_id,
            "device_id": device_id,
            "kind": kind,
            "resident": model_id in self._fleet.by_id[worker_id].profile.resident,
            "nbytes": figures.nbytes,
            "load_ms": figures.load_ms,
            "last_loaded_at": _time(figures.loaded_at_ms),
            "last_reloaded_at": _time(figures.reloaded_at_ms),
            **entry.sum().to_wire(),
        }

    def _drop(self, key: tuple[str, str], *, ended: bool) -> None:
        """Take an entry out. What was counted by a process that has ended is kept."""
        worker_id, model_id = key
        entry = self._latest.pop(key)
        del self._workers[model_id][worker_id]
        if not self._workers[model_id]:
            del self._workers[model_id]
        if ended:
            total = self._ended.pop(model_id, None) or Sum()
            total.add(entry.sum())
            self._ended[model_id] = total
            if len(self._ended) > MODELS_MAX:
                del self._ended[next(iter(self._ended))]


def _same_process(one: Entry, other: Entry) -> bool:
    """A worker that starts its device process again keeps its instance_id, and counts anew."""
    return (one.instance_id, one.figures.since_ms) == (other.instance_id, other.figures.since_ms)


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _time(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)
