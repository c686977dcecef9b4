"""An ONNX model that is loaded and answers: its process, the batches in it, and the lanes where requests wait.

A batch counts items, not requests. Requests share one where all axes but the first agree, or where the manifest says
what fills up the others. While batches are computed in the model's process, the next ones gather here: so the busier
the model, the fuller its batches. When the process dies, each request of its batches is tried once more, with nothing
else in the new process.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import structlog

from instructors import processing
from instructors.manifest import Batching
from instructors.models import Model
from instructors.pipelines.onnx import steps
from instructors.pipelines.onnx.facts import Array, Facts, Finished
from instructors.pipelines.onnx.frames import FRAME_BYTES_MAX
from instructors.pipelines.onnx.graph import GraphFacts
from instructors.processing import Chain, Values
from instructors.task import Lane, Place
from protocol.enums import ErrorCode
from protocol.errors import AtelierError, InternalError, ModelInvalid, PayloadTooLarge

LANES_MAX = 64  # of one model; shapes that nobody asks for any more are forgotten
AHEAD = 1  # batches beyond the instances, so that none of them waits for the next

Tensors = dict[str, Array]
Key = tuple[Any, ...]
L = TypeVar("L", bound=Lane)

log = structlog.get_logger("instructors.serving")


class Computes(Protocol):
    """What a `Runner` does for its model."""

    facts: Facts

    @property
    def alive(self) -> bool: ...

    def send(self, batch_id: int, tensors: Mapping[str, Array], outputs: Sequence[str] | None) -> None: ...

    def receive(self) -> list[Finished]: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


def _nothing() -> None:
    """Nobody wants to know."""


def _ignored(_: Any) -> None:
    """Nobody wants to know."""


@dataclass(eq=False)
class Request:
    """One request's tensors on their way through a model: a `Unit`.

    `ended` is called with it when `outputs` or `failure` is there; if it gives it nothing else to do, it is over.
    `alone`: its batch failed, and it is computed without company, to learn whose fault that was.
    """

    ended: Callable[["Request"], None]
    error: BaseException | None = None  # none: what goes wrong is the task's to judge
    tensors: Tensors = field(default_factory=dict)
    items: int = 1
    since: float = field(default_factory=time.monotonic)  # when it came
    on_close: Callable[[], None] = _nothing
    outputs: Tensors | None = None
    failure: AtelierError | None = None
    run_ms: float = 0.0
    batch_size: int = 0
    alone: bool = False
    position: int = 0  # items that were computed already
    values: dict[str, Any] = field(default_factory=dict)  # while it waits for steps
    stepped: Callable[["dict[str, Any] | AtelierError"], None] = _ignored  # and who is told when they are done
    over: bool = False
    closed: bool = False
    away: bool = False
    lane: "Lane | None" = None
    _pieces: list[Tensors] = field(default_factory=list)

    def begin(self, tensors: Tensors, items: int, lane: Lane) -> None:
        """Wait in a lane to be computed."""
        self.tensors, self.items, self.lane = tensors, items, lane
        self.outputs = self.failure = None
        self.run_ms, self.batch_size = 0.0, 0
        self.position, self._pieces, self.alone, self.away = 0, [], False, False

    def begin_steps(
        self, values: dict[str, Any], items: int, lane: Lane, stepped: "Callable[[dict[str, Any] | AtelierError], None]"
    ) -> None:
        """Wait in a lane for steps. `stepped` is called with what they leave; it gives the request something else."""
        self.values, self.items, self.lane, self.stepped = values, items, lane, stepped
        self.outputs = self.failure = None
        self.position, self.away = 0, False

    @property
    def done(self) -> bool:
        return self.closed or self.over

    def step(self) -> None:
        """It waits for nothing, or is done."""

    def close(self) -> None:
        if not self.done:
            self.closed = True
            self.on_close()

    @property
    def rows(self) -> int:
        """Items of its next quantum."""
        lane = self.lane
        return self.items if lane is None else min(self.items - self.position, lane.rows_max)

    def take(self, outputs: Tensors, count: int, batch_size: int, run_ms: float) -> None:
        """So many more of its items are computed."""
        self.away = False
        self.run_ms += run_ms
        self.batch_size = max(self.batch_size, batch_size)
        self.position += count
        self._pieces.append(outputs)
        if self.position < self.items:
            return
        pieces, self._pieces = self._pieces, []
        try:
            whole = pieces[0] if len(pieces) == 1 else {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}
        except ValueError:
            problem = "The model's answers to parts of a request do not fit together; say a larger max_batch_size"
            self.fail(ModelInvalid(f"{problem} in its manifest, or send fewer items."))
        else:
            self.end(whole)

    def fail(self, error: AtelierError) -> None:
        self.end(None, error)

    def retry_alone(self) -> None:
        """Its batch failed: once more, without the others."""
        self.away, self.alone = False, True

    def end(self, outputs: Tensors | None, failure: AtelierError | None = None) -> None:
        """This came out of it."""
        self.lane, self.away, self.alone, self.outputs, self.failure = None, False, False, outputs, failure
        if not self.closed:
            self.ended(self)
            self.over = self.lane is None and not self.away  # it was given nothing else to do

    def wait(self) -> None:
        """Until `arrived` is called: what it needs is being loaded."""
        self.outputs = self.failure = None
        self.lane, self.away = None, True

    def arrived(self, go_on: Callable[[], None]) -> None:
        """What it waited for is there, or never will be; `go_on` gives it something else."""
        self.away = False
        if not self.closed:
            go_on()
            self.over = self.lane is None and not self.away

    def pass_steps(self, values: "dict[str, Any] | AtelierError") -> None:
        """This is what the steps left."""
        self.lane, self.values = None, {}
        if not self.closed:
            self.stepped(values)
            self.over = self.lane is None and not self.away


@dataclass(slots=True)
class _Batch:
    requests: list[Request]
    counts: list[int]  # of items, of each
    lengths: list[dict[str, tuple[int, ...]]]  # of each: the shapes before they were filled up, by input


class Serving:
    """One loaded model. A resident: `name` and `nbytes` are for the worker's reports and its budget."""

    def __init__(self, model: Model, place: Place, start: Callable[[], Computes]) -> None:
        """`start` makes its process, which is waited for. Raises what `start` raises."""
        self.model = model
        self.name = model.model_id
        self.before = processing.chain(model.manifest.preprocess, model.path)
        self.after = processing.chain(model.manifest.postprocess, model.path)
        self.broken: AtelierError | None = None  # its process ended, and another could not be started
        self._place = place
        self._start = start
        self.runner = start()
        self.loaded_at = time.time()
        self.batching: Batching = model.manifest.batching
        self.batched = self.batching.max_batch_size > 1 and has_batch_axis(self.facts)
        self._lanes: dict[Key, Lane] = {}
        self._batches: dict[int, _Batch] = {}
        self._suspects: set[Request] = set()
        self._starting = False  # another process, after one has ended
        self._closed = False
        self._ids = itertools.count()

    def attach(self) -> None:
        """Have the device thread told when the process has answered."""
        self._place.watch(self.runner, self.collect)

    @property
    def facts(self) -> Facts:
        return self.runner.facts

    @property
    def nbytes(self) -> int:
        return self.runner.facts.nbytes

    def lane(self, tensors: Tensors) -> Lane:
        """Where a request with these tensors waits for its like."""
        key = self._key(tensors)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._keep(key, PredictLane(self))
        return lane

    def steps_lane(self, chain: Chain, parameters: Mapping[str, Any], values: Values) -> Lane:
        """Where a request with these values waits for its like before it goes through one of this model's chains."""
        key = (chain is self.before, *steps.key_of(parameters, values))
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._keep(key, steps.StepsLane(chain, parameters))
        return lane

    def _keep(self, key: Key, lane: L) -> L:
        if len(self._lanes) >= LANES_MAX:
            self._lanes.clear()
        self._lanes[key] = lane
        return lane

    def _key(self, tensors: Tensors) -> Key:
        """Of what requests must have in common to share a batch: nothing of an axis that can be filled up."""
        pad = self.batching.pad
        return tuple((n, tensors[n].ndim if n in pad else tensors[n].shape[1:]) for n in sorted(tensors))

    @property
    def busy(self) -> bool:
        """Whether it has as many batches as it should."""
        return self._starting or len(self._batches) >= self.batching.instances + AHEAD

    @property
    def idle(self) -> bool:
        """Whether no batch of it is computed, and one could be."""
        return not (self._batches or self._starting)

    @property
    def suspects(self) -> set[Request]:
        """Those that were in the process when it died. They have it to themselves in turn, or one that ends it again
        would take others with it."""
        if self._suspects:
            self._suspects = {request for request in self._suspects if request.alone and not request.done}
        return self._suspects

    def send(self, requests: Sequence[Request]) -> None:
        """Begin a batch of the next items of these."""
        if self.broken is not None:
            for request in requests:
                request.fail(self.broken)
            return
        counts = [request.rows for request in requests]
        parts = [
            {name: array[r.position : r.position + count] for name, array in r.tensors.items()}
            if count < r.items
            else r.tensors
            for r, count in zip(requests, counts, strict=True)
        ]
        batch = _Batch(list(requests), counts, [{n: a.shape for n, a in part.items()} for part in parts])
        batch_id = next(self._ids)
        for request in requests:
            request.away = True
        self._batches[batch_id] = batch
        try:
            self.runner.send(batch_id, self._joined(parts), None)
        except AtelierError as error:
            del self._batches[batch_id]
            self._failed(batch, error)

    def _joined(self, parts: list[Tensors]) -> Tensors:
        if len(parts) == 1:
            return parts[0]
        if sum(_joined_nbytes([part[name] for part in parts]) for name in parts[0]) > FRAME_BYTES_MAX:
            raise PayloadTooLarge  # each is tried alone
        joined = {}
        for name in parts[0]:
            arrays = [part[name] for part in parts]
            fill = self.batching.pad.get(name)
            joined[name] = np.concatenate(arrays if fill is None else _filled_up(arrays, fill))
        return joined

    def collect(self) -> None:
        """Hand out what the model's process has finished. Never waits."""
        for finished in self.runner.receive():
            batch = self._batches.pop(finished.batch_id, None)
            if batch is None:
                continue
            if finished.tensors is None:
                self._failed(batch, finished.error or InternalError())
            else:
                self._hand_out(batch, finished.tensors, finished.run_ms)
        if not self.runner.alive:
            self._start_again()

    def _start_again(self) -> None:
        """The process ended by itself, or was killed. Another is started on a thread of its own; its requests wait."""
        log.warning("a model's process ended; starting another", model_id=self.name)
        self._place.unwatch(self.runner)
        self._starting = True
        threading.Thread(target=self._restart, args=(self.runner,), name="restart", daemon=True).start()

    def _restart(self, dead: Computes) -> None:
        runner: Computes | None = None
        problem: AtelierError = InternalError()
        try:
            dead.close()
            runner = self._start()
        except AtelierError as error:
            problem = error
        except Exception:
            log.exception("a model's process could not be started again", model_id=self.name)
        self._place.call_soon(lambda: self._started_again(runner, problem))

    def _started_again(self, runner: Computes | None, problem: AtelierError) -> None:
        self._starting = False
        if runner is None:
            log.error("a model's process could not be started again", model_id=self.name, problem=problem.message)
            self.broken = problem
        elif self._closed:
            runner.close()
        else:
            self.runner = runner
            self.attach()

    def _hand_out(self, batch: _Batch, outputs: Tensors, run_ms: float) -> None:
        total = sum(batch.counts)
        if self.batched and any(array.shape[:1] != (total,) for array in outputs.values()):
            problem = "The model does not answer item by item; say max_batch_size = 1 in its manifest."
            return self._failed(batch, ModelInvalid(problem))
        self._place.statistics.batch(self.name, total)
        at = 0
        for request, count, shapes in zip(batch.requests, batch.counts, batch.lengths, strict=True):
            own = outputs
            if len(batch.requests) > 1:
                own = {name: array[at : at + count] for name, array in outputs.items()}
                own = self._cut_back(own, shapes) if self.batching.pad else own
            at += count
            request.take(own, count, total, run_ms)
        return None

    def _cut_back(self, outputs: Tensors, shapes: dict[str, tuple[int, ...]]) -> Tensors:
        """An output's axis that has the name of an input's which was filled up ends where the request's own did."""
        lengths = {
            side: length
            for info in self.facts.inputs
            if info.name in self.batching.pad
            for side, length in zip(info.shape[1:], shapes[info.name][1:], strict=True)
            if isinstance(side, str)
        }
        cut = {}
        for info in self.facts.outputs:
            if info.name in outputs:
                sides = [slice(lengths.get(s) if isinstance(s, str) else None) for s in info.shape[1:]]
                cut[info.name] = outputs[info.name][(slice(None), *sides)]
        return cut

    def _failed(self, batch: _Batch, error: AtelierError) -> None:
        """What failed in company is tried alone, and so is what was alone when the process died of something else."""
        own_fault = self.runner.alive or error.code is ErrorCode.TIMEOUT_RUN
        for request in batch.requests:
            if request.alone or (len(batch.requests) == 1 and own_fault):
                request.fail(error)
            else:
                request.retry_alone()
                if not self.runner.alive:
                    self._suspects.add(request)

    def close(self) -> None:
        """End the process. Nobody uses it any more."""
        self._closed = True
        if self.broken is None and not self._starting:
            self._place.unwatch(self.runner)
            self.runner.close()


