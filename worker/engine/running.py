"""A job that was begun: its task, how far it is, and what it answers."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog

from instructors.memory import NoRoomNow, is_out_of_memory
from instructors.task import Lane, Result, SharedTask, Task, Unit
from protocol.enums import ErrorCode
from protocol.errors import AtelierError, error_map
from protocol.messages import WorkerResult
from worker.engine.planner import Waiting
from worker.engine.workplace import JobContext, Workplace
from worker.jobs import Job
from worker.logs import current_job

NOTHING = Result({})  # what a job answers that failed

log = structlog.get_logger("worker.engine")


class Plain:
    """The one unit of a task that shares nothing."""

    away = False

    def __init__(self, task: Task, context: JobContext) -> None:
        self._task, self._context = task, context
        self.lane: Lane | None = None
        self.rows = 1
        self.done = False
        self.error: BaseException | None = None
        self.result: Result | None = None

    def step(self) -> None:
        try:
            self.result = self._task.step()
            if self.result is None:
                self._context.quantum()
        except Exception as error:
            self.error = error
        self.done = self.error is not None or self.result is not None

    def close(self) -> None:
        self.done = True


class Running:
    """One attempt at work. `over` when `result` and `error` say how it ended."""

    def __init__(self, place: Workplace, job: Job, order: int) -> None:
        self.job = job
        self.priority = job.assign.priority
        self.is_plain = True  # it shares nothing with others
        self._place = place
        self._order = order
        self._begun = time.monotonic()
        self._context = JobContext(place, job)
        self.named = Named(job)
        self._task: Task | None = None
        self.out_of_memory = False  # and to be tried again
        self._retried = False
        self._saved: bytes | None = None  # what the first try had done: its pictures were told already
        self.no_room = False  # it could not be begun beside those that are at work
        self.waiting: list[Waiting] = []
        self.result = NOTHING
        self.error: dict[str, Any] | None = None
        self.over = False

    def begin(self) -> None:
        """Make the task; models are loaded here."""
        with self.named:
            try:
                assign = self.job.assign
                task = self._task = self._place.registry.make_task(assign.action, assign.data, self._context)
                if self._saved is not None:
                    task.restore(self._saved)
            except Exception as error:
                self._failed(error)
            else:
                self.is_plain = not isinstance(task, SharedTask)
                units: Sequence[Unit] = task.units if isinstance(task, SharedTask) else [Plain(task, self._context)]
                now = time.monotonic()
                self.waiting = [Waiting(self, unit, self.priority, self._order, now) for unit in units]

    def look(self) -> None:
        """After a quantum of some of its units: has it ended?"""
        left = []
        for entry in self.waiting:
            if entry.unit.error is not None:
                with self.named:
                    self._failed(entry.unit.error)
                return
            if not entry.unit.done:
                left.append(entry)
        if left:
            self.waiting = left
            return
        self.over = True
        try:
            self.result = self._answer()
        except Exception as error:
            self._failed(error)

    def _answer(self) -> Result:
        if isinstance(self._task, SharedTask):
            return self._task.result()
        unit = self.waiting[0].unit
        assert isinstance(unit, Plain)
        assert unit.result is not None
        return unit.result

    def _failed(self, error: BaseException) -> None:
        if is_out_of_memory(error) and not self._retried and self._task is not None:
            with suppress(Exception):  # it may need memory, too: then the second try begins anew
                self._saved = self._task.save()
        self._leave()
        if isinstance(error, NoRoomNow):
            self._context.close()
            self.no_room, self.error = True, error_map(ErrorCode.OUT_OF_MEMORY)
        elif is_out_of_memory(error):
            self.out_of_memory, self.error = not self._retried, error_map(ErrorCode.OUT_OF_MEMORY)
        elif isinstance(error, AtelierError):
            if not self.job.cancelled:
                log.info("refused", code=error.code.value, message=error.message)
            self.error = error.to_wire()
        else:
            log.error("failed", action=self.job.assign.action, exc_info=error)
            self.error = error_map(ErrorCode.INTERNAL)

    def try_again(self) -> None:
        """Once more, with what it had finished, after it ran out of memory, if models that no job uses can give way.
        Called outside the error's handler: its traceback holds the tensors."""
        self.out_of_memory, self._retried = False, True
        self._place.device.free_cached()
        if self._place.residency.evict_unused():  # not its own
            log.warning("out of memory: trying again with nothing else loaded")
            self._context.close()
            self.over, self.error = False, None
            self.begin()

    def cancel(self) -> None:
        """Leave it between two quanta."""
        self._leave()

    def _leave(self) -> None:
        """It is over, and holds no memory but its models."""
        self.over = True
        if not self.is_plain and isinstance(self._task, SharedTask):
            self._task.close()
        self._task, self.waiting = None, []

    def deliver(self) -> None:
        """Send the result of an attempt that is over."""
        self._leave()
        self._context.close()
        if self.job.cancelled:  # perhaps only after the last quantum
            self.result, self.error = NOTHING, error_map(ErrorCode.CANCELLED)
        job_id, attempt = self.job.key
        load_s = self._context.load_s
        message = WorkerResult(
            job_id=job_id,
            attempt=attempt,
            success=self.error is None,
            data=self.result.data,
            error=self.error,
            load_ms=round(load_s * 1000),
            running_ms=round((time.monotonic() - self._begun - load_s) * 1000),
        )
        with self.named:
            self._place.delivery.send(self.job, message, self.result.blobs)
            log.debug("ended", action=self.job.assign.action, success=self.error is None, cancelled=self.job.cancelled)


class Named:
    """Lines logged meanwhile name this job."""

    def __init__(self, job: Job) -> None:
        self._name = (job.assign.request_id, job.assign.job_id)

    def __enter__(self) -> None:
        current_job.set(self._name)

    def __exit__(self, *_: object) -> None:
        current_job.set(None)
