"""The device thread: takes jobs from the mailbox and runs one task at a time, quantum by quantum."""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from instructors.memory import is_out_of_memory
from instructors.models import ModelFolder
from instructors.registry import Registry
from instructors.task import Blob, R, Result
from protocol.enums import ErrorCode, EventName, HeldState
from protocol.errors import AtelierError, Cancelled, error_map
from protocol.messages import WorkerEvent, WorkerResult
from worker.delivery import Delivery
from worker.hardware import Device
from worker.jobs import Job
from worker.logs import current_job
from worker.pulse import Pulse
from worker.residency import Residency

IDLE_S = 2.0  # how often an idle device's free memory is measured
CRASHED = 1  # exit code
OUT_OF_MEMORY = error_map(ErrorCode.OUT_OF_MEMORY)

log = structlog.get_logger("worker.engine")


@dataclass(slots=True)
class Workplace:
    """What the jobs of this process share."""

    registry: Registry
    device: Device
    models: ModelFolder
    residency: Residency
    delivery: Delivery
    pulse: Pulse


class JobContext:
    """`instructors.task.Context` for one job."""

    __slots__ = ("_job", "_pins", "_place", "load_s")

    def __init__(self, place: Workplace, job: Job) -> None:
        self._place = place
        self._job = job
        self._pins: list[str] = []
        self.load_s = 0.0

    @property
    def blobs(self) -> Sequence[Blob]:
        return self._job.blobs

    @property
    def device(self) -> str:
        return self._place.device.device_id

    @property
    def device_kind(self) -> str:
        return self._place.device.kind

    @property
    def models(self) -> ModelFolder:
        return self._place.models

    def quantum(self) -> None:
        self._place.pulse.beat()
        if self._job.cancelled:
            raise Cancelled

    def emit(self, event: EventName, data: dict[str, Any], blobs: Sequence[Blob] = ()) -> None:
        job_id, attempt = self._job.key
        self._place.delivery.send(self._job, WorkerEvent(job_id=job_id, attempt=attempt, event=event, data=data), blobs)

    def resident(self, key: str, nbytes: int, load: Callable[[], R]) -> R:
        residency = self._place.residency
        value: Any = residency.get(key)
        if value is None:
            begun = time.monotonic()
            with self._place.pulse.loading():
                value = residency.load(key, nbytes, load)
            self.load_s += time.monotonic() - begun
            log.info("loaded", key=key, nbytes=value.nbytes, load_ms=round(self.load_s * 1000))
        self._pins.append(key)
        return value

    def close(self) -> None:
        for key in self._pins:
            self._place.residency.unpin(key)


class Engine(threading.Thread):
    """Runs until `stop`, or until the end of the mailbox after `finish`."""

    def __init__(self, place: Workplace, warm_up: Callable[[], None]) -> None:
        """`warm_up` imports what is slow to import; jobs that need none of it wait for it all the same."""
        super().__init__(name="device", daemon=True)
        self._place = place
        self._warm_up = warm_up
        self._mailbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopping = False
        self._beginning = threading.Lock()  # either the device thread begins a job, or it is withdrawn
        self.room = threading.Event()  # cleared while too many results wait for their acknowledgement
        self.room.set()
        self.memory_free = place.device.memory_free()  # as last measured: asking a hung driver would hang the asker

    def assign(self, job: Job) -> None:
        self._mailbox.put(job)

    def cancel(self, job: Job) -> bool:
        """Have the device thread leave a job at its next quantum. True: it had not begun it, and will not."""
        with self._beginning:
            job.cancelled = True
            return job.state is HeldState.ASSIGNED

    def finish(self) -> None:
        """End after the jobs assigned so far."""
        self._mailbox.put(None)

    def stop(self) -> None:
        """End after the running job; those not begun stay assigned."""
        self._stopping = True
        self.room.set()
        self._mailbox.put(None)

    def run(self) -> None:
        try:
            with self._place.pulse.loading():
                self._warm_up()
            self._place.pulse.ready()
            self._loop()
        except BaseException:
            log.critical("the device thread failed", exc_info=True)
            os._exit(CRASHED)

    def _loop(self) -> None:
        measured = 0.0
        while True:
            if time.monotonic() - measured > IDLE_S:
                self.memory_free = self._place.device.memory_free()
                measured = time.monotonic()
            self._place.pulse.idle()
            try:
                job = self._mailbox.get(timeout=IDLE_S)
            except queue.Empty:
                continue
            self.room.wait()
            if job is None or self._stopping:
                return
            if self._begin(job):
                self._run(job)

    def _begin(self, job: Job) -> bool:
        with self._beginning:
            if job.cancelled:
                return False
            job.state = HeldState.RUNNING
            return True

    def _run(self, job: Job) -> None:
        current_job.set((job.assign.request_id, job.assign.job_id))
        context = JobContext(self._place, job)
        self._place.pulse.beat()
        begun = time.monotonic()
        try:
            result, error = self._attempt(job, context)
            if error is OUT_OF_MEMORY and self._place.residency.evict_unused():
                log.warning("out of memory: trying again with nothing else loaded")
                result, error = self._attempt(job, context)
        finally:
            context.close()
        if job.cancelled:  # perhaps only after the last quantum
            result, error = Result({}), error_map(ErrorCode.CANCELLED)
        job_id, attempt = job.key
        message = WorkerResult(
            job_id=job_id,
            attempt=attempt,
            success=error is None,
            data=result.data,
            error=error,
            load_ms=round(context.load_s * 1000),
            running_ms=round((time.monotonic() - begun - context.load_s) * 1000),
        )
        self._place.delivery.send(job, message, result.blobs)
        log.debug("ended", action=job.assign.action, success=error is None, cancelled=job.cancelled)
        current_job.set(None)

    def _attempt(self, job: Job, context: JobContext) -> tuple[Result, dict[str, Any] | None]:
        """The result and None, or an empty one and the error for the client."""
        try:
            task = self._place.registry.make_task(job.assign.action, job.assign.data, context)
            while (result := task.step()) is None:
                context.quantum()
            return result, None
        except AtelierError as error:
            if not job.cancelled:
                log.info("refused", code=error.code.value, message=error.message)
            return Result({}), error.to_wire()
        except Exception as error:
            log.exception("failed", action=job.assign.action)
            if not is_out_of_memory(error):
                return Result({}), error_map(ErrorCode.INTERNAL)
        self._place.device.free_cached()  # outside the handler: its traceback held the tensors
        return Result({}), OUT_OF_MEMORY
