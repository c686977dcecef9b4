"""A core on the bench: say what happens, read what it wants done, one short line per command."""

from typing import Any

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.core import Core
from orchestrator.core.model import Cost, Fault, Job, Outcome, Requirement, Session
from orchestrator.core.settings import CoreSettings
from orchestrator.core.states import JobState
from protocol.enums import ErrorCode, EventName, HeldState, Status
from tests.simulation.checks import validate

STATE = frozenset(("state",))
EVERYTHING = frozenset(EventName)


class Lab:
    """Every call feeds one event at the present time, checks the core against itself, and returns its commands."""

    def __init__(self, **settings: int) -> None:
        self.core = Core(CoreSettings(**settings))
        self.now_ms = 1_000_000
        self.commands: list[c.Command] = []  # of the last event
        self.lost: list[str] = []  # what was told to the operator alone

    def feed(self, event: e.Event) -> list[str]:
        self.commands = self.core.handle(self.now_ms, event)
        validate(self.core)
        told = [command for command in self.commands if not isinstance(command, c.AttemptLost)]
        self.lost += [brief(command) for command in self.commands if isinstance(command, c.AttemptLost)]
        return [brief(command) for command in told]

    def wait(self, span_ms: int) -> list[str]:
        """Time passes, and the core is woken whenever it wants to be."""
        until_ms, told = self.now_ms + span_ms, []
        while (due_ms := self.core.next_deadline()) is not None and due_ms <= until_ms:
            self.now_ms = due_ms
            told += self.feed(e.Tick())
        self.now_ms = until_ms
        return told

    def job(self, number: int) -> Job:
        return self.core.jobs[f"j{number}"]

    # --- clients ------------------------------------------------------------------------------------------------

    def submit(self, number: int, **fields: Any) -> list[str]:
        """Job j<number>, request r<number>, from connection c."""
        names = ("action", "model_id", "worker_pin", "device_pin", "light")
        need = Requirement(**{"action": "make", **{name: fields.pop(name) for name in names if name in fields}})
        defaults = {
            "job_id": f"j{number}", "tenant": "t", "request_id": f"r{number}", "fingerprint": b"f",
            "requirement": need, "cost": Cost("make", 4.0), "priority": 4, "durable": False,
            "payload": "payload", "payload_nbytes": 7,
        }  # fmt: skip
        asking = {name: fields.pop(name) for name in ("events", "probed") if name in fields}
        connection = fields.pop("connection", "c")
        return self.feed(e.Submit(Job(**{**defaults, **fields}), connection, **asking))

    def accept(self, number: int, **fields: Any) -> list[str]:
        """A durable job that is on the disk."""
        self.submit(number, durable=True, **fields)
        return self.feed(e.Saved(f"j{number}"))

    def cancel(self, number: int, connection: str = "c", request_id: str = "x") -> list[str]:
        return self.feed(e.CancelJob(f"j{number}", connection, request_id))

    def session(self, session_id: str = "s", idle_timeout_ms: int = 60_000) -> list[str]:
        session = Session(session_id, "t", "", {}, None, idle_timeout_ms, self.now_ms, self.now_ms)
        return self.feed(e.OpenSession(session))

    # --- workers ------------------------------------------------------------------------------------------------

    def hello(self, name: str, held: tuple[str, ...] = (), **fields: Any) -> list[str]:
        defaults = {
            "peer": name, "worker_id": name, "instance_id": f"i-{name}", "device_id": "cuda:0", "device_kind": "gpu",
            "memory_total": 100, "memory_free": 50, "actions": frozenset(("make",)), "models": None, "slots": 1,
            "resident": frozenset(), "held": [holding(text) for text in held],
        }  # fmt: skip
        return self.feed(e.WorkerHello(**{**defaults, **fields}))

    def beat(self, peer: str, *held: str, **fields: Any) -> list[str]:
        defaults = {"memory_free": 50, "resident": frozenset(), "quantum_age_ms": 0}
        return self.feed(e.WorkerHeartbeat(peer, [holding(text) for text in held], **{**defaults, **fields}))

    def result(self, peer: str, attempt: str, code: ErrorCode | None = None, **fields: Any) -> list[str]:
        """`attempt` is "j1/1"."""
        job_id, number = attempt.split("/")
        status = Status.COMPLETED if code is None else Status.FAILED
        outcome = Outcome(status, {"by": peer}, None if code is None else {"code": code.value})
        return self.feed(e.WorkerResult(peer, job_id, int(number), outcome, code, **fields))

    def event(self, peer: str, attempt: str, name: str = "log", **fields: Any) -> list[str]:
        job_id, number = attempt.split("/")
        return self.feed(e.WorkerEvent(peer, job_id, int(number), name, {"text": "x"}, **fields))


