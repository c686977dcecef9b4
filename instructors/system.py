"""`system.noop`: gives back what it gets. It measures everything around the work, so it must cost next to nothing."""

import time

from instructors.registry import Registry
from instructors.task import Blob, Context, Result, Task
from protocol.schemas import ACTIONS
from protocol.schemas.system import NoopData

QUANTUM_S = 0.01


class Noop(Task):
    """Echoes after `sleep_ms`, in steps of 10 ms."""

    def __init__(self, data: NoopData, context: Context) -> None:
        blobs = context.blobs
        if data.reply_nbytes:
            blobs = [*blobs, Blob("application/octet-stream", bytes(data.reply_nbytes))]
        self._result = Result({"echo": data.echo}, blobs)
        self._until = time.monotonic() + data.sleep_ms / 1000 if data.sleep_ms else 0.0

    def step(self) -> Result | None:
        if self._until:
            left = self._until - time.monotonic()
            if left > 0:
                time.sleep(min(left, QUANTUM_S))
                return None
        return self._result


def register(registry: Registry) -> None:
    registry.add(ACTIONS["system.noop"], Noop)
