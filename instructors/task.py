"""The seam between what an action means (a `Task`) and the worker that runs it (a `Context`).

A quantum is the longest a worker goes without looking at its mailbox. It ends where `Task.step` returns and wherever
a task calls `Context.quantum`. A task whose loop is its own returns from `step` after each quantum. A task that hands
the loop to a library (a stock diffusers pipeline, whose denoising loop cannot be left and entered again) makes
`step` one whole picture and calls `quantum` from the library's per-step callback; both look the same to the worker.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from instructors.models import ModelFolder
from protocol.codec import Buffer
from protocol.enums import EventName


@dataclass(slots=True)
class Blob:
    """An attachment. Where `data` is a function, the worker calls it once, off the device thread (for encoding)."""

    media_type: str
    data: Buffer | Callable[[], Buffer]


@dataclass(slots=True)
class Result:
    """What a finished task answers: the result's `data` and its attachments."""

    data: dict[str, Any]
    blobs: Sequence[Blob] = field(default=())


class Resident(Protocol):
    """Something kept in the device's memory between tasks; `name` is what reports call it."""

    name: str
    nbytes: int


R = TypeVar("R", bound=Resident)


class Context(Protocol):
    """What the worker lends a task while it runs. Used on the device thread only."""

    @property
    def blobs(self) -> Sequence[Blob]:
        """The request's attachments."""

    @property
    def device(self) -> str:
        """Where to compute: "cpu", "cuda:0"."""

    @property
    def device_kind(self) -> str:
        """Devices of one kind compute alike: "cpu", "NVIDIA H200"."""

    @property
    def models(self) -> ModelFolder: ...

    def quantum(self) -> None:
        """Between two steps: tells the worker that the device lives. Raises Cancelled when the job was cancelled."""

    def emit(self, event: EventName, data: dict[str, Any], blobs: Sequence[Blob] = ()) -> None:
        """Send an event of the running job; best effort."""

    def resident(self, key: str, nbytes: int, load: Callable[[], R]) -> R:
        """What stands under `key` in the device's memory, loaded now if it is not there; kept until the task ends.

        `nbytes` is an estimate for making room. Raises OutOfMemory and whatever `load` raises.
        """


class Task(ABC):
    """One job at work. Made, stepped and dropped on the device thread."""

    @abstractmethod
    def step(self) -> Result | None:
        """Do one quantum of work. None: there is more to do. Raises an AtelierError that ends the job."""

    def save(self) -> bytes | None:
        """What a new task of the same request needs to go on from here; None: it starts over."""
        return None

    def restore(self, state: bytes) -> None:
        """Go on from a `save` of the same request. Called before the first step, if at all."""
        raise NotImplementedError(f"{type(self).__name__} saves nothing")
