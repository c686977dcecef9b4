"""What the jobs of a worker share, and what it lends to each."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from instructors.models import ModelFolder
from instructors.registry import Registry
from instructors.results_cache import ResultsCache
from instructors.statistics import Statistics
from instructors.task import Blob, Padding, R, Resident, Source
from protocol.enums import EventName
from protocol.errors import Cancelled
from protocol.messages import WorkerEvent
from worker.delivery import Delivery
from worker.engine.mailbox import Mailbox
from worker.hardware import Device
from worker.jobs import Job
from worker.pulse import Pulse
from worker.residency import Residency

if TYPE_CHECKING:
    from instructors.pipelines.onnx.loading import Loader

Letter = Job | Callable[[], None] | None  # to the device thread; None: look who is to end

log = structlog.get_logger("worker.engine")


@dataclass(slots=True)
class Workplace:
    """What the jobs of this process share. `quantum_s`: how long a quantum of several units may take."""

    registry: Registry
    device: Device
    models: ModelFolder
    residency: Residency
    delivery: Delivery
    pulse: Pulse
    padding: Padding
    quantum_s: float
    results: ResultsCache
    cache_dir: Path | None = None
    statistics: Statistics = field(default_factory=Statistics)
    mailbox: Mailbox[Letter] = field(default_factory=Mailbox)
    loader: "Loader | None" = None  # made when it is first asked for: it needs libraries that may not be there


class WorkerPlace:
    """`instructors.task.Place` of this process. What it loads stays until it is closed."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._pins: list[str] = []
        self.load_s = 0.0

    @property
    def device(self) -> str:
        return self._place.device.device_id

    @property
    def device_kind(self) -> str:
        return self._place.device.kind

    @property
    def models(self) -> ModelFolder:
        return self._place.models

    @property
    def padding(self) -> Padding:
        return self._place.padding

    @property
    def results(self) -> ResultsCache:
        return self._place.results

    @property
    def loader(self) -> "Loader":
        if self._place.loader is None:
            from instructors.pipelines.onnx.loading import Loader

            self._place.loader = Loader()
        return self._place.loader

    @property
    def cache_dir(self) -> Path | None:
        return self._place.cache_dir

    @property
    def lasting(self) -> "WorkerPlace":
        return WorkerPlace(self._place)

    def waited(self, seconds: float) -> None:
        self.load_s += seconds

    @property
    def statistics(self) -> Statistics:
        return self._place.statistics

    def at_hand(self, key: str) -> Resident | None:
        value = self._place.residency.at_hand(key)
        if value is not None:
            self._pins.append(key)
        return value

    def resident(self, key: str, nbytes: int, load: Callable[[], R]) -> R:
        residency = self._place.residency
        value: Any = self.at_hand(key)
        if value is not None:
            return value
        begun = time.monotonic()
        with self._place.pulse.loading():  # what was set aside takes time to come back, too
            value = residency.get(key)
            there = value is not None
            if not there:
                value = residency.load(key, nbytes, load)
        load_s = time.monotonic() - begun
        self.load_s += load_s
        if not there:
            if "/" not in value.name:  # it is a model's own; a LoRA's has one
                self.statistics.loaded(value.name, load_s, value.nbytes)
            log.info("loaded", key=key, nbytes=value.nbytes, load_ms=round(self.load_s * 1000))
        self._pins.append(key)
        return value

    def part(self, key: str) -> Any:
        return self._place.residency.part(key)

    def forget(self, key: str) -> bool:
        return self._place.residency.forget(key)

    def reserve(self, key: str, nbytes: int) -> None:
        self._place.residency.reserve(key, nbytes)

    def release(self, key: str) -> None:
        self._place.residency.release(key)

    def adopt(self, key: str, value: Resident, load_s: float | None = None) -> None:
        self._place.residency.load(key, value.nbytes, lambda: value)
        self._place.residency.unpin(key)
        if load_s is None:
            self.statistics.reloaded(value.name, value.nbytes)
        else:
            self.statistics.loaded(value.name, load_s, value.nbytes)
            log.info("loaded", key=key, nbytes=value.nbytes, load_ms=round(load_s * 1000))

    def retire(self, key: str) -> None:
        self._place.residency.retire(key)

    def keep(self, key: str, kept: bool = True) -> None:
        self._place.residency.keep(key, kept)

    def is_kept(self, key: str) -> bool:
        return self._place.residency.is_kept(key)

    @property
    def loaded(self) -> list[str]:
        return self._place.residency.names

    def keys_of(self, name: str) -> list[str]:
        return self._place.residency.keys_of(name)

    def holders(self, part_key: str) -> dict[str, bool]:
        return self._place.residency.holders(part_key)

    def watch(self, source: Source, arrived: Callable[[], None]) -> None:
        self._place.mailbox.watch(source, arrived)

    def unwatch(self, source: Source) -> None:
        self._place.mailbox.unwatch(source)

    def call_soon(self, function: Callable[[], None]) -> None:
        self._place.mailbox.put(function)

    def close(self) -> None:
        for key in self._pins:
            self._place.residency.unpin(key)
        self._pins.clear()


class JobContext(WorkerPlace):
    """`instructors.task.Context` for one job."""

    def __init__(self, place: Workplace, job: Job) -> None:
        super().__init__(place)
        self._job = job

    @property
    def blobs(self) -> Sequence[Blob]:
        return self._job.blobs

    def quantum(self) -> None:
        self._place.pulse.beat()
        if self._job.cancelled:
            raise Cancelled

    def emit(self, event: EventName, data: dict[str, Any], blobs: Sequence[Blob] = ()) -> None:
        job_id, attempt = self._job.key
        self._place.delivery.send(self._job, WorkerEvent(job_id=job_id, attempt=attempt, event=event, data=data), blobs)
