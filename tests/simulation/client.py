"""A client program: asks, waits, reconnects, asks again, cancels, and knows what it is owed."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.model import Cost, Job, Outcome, Requirement, Session
from protocol.enums import ErrorCode
from tests.simulation.network import Link
from tests.simulation.worker import LIGHT_ACTION, Work

if TYPE_CHECKING:
    from tests.simulation.world import World

LISTENS = (frozenset[str](), frozenset(("state",)), frozenset(("state", "progress", "item")))


@dataclass(eq=False)
class Ask:
    """One request of a client, and how far it has come."""

    tenant: str
    request_id: str
    work: Work
    requirement: Requirement
    priority: int
    durable: bool
    session_id: str | None = None
    limits: dict[str, int] = field(default_factory=dict)
    events: frozenset[str] = frozenset()
    probed: bool = True
    job_id: str | None = None  # once accepted
    outcome: Outcome | None = None
    given_up: bool = False
    may_be_cancelled: bool = False
    polls: int = 0

    @property
    def unmet(self) -> bool:
        return self.outcome is None and not self.given_up

    def to_event(self, connection: str, job_id: str) -> e.Submit:
        job = Job(
            job_id, self.tenant, self.request_id, self.request_id.encode(), self.requirement,
            Cost("make", self.work.run_ms / 250), self.priority, self.durable,
            session_id=self.session_id, payload=self.work, payload_nbytes=10, **self.limits,
        )  # fmt: skip
        return e.Submit(job, connection, self.events, self.probed)


class Client:
    def __init__(self, world: "World", name: str, tenant: str) -> None:
        rng = world.rng
        self._world = world
        self.name = name
        self.tenant = tenant
        self.probed = rng.random() < 0.8  # the others are REQ peers, whose going away nobody sees
        self._comes_back = rng.random() < 0.8  # asks again under the same request_id after a broken connection
        self._link: Link | None = None
        self._session_id: str | None = None
        self.asks: dict[str, Ask] = {}
        self._planned = rng.randint(4, 14)

    @property
    def satisfied(self) -> bool:
        return not self._planned and not any(ask.unmet for ask in self.asks.values())

    def start(self) -> None:
        self._connect()
        rng = self._world.rng
        if rng.random() < 0.5:
            self._world.at(rng.randint(100, 5_000), self._open_session)
        burst = rng.random() < 0.3
        for _ in range(self._planned):
            self._world.at(rng.randint(50, 1_000 if burst else 45_000), self._ask)

    # --- the connection -----------------------------------------------------------------------------------------

    def break_link(self) -> None:
        if self._link is not None:
            self._world.trace(self.name, "loses its connection")
            self._world.shell.disconnect(self._link)

    def link_broke(self, link: Link) -> None:
        if link is not self._link:
            return
        self._link = None
        for ask in self.asks.values():
            if ask.unmet and not ask.durable:
                ask.may_be_cancelled = True  # the grace may end before it is back
                ask.given_up = not self._comes_back
        self._world.at(self._world.rng.randint(100, 14_000), self._connect)

    def _connect(self) -> None:
        if self._link is not None:
            return
        self._link = self._world.shell.connect(self)
        if self._link is None:
            self._world.at(500, self._connect)
            return
        for ask in list(self.asks.values()):
            self._pursue(ask)

    def _up(self, deliver: Any, *args: Any) -> None:
        if self._link is not None:
            self._link.send(True, deliver, self._link, *args)

    # --- asking -------------------------------------------------------------------------------------------------

    def _open_session(self) -> None:
        if self._link is None:
            return
        now_ms, session_id = self._world.now_ms, f"s{self._world.serial()}"
        session = Session(session_id, self.tenant, "", {}, None, 20_000, now_ms, now_ms)
        self._world.shell.feed(e.OpenSession(session))
        self._session_id = session_id
        if self._world.rng.random() < 0.3:
            self._world.at(self._world.rng.randint(5_000, 40_000), self._cancel_session, session_id)

    def _cancel_session(self, session_id: str) -> None:
        if self._link is None:
            return
        for ask in self._world.ledger.asks:
            if ask.session_id == session_id:
                ask.may_be_cancelled = True
        self._session_id = None
        self._up(self._world.shell.session_cancel, self.tenant, session_id, f"{session_id}.c")

    def _ask(self) -> None:
        self._planned -= 1
        ask = self._draw()
        self.asks[ask.request_id] = ask
        self._world.ledger.asks.append(ask)
        rng = self._world.rng
        for _ in range(rng.choice((1, 1, 1, 1, 2, 5))):  # some ask the same several times
            self._pursue(ask)
        if rng.random() < 0.15:
            self._world.at(rng.randint(0, 8_000), self._cancel, ask)
        if rng.random() < 0.1:
            self._world.at(rng.randint(0, 8_000), self._follow, ask)

    def _draw(self) -> Ask:
        rng = self._world.rng
        run_ms = rng.choice((20, 200, 1_000, 1_000, 3_000, 20_000, 40_000))
        fate, times = rng.choices(
            (("ok", 0), ("error", 9), ("passing", 1), ("passing", 9), ("crash", 1), ("crash", 9), ("hang", 1)),
            (80, 4, 4, 2, 4, 3, 2),
        )[0]
        limits = {}
        if rng.random() < 0.1:
            limits[rng.choice(("queue_timeout_ms", "run_timeout_ms", "deadline_ms"))] = rng.randint(500, 15_000)
        action = rng.choice(("make", "make", "noop", LIGHT_ACTION, LIGHT_ACTION))
        requirement = Requirement(
            action,
            rng.choice((None, "shapes", "letters", "digits")),
            worker_pin="w0" if rng.random() < 0.05 else None,
            light=action == LIGHT_ACTION,
        )
        return Ask(
            self.tenant, f"{self.name}.{self._world.serial()}", Work(run_ms, fate, times, rng.randint(0, 2)),
            requirement, rng.choice((0, 4, 4, 4, 9)), rng.random() < 0.5, self._session_id, limits,
            rng.choice(LISTENS), self.probed,
        )  # fmt: skip

    def _pursue(self, ask: Ask) -> None:
        """Ask for it, or again for it, on this connection."""
        if not ask.unmet:
            return
        if ask.job_id is None:
            self._up(self._world.shell.submit, ask)
        else:
            ask.polls += 1
            self._up(self._world.shell.job_result, ask, f"{ask.request_id}.r{ask.polls}")

    def _cancel(self, ask: Ask) -> None:
        if self._link is not None and ask.unmet:
            ask.may_be_cancelled = True
            self._up(self._world.shell.job_cancel, ask, f"{ask.request_id}.c")

    def _follow(self, ask: Ask) -> None:
        self._up(self._world.shell.job_events, ask, f"{ask.request_id}.f")

    # --- hearing ------------------------------------------------------------------------------------------------

    def receive(self, link: Link, response: Any, job_id: str | None, outcome: Outcome | None) -> None:
        ask = self.asks.get(response.request_id.partition(".r")[0])
        if link is not self._link or ask is None or not ask.unmet:
            return
        match response:
            case c.Answer():
                if outcome is not None:
                    ask.outcome = outcome
                else:
                    self._pursue(ask)  # its wait is over, the job is not
            case c.Accepted():
                if ask.job_id is None:
                    ask.job_id = job_id
                    self._pursue(ask)
            case c.Reply(data=data):
                if ask.job_id is None:  # the same request is on the disk already
                    ask.job_id = data["job_id"]
                    self._pursue(ask)
            case c.Reject(fault=fault):
                self._refused(ask, fault.code)

    def found(self, request_id: str, outcome: Outcome) -> None:
        ask = self.asks[request_id.partition(".r")[0]]
        if ask.unmet:
            ask.outcome = outcome

    def _refused(self, ask: Ask, code: ErrorCode) -> None:
        if code.retryable:
            self._world.at(self._world.rng.randint(500, 4_000), self._pursue, ask)
        else:
            if code is ErrorCode.NOT_FOUND:
                self._session_id = None  # it expired
            self._world.ledger.refused(ask, code)
            ask.given_up = True
