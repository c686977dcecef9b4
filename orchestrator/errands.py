"""Errands: jobs that the orchestrator submits itself, to go on when they have ended.

An errand is a job in memory like any other with `wait: true`: it counts in the queue, is listed by `job.list` (its
request_id begins with `errand.`), and is cancelled if the orchestrator ends, for nobody asks for it again. In place of
a client's connection stands an `Asker`: the core takes it as one, and the broker hands it what a client would be sent.
"""

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from orchestrator.core import events as e
from orchestrator.core.model import Job
from orchestrator.core.states import JobState
from orchestrator.payload import Payload, cost_of, requirement_of
from protocol.enums import ErrorCode, Status
from protocol.errors import AtelierError, QueueFull
from protocol.ids import new_id

if TYPE_CHECKING:
    from orchestrator.broker import Broker

log = structlog.get_logger("orchestrator")

ERRANDS_MAX = 256  # in flight
PREFIX = "errand."


class Ended(NamedTuple):
    """How an errand, or a job that was watched, ended. `error` as on the wire; None: well."""

    job_id: str
    data: dict[str, Any]
    error: dict[str, Any] | None
    attachments: Sequence[dict[str, Any]]
    frames: Sequence[Any]
    running_ms: int
    worker_id: str | None

    def exception(self) -> AtelierError:
        return AtelierError.from_wire(self.error or {})

    @property
    def failed_as(self) -> str | None:
        return None if self.error is None else self.error.get("code")


Continuation = Callable[[Ended], None]


class Asker:
    """Who hears of an errand. It is told once."""

    __slots__ = ("ended", "job_id", "lost", "request_id", "worker_id")

    def __init__(self, request_id: str, ended: Continuation, job_id: str, worker_id: str | None = None) -> None:
        self.request_id = request_id
        self.ended = ended
        self.job_id = job_id
        self.worker_id = worker_id  # that it is pinned to
        self.lost = False  # that worker is gone


class Errands:
    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._open: dict[str, Asker] = {}  # by request_id
        self._told: deque[tuple[Asker, Ended]] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def run(
        self,
        tenant: str,
        payload: Payload,
        ended: Continuation,
        *,
        deadline_ms: int,
        priority: int,
        worker_id: str | None = None,
        queue_timeout_ms: int | None = None,
        any_model: bool = False,
    ) -> str:
        """Submit a job; `ended` is called once, in a later turn of the loop. Returns its job_id. Raises QueueFull.

        `deadline_ms` bounds it from now to its end. An errand that is pinned to a worker ends when that is gone. With
        `any_model` it is not asked whether the worker offers the model: it may be new there.
        """
        if len(self._open) >= ERRANDS_MAX:
            raise QueueFull("The server has too much to do for itself.", retry_after_ms=1000)
        need = requirement_of(payload.action, payload.data, worker_id, None)
        if any_model:
            need = need._replace(model_id=None)
        request_id = f"{PREFIX}{new_id()}"
        fingerprint, cost = sha256(request_id.encode()).digest(), cost_of(payload.action, payload.data)
        job = Job(new_id(), tenant, request_id, fingerprint, need, cost, priority, durable=False)
        job.deadline_ms, job.queue_timeout_ms = deadline_ms, queue_timeout_ms
        job.payload = payload
        job.payload_nbytes = sum(entry["nbytes"] for entry in payload.attachments) if payload.frames else 0
        asker = self._open[request_id] = Asker(request_id, ended, job.job_id, worker_id)
        self._broker.feed(e.Submit(job, asker, probed=False))
        return job.job_id

    def watch(self, job_id: str, ended: Continuation, wait_ms: int) -> None:
        """Hear of the end of a job that the core knows; with a `timeout_run` where it has not ended in time."""
        if len(self._open) >= ERRANDS_MAX:
            raise QueueFull("The server has too much to do for itself.", retry_after_ms=1000)
        asker = Asker(f"{PREFIX}{new_id()}", ended, job_id)
        self._open[asker.request_id] = asker
        self._broker.feed(e.AskResult(job_id, asker, asker.request_id, wait_ms))

    def cancel(self, job_id: str) -> None:
        """End an errand; its continuation hears `cancelled`."""
        if job_id in self._broker.core.jobs:
            self._broker.feed(e.CancelJob(job_id, Asker("", lambda _: None, job_id), ""))

    def answered(self, asker: Asker, header: dict[str, Any], frames: Sequence[Any]) -> None:
        """What a client would be sent. The continuation runs later: the core is in the midst of an event."""
        if self._open.pop(asker.request_id, None) is not None:
            self._told.append((asker, _ended(asker, header, frames)))

    def go_on(self) -> None:
        """Run the continuations of what has ended, and of what ends by them."""
        while self._told:
            asker, ended = self._told.popleft()
            try:
                asker.ended(ended)
            except Exception:  # a fault of ours in one errand must not end the others
                log.exception("an errand could not go on", job_id=asker.job_id)

    def give_up_lost(self) -> None:
        """End what waits for a worker that is gone, for it may never come back, or that is told to leave."""
        for asker in list(self._open.values()):
            if asker.worker_id is not None and self._waits_in_vain(asker.worker_id, asker.job_id):
                asker.lost = True
                self.cancel(asker.job_id)

    def _waits_in_vain(self, worker_id: str, job_id: str) -> bool:
        worker, job = self._broker.core.fleet.by_id.get(worker_id), self._broker.core.jobs.get(job_id)
        return worker is None or (worker.draining and job is not None and job.state is JobState.QUEUED)


def _ended(asker: Asker, header: dict[str, Any], frames: Sequence[Any]) -> Ended:
    error, timing = header["error"], header["timing"] or {}
    if asker.lost and error is not None:
        error = {"code": ErrorCode.WORKER_LOST.value, "message": "The worker that was to do it is gone, or leaves."}
    if error is None and header["status"] in (Status.PENDING, Status.PROCESSING):  # a job was watched for long enough
        error = {"code": ErrorCode.TIMEOUT_RUN.value}
    running_ms = timing.get("running_ms", 0)
    return Ended(asker.job_id, header["data"], error, header["attachments"], frames, running_ms, header["worker_id"])