class PredictLane(Lane):
    """Requests of one model that fit in one batch. See `instructors.task.Lane`."""

    rows_min = 1

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.rows_max = serving.batching.max_batch_size if serving.batched else 1

    def step(self, units: Sequence[Request]) -> None:
        """Send them off together; those that are to be alone wait for their turn."""
        suspects = self._serving.suspects
        first = next((unit for unit in units if unit in suspects), units[0])
        if first.alone:
            self._serving.send([first])
        else:
            self._serving.send(self._preferred([unit for unit in units if not unit.alone]))

    def due(self, units: Sequence[Request], urgent: bool) -> float:
        """At once when a batch is full or of a preferred size, or one of these should not wait."""
        if suspects := self._serving.suspects:
            return 0.0 if self._serving.idle and any(unit in suspects for unit in units) else math.inf
        if self._serving.busy:
            return math.inf
        batching = self._serving.batching
        if urgent or not batching.max_queue_delay_us or any(unit.alone for unit in units):
            return 0.0
        rows = sum(unit.rows for unit in units)
        if rows >= min([self.rows_max, *batching.preferred_batch_sizes]):
            return 0.0
        return min(unit.since for unit in units) + batching.max_queue_delay_us / 1e6

    def _preferred(self, units: list[Request]) -> list[Request]:
        """As many of them as make the largest preferred size there is; all where they make none."""
        sizes, rows = self._serving.batching.preferred_batch_sizes, 0
        best = len(units)
        for count, unit in enumerate(units if sizes else (), start=1):
            rows += unit.rows
            if rows in sizes:
                best = count
        return units[:best]


def has_batch_axis(facts: Facts | GraphFacts) -> bool:
    """Whether requests can be put together along the first axis of every input, and taken apart along that of every
    output: open axes, whatever their names."""
    return all(info.shape and not isinstance(info.shape[0], int) for info in (*facts.inputs, *facts.outputs))


def _filled_up(arrays: list[Array], fill: float) -> list[Array]:
    """All with the largest size of each axis but the first."""
    largest = [max(sides) for sides in zip(*(array.shape[1:] for array in arrays), strict=True)]
    filled = []
    for array in arrays:
        missing = [(0, 0), *((0, most - side) for most, side in zip(largest, array.shape[1:], strict=True))]
        try:
            filled.append(np.pad(array, missing, constant_values=fill) if any(m for _, m in missing) else array)
        except OverflowError:
            raise ModelInvalid("The manifest's pad has a number that is too large for its input.") from None
    return filled


def _joined_nbytes(arrays: list[Array]) -> int:
    """What they have when they are filled up and put together."""
    largest = math.prod(max(sides) for sides in zip(*(array.shape[1:] for array in arrays), strict=True))
    return sum(array.shape[0] for array in arrays) * largest * arrays[0].itemsize
