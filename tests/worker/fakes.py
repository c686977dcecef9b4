"""Stand-ins for what a device computes and for the wire, so that the worker's own code can be driven turn by turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from instructors.models import ModelFolder
from instructors.registry import Registry
from instructors.results_cache import ResultsCache
from instructors.task import Context, Lane, Padding, Result, SharedTask, Task
from protocol.codec import unpack_header
from protocol.messages import Assign, Capabilities, Hello, Message, Welcome
from protocol.schemas.base import Action, ActionData, ResultData
from worker import hardware
from worker.delivery import Delivery, Outbox
from worker.engine.engine import Engine
from worker.engine.workplace import Workplace
from worker.pulse import Pulse
from worker.residency import Residency
from worker.session import Session

FAKE_ROW_S = 0.01


class FakeClock:
    """Stands in for the module `time`: only fake work takes time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class FakeLane(Lane):
    """A forward that takes `row_s` seconds a row. Remembers what was stepped together."""

    def __init__(self, clock: FakeClock, rows_max: int = 8, row_s: float = FAKE_ROW_S) -> None:
        self.clock, self.rows_max, self.rows_min, self.row_s = clock, rows_max, 1, row_s
        self.quanta: list[list[FakeUnit]] = []

    def step(self, units: Sequence["FakeUnit"]) -> None:
        units = list(units)
        assert units
        assert len(units) == len({id(unit) for unit in units})
        assert all(unit.lane is self and not unit.done for unit in units)
        self.quanta.append(units)
        self.clock.now += self.row_s * sum(unit.rows for unit in units)
        for unit in units:
            unit.go_on()


@dataclass
class Work:
    """What a fake job does: per unit its rows and the lanes (None: no lane) of its quanta, and where it fails."""

    units: list[tuple[int, list[FakeLane | None]]] = field(default_factory=lambda: [(1, [None])])
    fails: dict[tuple[int, int], BaseException] = field(default_factory=dict)  # (unit, quantum) -> once
    models: tuple[str, ...] = ()  # that it keeps resident
    shared: bool = True


class FakeUnit:
    away = False

    def __init__(self, number: int, rows: int, path: Sequence[FakeLane | None], task: "FakeShared") -> None:
        self._number, self.rows, self._path, self.task = number, rows, path, task
        self.quanta = 0
        self.closed = False
        self.error: BaseException | None = None

    @property
    def lane(self) -> Lane | None:
        return None if self.done else self._path[self.quanta]

    @property
    def done(self) -> bool:
        return self.error is not None or self.closed or self.quanta == len(self._path)

    def step(self) -> None:
        assert self.lane is None
        self.task.fakes.clock.now += FAKE_ROW_S
        self.go_on()

    def go_on(self) -> None:
        assert not self.closed
        self.task.fakes.log.append(self)
        self.error = self.task.work.fails.pop((self._number, self.quanta), None)
        self.quanta += 1

    def close(self) -> None:
        self.closed = True


class FakeShared(SharedTask):
    def __init__(self, work: Work, fakes: "Fakes", context: Context) -> None:
        self.work, self.fakes = work, fakes
        for model in work.models:
            context.resident(model, 10, partial(FakeModel, model))
        self.units = [FakeUnit(number, rows, path, self) for number, (rows, path) in enumerate(work.units)]
        fakes.tasks.append(self)

    def result(self) -> Result:
        assert all(unit.quanta == len(path) for unit, (_, path) in zip(self.units, self.work.units, strict=True))
        return Result({"units": len(self.units)})


class FakePlain(Task):
    """As many quanta as the path of the first unit has."""

    def __init__(self, work: Work, fakes: "Fakes") -> None:
        self.work, self.fakes, self.quanta = work, fakes, 0
        fakes.tasks.append(self)

    def step(self) -> Result | None:
        self.fakes.clock.now += FAKE_ROW_S
        self.fakes.log.append(self)
        error = self.work.fails.pop((0, self.quanta), None)
        if error is not None:
            raise error
        self.quanta += 1
        return Result({"units": 0}) if self.quanta == len(self.work.units[0][1]) else None


