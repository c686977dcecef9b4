"""A worker without processes of its own and without a socket: the real engine, actions and models, turned by hand."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from instructors import registry
from instructors.models import ModelFolder
from instructors.results_cache import ResultsCache
from instructors.task import Padding
from protocol.codec import unpack_header
from protocol.errors import AtelierError
from protocol.messages import Assign
from worker import hardware
from worker.delivery import Delivery, Outbox
from worker.engine.engine import Engine
from worker.engine.mailbox import Mailbox
from worker.engine.workplace import Letter, WorkerPlace, Workplace
from worker.jobs import Job
from worker.pulse import Pulse
from worker.residency import Residency

GIBI = 2**30


class Shop:
    """`run` is a whole job; `begin` and `turn_until` are its parts."""

    def __init__(self, root: Path, budget_bytes: int = 4 * GIBI) -> None:
        self._outbox = Outbox()
        self._ids = itertools.count()
        self.residency = Residency(budget_bytes, lambda: None)
        self.messages: list[dict[str, Any]] = []  # headers of all that was sent
        mailbox = Mailbox[Letter]()
        self.place = Workplace(
            registry=registry.load([]),
            device=hardware.find("cpu"),
            models=ModelFolder(root),
            residency=self.residency,
            delivery=Delivery(self._outbox),
            pulse=Pulse.create(),
            padding=Padding(),
            quantum_s=1.0,
            results=ResultsCache(0, None, mailbox.put),
            mailbox=mailbox,
        )
        self.context = WorkerPlace(self.place)
        self.engine = Engine(self.place, lambda _: None)

    def begin(self, action: str, data: dict[str, Any] | None = None, priority: int = 4) -> Job:
        assign = Assign(
            job_id=f"j{next(self._ids)}",
            attempt=1,
            action=action,
            data=data or {},
            tenant="t",
            request_id="r",
            fingerprint=bytes(32),
            priority=priority,
        )
        job = Job(assign, [])
        self.engine.assign(job)
        return job

    def turn_until(self, true: Callable[[], bool], timeout_s: float = 20.0) -> None:
        until = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < until, "did not come about in time"
            self.place.mailbox.put(lambda: None)  # so that no turn waits
            self.engine.turn()
            self.messages += [unpack_header(bytes(item.frames[0])) for item in self._outbox.take()]

    def outcome(self, job: Job) -> dict[str, Any] | None:
        """The message of its result, once there is one."""
        sent = (message for message in self.messages if message["kind"] == "result")
        return next((message for message in sent if message["job_id"] == job.assign.job_id), None)

    def end(self, job: Job, timeout_s: float = 20.0) -> dict[str, Any]:
        """Its result's data. Raises what it failed with."""
        self.turn_until(lambda: self.outcome(job) is not None, timeout_s)
        outcome = self.outcome(job)
        assert outcome is not None
        if outcome["error"] is not None:
            raise AtelierError.from_wire(outcome["error"])
        found: dict[str, Any] = outcome["data"]
        return found

    def run(self, action: str, data: dict[str, Any] | None = None, timeout_s: float = 20.0) -> dict[str, Any]:
        return self.end(self.begin(action, data), timeout_s)

    def close(self) -> None:
        """End the processes of models that are loaded, also of those that jobs use."""
        for entry in self.residency._entries.values():
            close = getattr(entry.value, "close", None)
            if close is not None:
                close()


def runners() -> list[psutil.Process]:
    """The processes in which the ONNX models of this process live."""
    children = psutil.Process().children()
    return [child for child in children if child.status() != "zombie" and "onnx.child" in " ".join(child.cmdline())]
