"""The socket thread: speaks the worker plane (protocol/SPEC.md) whatever the device thread does.

A worker outlives its orchestrator: while that is away it goes on computing, keeps its results until they are
acknowledged, and says hello again, with what it holds, to whoever answers next.
"""

import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import structlog

from instructors.statistics import Statistics
from instructors.task import Blob
from protocol.codec import check_attachments, pack, unpack_header
from protocol.enums import ErrorCode, HeldState
from protocol.errors import AtelierError
from protocol.messages import (
    TO_WORKER,
    Assign,
    Cancel,
    Drain,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Message,
    Refused,
    Rehello,
    ResultAck,
    Welcome,
    parse_message,
)
from worker.delivery import Outbox, cancelled_result
from worker.engine.engine import Engine
from worker.jobs import HeldJobs, Job
from worker.link import Link

HELLO_S = 2.0  # between two hellos, until one is answered
RESEND_S = 5.0  # a result that is not acknowledged
LEASE_MS = 15_000  # until the first welcome says otherwise
TURN_MESSAGES_MAX = 256  # received in a row before other duties have their turn
FATAL_REFUSALS = (ErrorCode.UNSUPPORTED_PROTOCOL, ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN)

log = structlog.get_logger("worker.session")


class RefusedForGood(Exception):
    """The orchestrator will not take this worker, however often it asks."""


class Leaving(Enum):
    NO = auto()
    FINISHING = auto()  # everything that is held
    HANDING_BACK = auto()  # finish the running job only, and only until the grace ends


