"""Given to real workers with `--instructors`: `system.noop`, which also misbehaves as its `echo` tells it to.

The orchestrator runs as it is shipped and knows no actions made for tests; so the tests' instructions travel in the
one field that takes anything: `echo={"test": {...}}`. Without it, this is the real action.
"""

import os
import time
from pathlib import Path
from typing import Any

from instructors.registry import Registry
from instructors.system import Noop
from instructors.task import Blob, Context, Result, Task
from protocol.enums import EventName
from protocol.errors import Unavailable
from protocol.schemas.system import NoopData


class Scripted(Noop):
    """`append`: a file that gets a line at the start of each execution. `hang_s`: one step that long. `steps`: so many
    steps of 10 ms, each told as progress. `reply_bytes`: answer with an attachment of this size. `fail_times`: fail
    in a retryable way as long as the `append` file has no more lines than this. `until`: work until this file is
    there."""

    def __init__(self, data: NoopData, context: Context) -> None:
        super().__init__(data, context)
        told: dict[str, Any] = data.echo["test"]
        self._context = context
        self._hang_s = told.get("hang_s", 0.0)
        self._steps = told.get("steps", 0)
        self._step = 0
        self._awaited = Path(told["until"]) if "until" in told else None
        self._reply_bytes = told.get("reply_bytes", 0)
        if "append" in told:
            append(Path(told["append"]))
            if len(Path(told["append"]).read_text().splitlines()) <= told.get("fail_times", 0):
                raise Unavailable("It was told to fail.")

    def step(self) -> Result | None:
        if self._hang_s:
            time.sleep(self._hang_s)
        if self._awaited is not None and not self._awaited.exists():
            time.sleep(0.01)
            return None
        if self._step < self._steps:
            self._step += 1
            self._context.emit(EventName.PROGRESS, {"step": self._step, "steps": self._steps})
            time.sleep(0.01)
            return None
        if self._reply_bytes:
            return Result({}, [Blob("application/octet-stream", bytes(self._reply_bytes))])
        return super().step()


def append(file: Path) -> None:
    """One line in one write, which is whole even when the process is killed next."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{os.getpid()} {time.time()}\n".encode())
    finally:
        os.close(descriptor)


def make(data: NoopData, context: Context) -> Task:
    scripted = isinstance(data.echo, dict) and "test" in data.echo
    return Scripted(data, context) if scripted else Noop(data, context)


def register(registry: Registry) -> None:
    action, _ = registry._actions.pop("system.noop")
    registry.add(action, make)
