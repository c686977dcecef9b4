"""Actions that misbehave, added with `--instructors`: what no real action should do, done in the real worker."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from instructors.registry import Registry
from instructors.task import Blob, Context, Result, Task
from protocol.enums import EventName
from protocol.schemas.base import Action, ActionData, ResultData


class PluginData(ActionData):
    seconds: float = 0.0
    steps: int = 1
    nbytes: int = 0
    frames: int = 1
    key: str = "model"


tries: list[int] = []


@dataclass
class Model:
    name: str
    nbytes: int


class PluginTask(Task):
    """Runs one function; `steps` times for the action that has steps."""

    def __init__(self, data: PluginData, context: Context, work: Callable[[PluginData, Context], Result]) -> None:
        self._data, self._context, self._work = data, context, work
        self._left = data.steps

    def step(self) -> Result | None:
        self._left -= 1
        result = self._work(self._data, self._context)
        return None if self._left > 0 else result


def sleep(data: PluginData, context: Context) -> Result:
    """A step in which the device thread does not come back."""
    time.sleep(data.seconds)
    return Result({})


def spin(data: PluginData, context: Context) -> Result:
    """A step of pure Python, which leaves the interpreter to other threads only now and then."""
    until = time.monotonic() + data.seconds
    while time.monotonic() < until:
        pass
    return Result({})


def fail(data: PluginData, context: Context) -> Result:
    raise RuntimeError(f"secret {__file__}")


def memory(data: PluginData, context: Context) -> Result:
    raise MemoryError


def crowded(data: PluginData, context: Context) -> Result:
    """Runs out of memory every first time it is tried."""
    tries.append(1)
    if len(tries) % 2:
        raise MemoryError
    return Result({})


def crash(data: PluginData, context: Context) -> Result:
    os._exit(139)


def large(data: PluginData, context: Context) -> Result:
    time.sleep(data.seconds)
    return Result({}, [Blob("application/octet-stream", bytes(data.nbytes))] * data.frames)


def wide(data: PluginData, context: Context) -> Result:
    return Result({"text": "x" * data.nbytes})


def encode(data: PluginData, context: Context) -> Result:
    """An event and a result whose bytes are made off the device thread, the event's slowly."""

    def slow() -> bytes:
        time.sleep(data.seconds)
        return b"item"

    context.emit(EventName.ITEM, {}, [Blob("text/plain", slow)])
    context.emit(EventName.LOG, {"level": "info", "message": "after the item"})
    return Result({}, [Blob("text/plain", lambda: b"result")])


def encode_badly(data: PluginData, context: Context) -> Result:
    def fails() -> bytes:
        raise ValueError("cannot be encoded")

    context.emit(EventName.ITEM, {}, [Blob("text/plain", fails)])
    return Result({}, [Blob("text/plain", fails)])


def resident(data: PluginData, context: Context) -> Result:
    """Keeps something of `nbytes` (as it says) under `key`, loaded in `seconds`."""

    def load() -> Model:
        time.sleep(data.seconds)
        return Model(data.key, data.nbytes)

    context.resident(data.key, data.nbytes, load)
    return Result({})


def register(registry: Registry) -> None:
    for work in (sleep, spin, fail, memory, crowded, crash, large, wide, encode, encode_badly, resident):

        def make(data: PluginData, context: Context, work: Callable[..., Result] = work) -> Task:
            return PluginTask(data, context, work)

        registry.add(Action(f"test.{work.__name__}", "worker", PluginData, ResultData, "For tests."), make)