@dataclass
class FakeModel:
    name: str
    nbytes: int = 10


class FakeLink:
    """Keeps what the worker sends, and hands in nothing: tests call the session's handlers."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def watch(self, fd: int) -> None:
        pass

    def send(self, frames: Sequence[Any]) -> bool:
        self.sent.append(unpack_header(bytes(frames[0])))
        return True


class WorkData(ActionData):
    work: int


class Fakes:
    """A worker without a process: the real session, engine and delivery, stepped by hand."""

    def __init__(self, clock: FakeClock, quantum_s: float = 1.0, slots: int = 8) -> None:
        self.clock = clock
        self.work: list[Work] = []
        self.log: list[FakeUnit | FakePlain] = []  # each quantum of each unit, in order
        self.tasks: list[FakeShared | FakePlain] = []
        self.link, self.outbox = FakeLink(), Outbox()
        registry = Registry()
        for name, make in (("test.shared", FakeShared), ("test.plain", lambda work, fakes, _: FakePlain(work, fakes))):

            def task(data: WorkData, context: Context, make: Any = make) -> Task:
                return make(self.work[data.work], self, context)

            registry.add(Action(name, "worker", WorkData, ResultData, ""), task, shares=name == "test.shared")
        device = hardware.find("cpu")
        self.residency = Residency(1000, lambda: None)
        self.place = Workplace(
            registry=registry,
            device=device,
            models=ModelFolder(None),
            residency=self.residency,
            delivery=Delivery(self.outbox),
            pulse=Pulse.create(),
            padding=Padding(),
            quantum_s=quantum_s,
            results=ResultsCache(0, None, lambda _: None),
        )
        self.engine = Engine(self.place, lambda _: None)
        hello = Hello(
            worker_id="w",
            instance_id="i",
            device=device.facts(0),
            capabilities=Capabilities(actions=registry.names),
            slots=slots,
        )
        facts = {"memory_free": 0, "resident_models": [], "quantum_age_ms": 0}
        link: Any = self.link
        self.session = Session(link, self.engine, self.outbox, hello, lambda: facts, self.place.statistics)
        self.hear(Welcome(worker_id="w", orchestrator_epoch="e", heartbeat_ms=1000, lease_ms=10_000))

    def hear(self, message: Message) -> None:
        """The orchestrator says this."""
        self.session._handle(message, [])

    def assign(self, job_id: str, work: Work, priority: int = 4, attempt: int = 1) -> None:
        self.work.append(work)
        self.hear(
            Assign(
                job_id=job_id,
                attempt=attempt,
                action="test.shared" if work.shared else "test.plain",
                data={"work": len(self.work) - 1},
                tenant="t",
                request_id="r",
                fingerprint=bytes(32),
                priority=priority,
            )
        )

    @property
    def busy(self) -> bool:
        """Would a turn do something, rather than wait?"""
        engine = self.engine
        begun = bool(engine._running)
        return begun or (engine.room.is_set() and not (engine._mailbox.empty and not engine._sharing + engine._plain))

    def turn(self) -> None:
        self.engine.turn()
        self.pass_on()

    def pass_on(self) -> None:
        """The socket thread takes what the device thread has for it."""
        for item in self.outbox.take():
            self.session._pass_on(item.job, item.is_result, item.frames)

    def run(self, turns_max: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(turns_max):
            if not self.busy:
                return
            self.turn()
        raise AssertionError("the engine does not come to an end")

    @property
    def results(self) -> list[dict[str, Any]]:
        """Those sent, in order."""
        return [message for message in self.link.sent if message["kind"] == "result"]

    def outcome(self, job_id: str) -> str:
        """ "done", or the code of the error, of the one result of this job."""
        [result] = [result for result in self.results if result["job_id"] == job_id]
        return "done" if result["success"] else result["error"]["code"]
