"""The seam between what an action means (a `Task`) and the worker that runs it (a `Context`).

A quantum is the longest a worker goes without looking at its mailbox. A plain task ends one wherever `step` returns.
A task that can compute together with other jobs' tasks (`SharedTask`) has units instead, each of which waits in a lane
for its next quantum; the worker picks a lane and some of its units, and steps them in one go.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from instructors.models import ModelFolder
from instructors.statistics import Statistics
from protocol.codec import Buffer
from protocol.enums import EventName

if TYPE_CHECKING:
    from instructors.pipelines.onnx.loading import Loader
    from instructors.results_cache import ResultsCache


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
    """Something kept in the device's memory between tasks; `name` is what reports call it.

    One that shares memory with others has `parts` as well: a map of keys to what takes the memory, each with `nbytes`
    and, if it can be set aside in the machine's memory, `move(device)`. Equal keys are one thing.
    """

    name: str

    @property
    def nbytes(self) -> int: ...


R = TypeVar("R", bound=Resident)


class Source(Protocol):
    """What the operating system can tell to have something to read: a socket, a pipe."""

    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Padding:
    """How forwards that several pictures share are filled. `rows_max`: at most so many rows (guidance takes two a
    picture). `fixed_rows` None, "fast": the rows that wait, as they are. A number, "reproducible": always so many."""

    rows_max: int = 32
    fixed_rows: int | None = None


class Place(Protocol):
    """Where tasks run, and what is loaded there. Used on the device thread only."""

    @property
    def device(self) -> str:
        """Where to compute: "cpu", "cuda:0"."""

    @property
    def device_kind(self) -> str:
        """Devices of one kind compute alike: "cpu", "NVIDIA H200"."""

    @property
    def models(self) -> ModelFolder: ...

    @property
    def padding(self) -> Padding: ...

    @property
    def statistics(self) -> Statistics:
        """Where it is counted what is run of which model."""

    @property
    def results(self) -> "ResultsCache":
        """Of predictions, by what they depend on."""

    @property
    def loader(self) -> "Loader":
        """Of the models that predict: which loaded one answers for which name."""

    @property
    def cache_dir(self) -> Path | None:
        """For files that can be made again; None: they are not kept."""

    @property
    def lasting(self) -> "Place":
        """The same place, for what goes on when the task has ended."""

    def close(self) -> None:
        """Let go of all that is used by way of this."""

    def waited(self, seconds: float) -> None:
        """So long the task could not go on because its model was being loaded."""

    def resident(self, key: str, nbytes: int, load: Callable[[], R]) -> R:
        """What stands under `key` in the device's memory, loaded now if it is not there; kept until the task ends.

        `nbytes` is an estimate for making room. Raises OutOfMemory and whatever `load` raises.
        """

    def at_hand(self, key: str) -> Resident | None:
        """As `resident`, where it is loaded already; else None."""

    def part(self, key: str) -> Any:
        """A part that a resident has on the device; None where none has."""

    def forget(self, key: str) -> bool:
        """Unload a resident; False where none has this key, or a task uses it."""

    def reserve(self, key: str, nbytes: int) -> None:
        """Make room for what will be loaded elsewhere, by this estimate; `adopt` or `release` ends that. Raises
        NoRoomNow."""

    def release(self, key: str) -> None:
        """What there was room made for could not be loaded."""

    def adopt(self, key: str, value: Resident, load_s: float | None = None) -> None:
        """Take in what was loaded elsewhere, in so many seconds; None: in place of another. Raises OutOfMemory and
        NoRoomNow."""

    def retire(self, key: str) -> None:
        """Unload a resident as soon as no task uses it."""

    def keep(self, key: str, kept: bool = True) -> None:
        """Never evict a resident; False: as any other again."""

    def is_kept(self, key: str) -> bool:
        """Whether it is never evicted."""

    @property
    def loaded(self) -> list[str]:
        """The names of the residents."""

    def keys_of(self, name: str) -> list[str]:
        """The keys of the residents of this name, also of those that were set aside; the one used last is the last."""

    def holders(self, part_key: str) -> dict[str, bool]:
        """The names of the residents that are made of this part -> whether they have it on the device."""

    def watch(self, source: Source, arrived: Callable[[], None]) -> None:
        """Have `arrived` called between two quanta while there is something to read at `source`, and now and then
        without."""

    def unwatch(self, source: Source) -> None:
        """Before the source is closed."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have it called between two quanta. May be asked for from any thread."""


class Context(Place, Protocol):
    """What the worker lends a task while it runs."""

    @property
    def blobs(self) -> Sequence[Blob]:
        """The request's attachments."""

    def quantum(self) -> None:
        """Between two steps: tells the worker that the device lives. Raises Cancelled when the job was cancelled."""

    def emit(self, event: EventName, data: dict[str, Any], blobs: Sequence[Blob] = ()) -> None:
        """Send an event of the running job; best effort."""


class Lane(Protocol):
    """Units that wait for the same forward. Lanes are compared by identity."""

    rows_max: int  # in one quantum
    rows_min: int  # that a quantum of fewer costs as well, for it is filled up

    def step(self, units: Sequence[Any]) -> None:
        """One quantum for all of them. What goes wrong for one is left in its `error`."""

    def due(self, units: Sequence[Any], urgent: bool) -> float:
        """When it wants a quantum of some of these, by the monotonic clock in seconds; what is past means now,
        infinity not before something else has happened. `urgent`: one of them should not wait for company."""
        return 0.0


class Unit(Protocol):
    """A part of a shared task that is stepped for itself: one picture."""

    away: bool = False  # its quantum goes on elsewhere, in another process or thread; who brings it back says so here

    @property
    def lane(self) -> Lane | None:
        """Where it waits for its next quantum; None: it is stepped alone."""

    @property
    def rows(self) -> int:
        """Of its lane's batch (guidance takes two)."""

    @property
    def done(self) -> bool: ...

    @property
    def error(self) -> BaseException | None:
        """What ended it."""

    def step(self) -> None:
        """Its next quantum alone, where `lane` is None."""

    def close(self) -> None:
        """Leave it unfinished: it will not be stepped again."""


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


class SharedTask(Task):
    """A task of several units, which may share their quanta with units of other tasks."""

    units: Sequence[Unit]

    @abstractmethod
    def result(self) -> Result:
        """The answer, once all units are done."""

    def step(self) -> Result | None:
        """One quantum without company: of the first unit and those of its lane."""
        first = next(unit for unit in self.units if not unit.done)
        step_units([unit for unit in self.units if not unit.done and unit.lane is first.lane])
        for unit in self.units:
            if unit.error is not None:
                raise unit.error
        return self.result() if all(unit.done for unit in self.units) else None

    def close(self) -> None:
        """The task is over, or left unfinished."""
        for unit in self.units:
            unit.close()


def step_units(units: Sequence[Unit]) -> None:
    """One quantum of units of one lane, as many as it takes; without a lane, of the first."""
    lane = units[0].lane
    if lane is None:
        units[0].step()
    else:
        lane.step(within_rows(units, lane.rows_max))


def within_rows(units: Sequence[Unit], rows_max: int) -> list[Unit]:
    """The first of `units`, and those after it that fit in `rows_max` together with it."""
    chosen, rows = [units[0]], units[0].rows
    for unit in units[1:]:
        if rows + unit.rows <= rows_max:
            chosen.append(unit)
            rows += unit.rows
    return chosen