class Session:
    """`run` returns when the worker has said goodbye."""

    def __init__(
        self,
        link: Link,
        engine: Engine,
        outbox: Outbox,
        hello: Hello,
        facts: Callable[[], dict[str, Any]],
        statistics: Statistics,
    ) -> None:
        """`hello` holds what does not change; `facts` gives memory_free, resident_models and quantum_age_ms."""
        self._link = link
        self._engine = engine
        self._outbox = outbox
        self._hello = hello
        self._facts = facts
        self._statistics = statistics
        self._held = HeldJobs(hello.slots + hello.light_slots)
        self._leaving = Leaving.NO
        self._leave_by = 0.0
        self._stop_asked = False
        self._epoch: str | None = None  # of the orchestrator that welcomed us; None: not welcome yet
        self._epoch_known: str | None = None  # of the one that welcomed us last
        self._figures_known = 0  # up to which change of the statistics it knows them
        self._hello_due = 0.0
        self._hello_stuck = False  # no connection took it yet
        self._news = False  # the orchestrator knows an older hello
        self._heard_at = time.monotonic()
        self._heartbeat_s, self._lease_s = HELLO_S, LEASE_MS / 1000
        self._heartbeat_due = self._resend_due = 0.0
        link.watch(outbox.fd)

    def hand_back(self, grace_s: float) -> None:
        """Leave: finish the running job within the grace; the orchestrator queues the others again.

        For signal handlers, so it takes no lock.
        """
        self._leave_by = time.monotonic() + grace_s
        self._stop_asked = True
        self._outbox.wake()

    def offer(self, models: list[dict[str, Any]]) -> None:
        """From now on these are the models that it offers. May be called from any thread."""
        capabilities = self._hello.capabilities.model_copy(update={"models": models})
        self._hello = self._hello.model_copy(update={"capabilities": capabilities})
        self._news = True
        self._outbox.wake()

    def run(self) -> None:
        """Raises RefusedForGood."""
        while not self._may_leave():
            messages, items = self._link.wait(1000 * (self._next_duty() - time.monotonic()), writable=self._hello_stuck)
            if messages:
                self._receive()
            if items or self._outbox.awake:  # also what came meanwhile, or its wake-up would cost a turn for nothing
                self._outbox.clear()
            for item in self._outbox.take():
                self._pass_on(item.job, item.is_result, item.frames)
            if self._stop_asked:
                self._begin_hand_back()
            self._duties(time.monotonic())
        self._link.send([pack(Goodbye().to_wire())])
        log.info("goodbye", handed_back=len(self._held))
        self._link.close()

    # Duties with a time

    def _next_duty(self) -> float:
        due = self._heard_at + self._lease_s
        if self._epoch is None:
            due = due if self._hello_stuck else min(due, self._hello_due)
        else:
            due = min(due, self._heartbeat_due, self._resend_due)
        return min(due, self._leave_by) if self._leaving is Leaving.HANDING_BACK else due

    def _duties(self, now: float) -> None:
        if now - self._heard_at > self._lease_s:
            log.warning("the orchestrator is silent: connecting anew")
            self._heard_at = now
            self._epoch = None
            self._link.reset()
            self._hello_due = now
        if self._epoch is None:
            if now >= self._hello_due or self._hello_stuck:
                self._say_hello(now)
            return
        if self._news:  # on the same connection: what is held goes on undisturbed
            self._say_hello(now)
        if now >= self._heartbeat_due:
            self._heartbeat_due = now + self._heartbeat_s
            self._send_heartbeat()
        if now >= self._resend_due:
            self._resend_due = now + 1.0
            for job in self._held:
                if job.state is HeldState.DONE and now - job.sent_at >= RESEND_S:
                    self._send_result(job)

    def _send_heartbeat(self) -> None:
        models, upto = self._statistics.news(self._figures_known)
        held = [job.to_held() for job in self._held]
        facts = {**self._facts(), "models": models, "models_upto": upto}
        self._link.send([pack(Heartbeat(held=held, **facts).to_wire())])

    def _say_hello(self, now: float) -> None:
        self._news = False
        facts = self._facts()
        hello = self._hello.model_copy(
            update={
                "device": self._hello.device.model_copy(update={"memory_free": facts["memory_free"]}),
                "resident_models": facts["resident_models"],
                "held": [job.to_held() for job in self._held],
                "draining": self._leaving is not Leaving.NO,
            }
        )
        self._hello_stuck = not self._link.send([pack(hello.to_wire())])
        self._news = self._news or self._hello_stuck
        self._hello_due = now + HELLO_S

    def _may_leave(self) -> bool:
        if self._leaving is Leaving.NO:
            return False
        if self._leaving is Leaving.FINISHING:
            return len(self._held) == 0
        waited_for = any(job.state is not HeldState.ASSIGNED for job in self._held)
        return not waited_for or time.monotonic() >= self._leave_by

    # What the orchestrator says

    def _receive(self) -> None:
        for _ in range(TURN_MESSAGES_MAX):
            received = self._link.receive()
            if received is None:
                return
            header, frames = received
            self._heard_at = time.monotonic()
            try:
                fields = unpack_header(header)
                check_attachments(fields, [len(frame) for frame in frames])
                message = parse_message(fields, TO_WORKER)
            except AtelierError as error:
                log.warning("ignored a message that is not valid", problem=error.message, details=error.details)
                continue
            if message is not None:
                self._handle(message, [frame.buffer for frame in frames])

    def _handle(self, message: Message, frames: list[memoryview]) -> None:
        match message:
            case Assign():
                self._take(message, frames)
            case ResultAck():
                for done in message.results:
                    self._held.acknowledge(done.job_id, done.attempt)
                self._make_room()
            case Cancel():
                job = self._held.cancel(message.job_id, message.attempt)
                if job is not None and self._engine.cancel(job):
                    self._pass_on(job, True, cancelled_result(job))
                self._make_room()
            case HeartbeatAck():
                if self._epoch is not None and message.orchestrator_epoch != self._epoch:
                    self._start_over()
                elif self._epoch is not None:
                    self._figures_known = max(self._figures_known, message.models_upto)
            case Rehello():
                if self._epoch is not None:  # otherwise a hello is on its way already
                    self._start_over()
            case Welcome():
                self._welcome(message)
            case Refused():
                self._refused(AtelierError.from_wire(message.error))
            case Drain():
                self._drain()

    def _take(self, assign: Assign, frames: list[memoryview]) -> None:
        blobs = [Blob(entry.media_type, frame) for entry, frame in zip(assign.attachments, frames, strict=True)]
        job = Job(assign, blobs)
        if self._leaving is Leaving.NO and self._held.admit(job):
            self._engine.assign(job)
            self._make_room()  # an older attempt's result may have given way
        else:  # not in the next heartbeat's list, unless held: the orchestrator sees what became of it
            log.info("assignment ignored", job_id=assign.job_id, attempt=assign.attempt)

    def _start_over(self) -> None:
        self._epoch = None
        self._hello_due = 0.0

    def _welcome(self, welcome: Welcome) -> None:
        log.info("welcome", orchestrator_epoch=welcome.orchestrator_epoch)
        if welcome.orchestrator_epoch != self._epoch_known:
            self._epoch_known, self._figures_known = welcome.orchestrator_epoch, 0  # it remembers nothing
        self._epoch = welcome.orchestrator_epoch
        self._heartbeat_s = max(welcome.heartbeat_ms, 10) / 1000
        self._lease_s = max(welcome.lease_ms, 100) / 1000
        self._heartbeat_due = time.monotonic() + self._heartbeat_s
        for job in self._held:
            if job.state is HeldState.DONE:
                self._send_result(job)

    def _refused(self, error: AtelierError) -> None:
        if error.code in FATAL_REFUSALS:
            raise RefusedForGood(f"{error.code.value}: {error.message}")
        log.warning("refused: trying again", code=error.code.value, message=error.message)
        self._epoch = None
        self._hello_due = time.monotonic() + HELLO_S

    def _drain(self) -> None:
        if self._leaving is Leaving.NO:
            log.info("draining", held=len(self._held))
            self._leaving = Leaving.FINISHING
            self._engine.finish()

    def _begin_hand_back(self) -> None:
        log.info("stopping", held=len(self._held))
        self._stop_asked = False
        self._leaving = Leaving.HANDING_BACK
        self._engine.stop()
        if self._epoch is not None:
            self._say_hello(time.monotonic())  # as draining

    # What the device thread says

    def _pass_on(self, job: Job, is_result: bool, frames: list[Any]) -> None:
        if not self._held.holds(job):
            return  # replaced by a newer attempt
        if is_result:
            self._held.finish(job, frames)
            self._make_room()
            if self._epoch is not None:
                self._send_result(job)
        elif self._epoch is not None:
            self._link.send(frames)

    def _send_result(self, job: Job) -> None:
        job.sent_at = time.monotonic()
        self._link.send(job.result)

    def _make_room(self) -> None:
        """While too many results wait for their acknowledgement the device begins no further job."""
        if self._held.full and self._leaving is Leaving.NO:
            self._engine.room.clear()
        elif not self._engine.room.is_set():
            self._engine.room.set()