def holding(text: str) -> e.Held:
    """Held: "j1/1" runs, "j1/1 done" has ended, "j1/1 durable" and "j1/1 light" are such jobs, "j1/1 r9" is another's
    request."""
    attempt, *words = text.split()
    job_id, number = attempt.split("/")
    state = HeldState.DONE if "done" in words else HeldState.RUNNING
    request_id = next((word for word in words if word.startswith("r")), job_id.replace("j", "r"))
    return e.Held(job_id, int(number), state, "t", request_id, b"f", "make", "durable" in words, "light" in words)


def restored(number: int, state: JobState, **fields: Any) -> Job:
    """A durable job as the store remembers it."""
    need = fields.pop("requirement", Requirement("make"))
    job = Job(
        f"j{number}", "t", f"r{number}", b"f", need, Cost("make", 4.0), 4, True, state, 1_000_000,
        payload="payload", payload_nbytes=7,
    )  # fmt: skip
    for name, value in fields.items():
        setattr(job, name, value)
    return job


def brief(command: c.Command) -> str:
    match command:
        case c.Answer(connection, request_id, job):
            code = (job.outcome.error or {}).get("code", "") if job.outcome else ""
            return f"answer {connection} {request_id} {job.status} {code}".strip()
        case c.Accepted(connection, request_id, job):
            return f"accepted {connection} {request_id} {job.job_id}"
        case c.Reply(connection, request_id, data):
            return f"reply {connection} {request_id} {' '.join(map(str, data.values()))}"
        case c.Reject(connection, request_id, fault):
            return f"reject {connection} {request_id} {fault.code.value}"
        case c.Emit(connection, request_id, job_id, record):
            return f"emit {connection} {request_id} {record.name} {record.data.get('status', '')}".strip()
        case c.SaveJob(job):
            return f"save {job.job_id}"
        case c.SaveOutcome(job):
            assert job.outcome
            return f"save end {job.job_id} {job.outcome.status}"
        case c.Record(job, record):
            return f"record {job.job_id} {record.name} {record.data.get('status', '')}".strip()
        case c.Audit(job):
            return f"audit {job.job_id}"
        case c.SaveSession(session):
            return f"save session {session.session_id} {session.status}"
        case c.Assign(peer, job, attempt):
            return f"assign {peer} {job.job_id}/{attempt}"
        case c.CancelAttempt(peer, job_id, attempt):
            return f"stop {peer} {job_id}/{attempt}"
        case c.AckResult(peer, job_id, attempt):
            return f"ack {peer} {job_id}/{attempt}"
        case c.RefuseWorker(peer, fault):
            return f"refuse {peer} {fault.code.value}"
        case c.AttemptLost(job, attempt, worker_id):
            return f"lost {worker_id} {job.job_id}/{attempt}"
        case c.Drained():
            return "drained"
        case _:
            return f"{NAMES[type(command)]} {command.peer}"


NAMES = {
    c.WelcomeWorker: "welcome",
    c.AskHello: "rehello",
    c.AckHeartbeat: "beat",
    c.TellDrain: "drain",
    c.Probe: "probe",
}

FAULT = Fault(ErrorCode.UNAVAILABLE)
