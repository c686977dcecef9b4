"""A worker process and the parent that starts it again, as the wire contract describes them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.model import Outcome
from protocol.enums import ErrorCode, EventName, HeldState, Status
from tests.simulation.checks import check
from tests.simulation.network import Link

if TYPE_CHECKING:
    from tests.simulation.world import World

HELLO_MS = 2_000
RESEND_MS = 5_000
LEASE_MS = 15_000
HANG_MS = 20_000  # until the parent kills the process
GRACE_MS = 5_000
UNWANTED_MS, UNWANTED_FAULTY_MS = 6_000, 16_000  # until a stale attempt has heard of it, at the latest
SLACK = 64
LIGHT_ACTION = "glance"


@dataclass(frozen=True)
class Work:
    """What a job does when it runs: how long, and which fate its first `times` runs meet."""

    run_ms: int
    fate: str = "ok"  # ok, error, passing, crash, hang
    times: int = 0
    pictures: int = 1


@dataclass(eq=False)
class HeldJob:
    assign: dict[str, Any]
    attempt: int
    state: HeldState = HeldState.ASSIGNED
    cancelled: bool = False
    unwanted_ms: int | None = None  # since when the core does not count on it
    result: e.WorkerResult | None = None
    sent_ms: int = 0
    in_light_slot: bool = False

    @property
    def light(self) -> bool:
        return bool(self.assign["action"] == LIGHT_ACTION)


class SimWorker:
    def __init__(self, world: "World", name: str) -> None:
        rng = world.rng
        self._world = world
        self.name = name
        self.slots = rng.randint(1, 3)
        self.light_slots = rng.choice((0, 0, 1, 3))
        self._reports_cancel = rng.random() < 0.5  # some say that they stopped, some only stop listing it
        self._device = rng.choice(("cpu", "gpu"))
        self._models: frozenset[str] | None = None if rng.random() < 0.5 else frozenset(("shapes", "letters", "digits"))
        self._resident: frozenset[str] = frozenset()
        self._instance = 0
        self._process = 0  # rises with every start of the process
        self._link: Link | None = None
        self._held: dict[str, HeldJob] = {}
        self._welcome_epoch: int | None = None
        self._heard_ms = 0
        self._backlog: list[Callable[[], None]] | None = None  # what waits while the process is stopped
        self._leaving = ""  # finishing: all it holds; handing back: the running only
        self.alive = False

    # --- the process --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The parent's start: a new instance."""
        self._instance = self._world.serial()
        self._spawn(self._process)

    def _spawn(self, process: int) -> None:
        if process != self._process or self.alive:
            return
        self._process += 1
        self.alive, self._leaving = True, ""
        self._held.clear()
        self._resident = frozenset()
        self._heard_ms = self._world.now_ms
        self._world.trace(self.name, "process starts")
        self._connect()
        self._later(1, self._duties)

    def crash(self, parent_too: bool = False) -> None:
        if not self.alive:
            return
        self._world.trace(self.name, "crashes", "with its parent" if parent_too else "")
        self._end()
        restart = self.start if parent_too else self._spawn
        args = () if parent_too else (self._process,)
        self._world.at(self._world.rng.randint(200, 4_000), restart, *args)

    def _end(self) -> None:
        self.alive = False
        self._process += 1
        self._backlog = None
        if self._link is not None:
            self._world.shell.disconnect(self._link)

    def pause(self) -> None:
        if self.alive and self._backlog is None:
            self._world.trace(self.name, "is stopped")
            self._backlog = []

    def resume(self) -> None:
        backlog, self._backlog = self._backlog or [], None
        for action in backlog:
            action()

    def hand_back(self) -> None:
        """Its operator ends it: the running jobs have a grace, the others go back."""
        if self.alive and not self._leaving:
            self._world.trace(self.name, "is asked to end")
            self._leaving = "handing back"
            if self._welcome_epoch is not None:
                self._say_hello()
            self._later(GRACE_MS, self._leave)

    def _leave(self) -> None:
        self._world.trace(self.name, "leaves")
        self._up(e.WorkerGoodbye(self._peer))
        link = self._link
        self._link = None  # what was sent leaves before the connection closes
        if link is not None:
            self._world.at(50, self._world.shell.disconnect, link)
        self._end()
        self._world.at(self._world.rng.randint(500, 6_000), self.start)

    def _later(self, delay_ms: int, action: Callable[..., None], *args: Any) -> None:
        """Do it unless the process has ended by then; a stopped process does it when it goes on."""
        self._world.at(delay_ms, self._if_alive, self._process, action, args)

    def _if_alive(self, process: int, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if process != self._process:
            return
        if self._backlog is not None:
            self._backlog.append(lambda: self._if_alive(process, action, args))
        else:
            action(*args)

    # --- the connection -----------------------------------------------------------------------------------------

    @property
    def _peer(self) -> str:
        return self._link.name if self._link is not None else ""

    def break_link(self) -> None:
        if self._link is not None:
            self._world.trace(self.name, "loses its connection")
            self._world.shell.disconnect(self._link)

    def link_broke(self, link: Link) -> None:
        """ZeroMQ connects again by itself, and this process does not notice."""
        if self.alive and link is self._link:
            self._world.at(self._world.rng.randint(50, 1_000), self._connect_again, self._process)

    def _connect_again(self, process: int) -> None:
        if process == self._process:
            self._connect()

    def _connect(self) -> None:
        self._link = self._world.shell.connect(self, rough=True)
        if self._link is None:
            self._world.at(300, self._connect_again, self._process)

    def _up(self, event: e.Event) -> None:
        if self._link is not None:
            self._link.send(True, self._world.shell.feed, event)

    # --- duties with a time -------------------------------------------------------------------------------------

    def _duties(self) -> None:
        self._later(HELLO_MS, self._duties)
        now_ms = self._world.now_ms
        if now_ms - self._heard_ms > LEASE_MS:
            self._heard_ms, self._welcome_epoch = now_ms, None
            self.break_link()
        if self._welcome_epoch is None:
            self._say_hello()
            return
        self._up(e.WorkerHeartbeat(self._peer, self._held_list(), 1_000, self._resident, 0))
        for job in list(self._held.values()):
            if job.state is HeldState.DONE and now_ms - job.sent_ms >= RESEND_MS:
                self._send_result(job)
            elif job.state is HeldState.RUNNING:
                self._check_wanted(job)
        if self._leaving == "finishing" and not self._held:
            self._leave()

    def _say_hello(self) -> None:
        actions = frozenset(("make", "noop", LIGHT_ACTION))
        self._up(
            e.WorkerHello(
                self._peer, self.name, f"i{self._instance}", f"{self._device}:0", self._device, 10_000, 1_000,
                actions, self._models, self.slots, self._resident, self._held_list(), bool(self._leaving),
                light_slots=self.light_slots,
            )
        )  # fmt: skip

    def _held_list(self) -> list[e.Held]:
        return [
            e.Held(
                job_id, job.attempt, job.state, job.assign["tenant"], job.assign["request_id"],
                job.assign["fingerprint"], job.assign["action"], job.assign["durable"], job.light,
            )
            for job_id, job in self._held.items()
        ]  # fmt: skip

    # --- what the orchestrator says -----------------------------------------------------------------------------

    def take(self, link: Link, attempt: int, assign: dict[str, Any]) -> None:
        self._hear(link, self._assigned, attempt, assign)

    def receive(self, link: Link, message: Any, epoch: int) -> None:
        self._hear(link, self._handle, message, epoch)

    def _hear(self, link: Link, action: Callable[..., None], *args: Any) -> None:
        if link is self._link and self.alive:
            self._later(0, self._heard, action, args)

    def _heard(self, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._heard_ms = self._world.now_ms
        action(*args)

    def _handle(self, message: Any, epoch: int) -> None:
        match message:
            case c.WelcomeWorker():
                self._welcome_epoch = epoch
                for job in list(self._held.values()):
                    if job.state is HeldState.DONE:
                        self._send_result(job)
            case c.AckHeartbeat():
                if self._welcome_epoch not in (None, epoch):
                    self._start_over()
            case c.AskHello():
                if self._welcome_epoch is not None:
                    self._start_over()
            case c.RefuseWorker():
                self._welcome_epoch = None
            case c.CancelAttempt(_, job_id, attempt):
                self._cancel(job_id, attempt)
            case c.AckResult(_, job_id, attempt):
                job = self._held.get(job_id)
                if job is not None and job.state is HeldState.DONE and job.attempt == attempt:
                    del self._held[job_id]
            case c.TellDrain():
                self._leaving = self._leaving or "finishing"

    def _start_over(self) -> None:
        self._welcome_epoch = None
        self._say_hello()

    def _assigned(self, attempt: int, assign: dict[str, Any]) -> None:
        held = self._held.get(assign["job_id"])
        if self._leaving or (held is not None and held.attempt >= attempt):
            return
        if held is not None:
            held.cancelled = True
        unfinished = sum(job.state is not HeldState.DONE for job in self._held.values())
        check(unfinished < self.slots + self.light_slots + SLACK, "a worker is flooded", self.name)
        self._held[assign["job_id"]] = HeldJob(assign, attempt)
        self._begin_next()

    def _cancel(self, job_id: str, attempt: int) -> None:
        job = self._held.get(job_id)
        if job is None or job.attempt > attempt:
            return
        told_so = job.result is not None and job.result.code is ErrorCode.CANCELLED  # two cancels may cross it
        if job.state is HeldState.DONE and not told_so:
            self._check_acknowledged(job, job.sent_ms, "a result was cancelled instead of acknowledged")
        if self._reports_cancel and job.state is not HeldState.DONE:
            error = {"code": ErrorCode.CANCELLED.value}
            self._finish(job, Outcome(Status.CANCELLED, error=error), ErrorCode.CANCELLED)
        else:
            job.cancelled = True
            del self._held[job_id]
        self._begin_next()

    # --- the device ---------------------------------------------------------------------------------------------

    def _begin_next(self) -> None:
        running = [job for job in self._held.values() if job.state is HeldState.RUNNING]
        light = sum(job.in_light_slot for job in running)
        slots, light_slots = self.slots - len(running) + light, self.light_slots - light
        for job in list(self._held.values()):
            job.in_light_slot = job.in_light_slot or (job.light and light_slots > 0)
            free = light_slots if job.in_light_slot else slots
            if free > 0 and job.state is HeldState.ASSIGNED and self._leaving != "handing back":
                slots, light_slots = slots - (not job.in_light_slot), light_slots - job.in_light_slot
                job.state = HeldState.RUNNING
                self._later(self._world.rng.randint(1, 100), self._step, job, 1)

    def _step(self, job: HeldJob, number: int) -> None:
        """A quarter of the job's time; between two, the mailbox is read."""
        if job.cancelled or job.state is not HeldState.RUNNING:
            return
        work: Work = job.assign["payload"]
        runs = self._world.ledger.runs(job.assign["job_id"], job.attempt)
        cursed = runs <= work.times
        if cursed and work.fate == "crash" and number == 2:
            self.crash()
        elif cursed and work.fate == "hang" and number == 2:
            self._later(HANG_MS, self.crash)
        elif number <= 4:
            job_id, data = job.assign["job_id"], {"step": number}
            name = EventName.ITEM if number <= work.pictures else EventName.PROGRESS
            self._up(e.WorkerEvent(self._peer, job_id, job.attempt, name, data, progress=number / 4))
            self._later(work.run_ms // 4, self._step, job, number + 1)
        elif work.fate == "error" or (cursed and work.fate == "passing"):
            code = ErrorCode.INTERNAL if work.fate == "error" else ErrorCode.UNAVAILABLE
            self._finish(job, Outcome(Status.FAILED, error={"code": code.value}), code)
        else:
            data = {"run": self._world.serial(), "attempt": job.attempt, "worker": self.name}
            self._finish(job, Outcome(Status.COMPLETED, data, nbytes=100), None)

    def _check_wanted(self, job: HeldJob) -> None:
        """No worker that the orchestrator can reach computes for long what nobody wants."""
        shell, now_ms = self._world.shell, self._world.now_ms
        known = shell.core.jobs.get(job.assign["job_id"]) if shell.core is not None else None
        wanted = known is not None and (known.status, known.attempt) == (Status.PROCESSING, job.attempt)
        if wanted or shell.core is None or self._welcome_epoch != shell.epoch:
            job.unwanted_ms = None
            return
        job.unwanted_ms = job.unwanted_ms or now_ms
        limit_ms = UNWANTED_FAULTY_MS if self._world.faulty else UNWANTED_MS
        check(now_ms - job.unwanted_ms < limit_ms, "a stale attempt goes on", self.name, job.assign["job_id"])

    def _finish(self, job: HeldJob, outcome: Outcome, code: ErrorCode | None) -> None:
        work: Work = job.assign["payload"]
        job.state, job_id = HeldState.DONE, job.assign["job_id"]
        job.result = e.WorkerResult("", job_id, job.attempt, outcome, code, load_ms=0, running_ms=work.run_ms)
        if self._welcome_epoch is not None:
            self._send_result(job)
        self._begin_next()

    def _send_result(self, job: HeldJob) -> None:
        assert job.result is not None
        self._check_acknowledged(job, job.sent_ms, "a result was not acknowledged")
        job.sent_ms = self._world.now_ms
        outcome = job.result.outcome
        copy = Outcome(outcome.status, dict(outcome.data), outcome.error, nbytes=outcome.nbytes)
        self._up(replace(job.result, peer=self._peer, outcome=copy))

    def _check_acknowledged(self, job: HeldJob, sent_ms: int, problem: str) -> None:
        """Where nothing is broken a result is sent once and acknowledged."""
        well = sent_ms > self._world.healed_ms + LEASE_MS
        check(not well, problem, self.name, job.assign["job_id"])
