"""The simulated orchestrator process around the real core: carries its commands out, and can crash."""

from typing import TYPE_CHECKING, Any

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.core import Core
from orchestrator.core.model import Fault, Job
from orchestrator.core.settings import CoreSettings
from protocol.enums import ErrorCode
from tests.simulation.checks import check, validate
from tests.simulation.network import Link

if TYPE_CHECKING:
    from tests.simulation.client import Ask, Client
    from tests.simulation.worker import SimWorker
    from tests.simulation.world import World

SEND_FAILS = 0.03  # a worker's connection is full


class Shell:
    def __init__(self, world: "World", settings: CoreSettings) -> None:
        self._world = world
        self._settings = settings
        self._peers: dict[str, tuple[Link, Any]] = {}  # by the link's name, the process at its other end
        self._tick_ms: int | None = None
        self.core: Core | None = None
        self.epoch = 0
        self.handled = 0

    # --- the process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.core is not None:
            return
        self.epoch += 1
        self.core, self._tick_ms = Core(self._settings), None
        self._world.trace("orchestrator starts, epoch", self.epoch)
        self._world.ledger.new_epoch()
        self._world.healed_ms = max(self._world.healed_ms, self._world.now_ms)
        jobs, sessions = self._world.disk.recover()
        self.feed(e.Restore(jobs, sessions))

    def crash(self) -> None:
        if self.core is None:
            return
        self._world.trace("orchestrator crashes")
        self.core = None
        self._world.disk.crash()
        for link, end in list(self._peers.values()):
            link.close()
            end.link_broke(link)
        self._peers.clear()

    def connect(self, end: "Client | SimWorker", rough: bool = False) -> Link | None:
        """A new connection for a client or worker; None while nobody listens."""
        if self.core is None:
            return None
        link = Link(self._world, f"{end.name}#{self._world.serial()}", rough)
        self._peers[link.name] = link, end
        return link

    def disconnect(self, link: Link) -> None:
        """The connection breaks; for a client's the core hears of it some time later."""
        if not link.open:
            return
        link.close()
        _, end = self._peers.pop(link.name)
        if getattr(end, "probed", False):
            delay_ms = self._world.rng.randint(0, 8_000)
            self._world.at(delay_ms, self._feed_in, self.epoch, e.ConnectionGone(link.name))
        end.link_broke(link)

    @property
    def open_links(self) -> set[str]:
        """The connections that nobody took for broken."""
        return {name for name, (link, _) in self._peers.items() if link.open}

    # --- the core -----------------------------------------------------------------------------------------------

    def feed(self, event: e.Event) -> None:
        core = self.core
        if core is None:
            return
        self.handled += 1
        self._world.trace(">", _brief(event))
        for command in core.handle(self._world.now_ms, event):
            if self.core is core:
                self._carry_out(command)
        if self.core is core:
            validate(core)
            self._plan_tick(core)

    def _feed_in(self, epoch: int, event: e.Event) -> None:
        if epoch == self.epoch:
            self.feed(event)

    def _plan_tick(self, core: Core) -> None:
        due_ms = core.next_deadline()
        if due_ms is not None and (self._tick_ms is None or due_ms < self._tick_ms):
            self._tick_ms = due_ms
            late_ms = self._world.rng.choice((0, 0, 0, 5, 40))
            self._world.at_time(due_ms + late_ms, self._tick, self.epoch, due_ms)

    def _tick(self, epoch: int, due_ms: int) -> None:
        if epoch != self.epoch or self.core is None or due_ms != self._tick_ms:
            return
        self._tick_ms = None
        next_ms = self.core.next_deadline()
        if next_ms is not None and next_ms <= self._world.now_ms:
            self.feed(e.Tick())
        else:
            self._plan_tick(self.core)

    def _carry_out(self, command: c.Command) -> None:
        self._world.trace("    <", _brief(command))
        match command:
            case c.Answer() | c.Accepted() | c.Reply() | c.Reject():
                self._respond(command)
            case c.Emit():
                self._world.ledger.emitted(command)
            case c.SaveJob() | c.SaveOutcome() | c.Record() | c.SaveSession():
                self._write(command)
            case c.Audit() | c.AttemptLost():
                pass
            case c.Drained():
                self._world.at(0, self._stop, self.epoch)
            case c.Probe():
                if command.peer not in self._peers:
                    self._world.at(1, self._feed_in, self.epoch, e.WorkerUnreachable(command.peer))
            case _:
                self._tell_worker(command)

    def _stop(self, epoch: int) -> None:
        """Drained: the process ends as it should, and is started again."""
        if epoch == self.epoch and self.core is not None:
            self._world.disk.flush()
            self.crash()
            self._world.at(500, self.start)

    def _respond(self, command: c.Answer | c.Accepted | c.Reply | c.Reject) -> None:
        world = self._world
        world.ledger.responded(command)
        if command.connection in self._peers:
            link, client = self._peers[command.connection]
            job = command.job if not isinstance(command, c.Reject) else None
            outcome = job.outcome if job is not None and job.status.terminal else None
            link.send(False, client.receive, link, command, job.job_id if job is not None else None, outcome)

    def _write(self, command: c.SaveJob | c.SaveOutcome | c.Record | c.SaveSession) -> None:
        disk, epoch = self._world.disk, self.epoch
        match command:
            case c.SaveJob(job):
                disk.put(disk.save_job(job), lambda owner, ok: self._saved(epoch, job, owner, ok))
            case c.SaveOutcome(job, record):
                job_id = job.job_id

                def told(_: None, ok: bool) -> None:
                    self._feed_in(epoch, e.Settled(job_id) if ok else e.SettleFailed(job_id))

                disk.put(disk.save_outcome(job, record), told)
            case c.Record(job, record):
                disk.put(disk.record(job, record))
            case c.SaveSession(session):
                disk.put(disk.save_session(session))

    def _saved(self, epoch: int, job: Job, owner: str | None, ok: bool) -> None:
        if not ok:
            self._feed_in(epoch, e.SaveFailed(job.job_id, Fault(ErrorCode.UNAVAILABLE)))
        elif owner is not None:
            answer = {"job_id": owner}
            self._feed_in(epoch, e.SaveFailed(job.job_id, Fault(ErrorCode.REQUEST_CONFLICT), answer))
        else:
            self._feed_in(epoch, e.Saved(job.job_id))

    def _tell_worker(self, command: Any) -> None:
        rare = isinstance(command, c.TellDrain)  # or its loss would hardly ever be seen
        full = self._world.faulty and self._world.rng.random() < (0.3 if rare else SEND_FAILS)
        if isinstance(command, c.Assign):
            self._world.ledger.assigned(command)
            if command.peer not in self._peers or full:
                failed = e.AssignFailed(command.peer, command.job.job_id, command.attempt)
                self._world.at(0, self._feed_in, self.epoch, failed)
                return
            link, worker = self._peers[command.peer]
            link.send(False, worker.take, link, command.attempt, _assignment(command.job))
        elif command.peer in self._peers and not full:
            link, worker = self._peers[command.peer]
            link.send(False, worker.receive, link, command, self.epoch)

    # --- what clients ask -----------------------------------------------------------------------------------------

    def submit(self, link: Link, ask: "Ask") -> None:
        self._world.ledger.received(link.name, ask.request_id)
        self.feed(ask.to_event(link.name, f"j{self._world.serial()}"))

    def job_result(self, link: Link, ask: "Ask", request_id: str) -> None:
        assert self.core is not None
        assert ask.job_id is not None
        if self.core.job(ask.tenant, ask.job_id) is not None:
            self._world.ledger.received(link.name, request_id)
            self.feed(e.AskResult(ask.job_id, link.name, request_id, wait_ms=5_000))
            return
        outcome = self._world.disk.outcomes.get(ask.job_id)
        check(outcome is not None, "an accepted job is nowhere", ask.request_id, ask.job_id)
        link.send(False, self._peers[link.name][1].found, request_id, outcome)

    def job_cancel(self, link: Link, ask: "Ask", request_id: str) -> None:
        assert self.core is not None
        job = self.core.jobs_by_request.get((ask.tenant, ask.request_id))
        if job is not None:
            self._world.ledger.received(link.name, request_id)
            self.feed(e.CancelJob(job.job_id, link.name, request_id))

    def job_events(self, link: Link, ask: "Ask", request_id: str) -> None:
        assert self.core is not None
        job = self.core.jobs_by_request.get((ask.tenant, ask.request_id))
        if job is not None:
            self._world.ledger.received(link.name, request_id)
            self.feed(e.FollowEvents(job.job_id, link.name, request_id, after_seq=0))

    def session_cancel(self, link: Link, tenant: str, session_id: str, request_id: str) -> None:
        assert self.core is not None
        if self.core.session(tenant, session_id) is not None:
            self._world.ledger.received(link.name, request_id)
            self.feed(e.CancelSession(session_id, link.name, request_id))


def _assignment(job: Job) -> dict[str, Any]:
    names = ("job_id", "tenant", "request_id", "fingerprint", "durable", "payload")
    return {**{name: getattr(job, name) for name in names}, "action": job.requirement.action}


def _brief(thing: Any) -> str:
    """One line of the trace."""
    shown = []
    for name in thing.__dataclass_fields__:
        value = getattr(thing, name)
        if name == "job" and isinstance(value, Job):
            value = f"{value.job_id}/{value.attempt}({value.state})"
        elif name in ("jobs", "sessions"):
            value = len(value)
        elif name == "events":
            value = sorted(value)
        elif name in ("actions", "models", "resident", "fingerprint", "attachments", "frames", "requirement", "cost"):
            continue
        shown.append(f"{name}={value}")
    return f"{type(thing).__name__}({', '.join(shown)})"[:400]
