"""What the core wants done. The shell carries these out in order; none of them answers the core directly."""

from dataclasses import dataclass
from typing import Any

from orchestrator.core.model import Connection, EventRecord, Fault, Job, Peer, Session


@dataclass(slots=True)
class Answer:
    """The final response of a job (job.outcome) to one asker; for `job.result` perhaps before the end (no outcome)."""

    connection: Connection
    request_id: str
    job: Job


@dataclass(slots=True)
class Accepted:
    """The answer to `wait: false`: the job is on disk."""

    connection: Connection
    request_id: str
    job: Job
    start_ms: int
    completion_ms: int
    measured: bool


@dataclass(slots=True)
class Reply:
    """A plain success answer with this `data`."""

    connection: Connection
    request_id: str
    data: dict[str, Any]
    job: Job | None = None


@dataclass(slots=True)
class Reject:
    connection: Connection
    request_id: str
    fault: Fault
    job_id: str | None = None


@dataclass(slots=True)
class Emit:
    """One event to one asker."""

    connection: Connection
    request_id: str
    job_id: str
    record: EventRecord


@dataclass(slots=True)
class SaveJob:
    """Write a durable job; answer with Saved or SaveFailed."""

    job: Job


@dataclass(slots=True)
class SaveOutcome:
    """Write a durable job's outcome and its terminal event; answer with Settled or SettleFailed."""

    job: Job
    record: EventRecord


@dataclass(slots=True)
class Record:
    """Write behind: an event of a durable job and its new attempt and status."""

    job: Job
    record: EventRecord


@dataclass(slots=True)
class Audit:
    """Write behind: the summary and events of a job that lived in memory."""

    job: Job


@dataclass(slots=True)
class SaveSession:
    """Write behind."""

    session: Session


@dataclass(slots=True)
class Assign:
    """Send the job to the worker; answer with AssignFailed if its connection takes no more."""

    peer: Peer
    job: Job
    attempt: int


@dataclass(slots=True)
class CancelAttempt:
    peer: Peer
    job_id: str
    attempt: int


@dataclass(slots=True)
class AckResult:
    peer: Peer
    job_id: str
    attempt: int


@dataclass(slots=True)
class WelcomeWorker:
    peer: Peer
    worker_id: str


@dataclass(slots=True)
class RefuseWorker:
    peer: Peer
    fault: Fault


@dataclass(slots=True)
class AskHello:
    peer: Peer


@dataclass(slots=True)
class AckHeartbeat:
    peer: Peer
    models_upto: int = 0  # as the heartbeat said


@dataclass(slots=True)
class TellDrain:
    peer: Peer


@dataclass(slots=True)
class Probe:
    """Is this worker's connection still there? Answer with WorkerUnreachable if not."""

    peer: Peer


@dataclass(slots=True)
class AttemptLost:
    """To be told to the operator: a worker vanished with this attempt."""

    job: Job
    attempt: int
    worker_id: str


@dataclass(slots=True)
class Drained:
    """Nothing runs any more; the process may end."""


Command = (
    Answer
    | Accepted
    | Reply
    | Reject
    | Emit
    | SaveJob
    | SaveOutcome
    | Record
    | Audit
    | SaveSession
    | Assign
    | CancelAttempt
    | AckResult
    | WelcomeWorker
    | RefuseWorker
    | AskHello
    | AckHeartbeat
    | TellDrain
    | Probe
    | AttemptLost
    | Drained
)
