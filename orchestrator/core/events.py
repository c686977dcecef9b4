"""What can happen to the core. The shell makes these from messages, completed writes and signals."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.model import NO_EVENTS, Connection, Fault, Job, Outcome, Peer, Session
from protocol.enums import ErrorCode, HeldState


@dataclass(slots=True)
class Submit:
    """A client asks for work. `job` is the core's from now on, unless it knows the request already or refuses it."""

    job: Job
    connection: Connection
    events: frozenset[str] = NO_EVENTS
    probed: bool = True


@dataclass(slots=True)
class Saved:
    """A durable job is on disk."""

    job_id: str


@dataclass(slots=True)
class SaveFailed:
    """A durable job is not on disk. With `answer`, because the same request is there already: that answers it."""

    job_id: str
    fault: Fault
    answer: dict[str, Any] | None = None


@dataclass(slots=True)
class Settled:
    """A durable job's outcome is on disk."""

    job_id: str


@dataclass(slots=True)
class SettleFailed:
    job_id: str


@dataclass(slots=True)
class CancelJob:
    """Somebody cancels a job that the core knows."""

    job_id: str
    connection: Connection
    request_id: str


@dataclass(slots=True)
class AskResult:
    job_id: str
    connection: Connection
    request_id: str
    wait_ms: int


@dataclass(slots=True)
class FollowEvents:
    job_id: str
    connection: Connection
    request_id: str
    after_seq: int


@dataclass(slots=True)
class ConnectionGone:
    connection: Connection


@dataclass(slots=True)
class OpenSession:
    session: Session


@dataclass(slots=True)
class CancelSession:
    session_id: str
    connection: Connection
    request_id: str


@dataclass(slots=True)
class Held:
    job_id: str
    attempt: int
    state: HeldState
    tenant: str
    request_id: str
    fingerprint: bytes
    action: str
    durable: bool = False
    light: bool = False


@dataclass(slots=True)
class ModelCame:
    """A worker has a model now that its hello did not tell of; its next one will."""

    worker_id: str
    models: frozenset[str]


@dataclass(slots=True)
class WorkerHello:
    peer: Peer
    worker_id: str
    instance_id: str
    device_id: str
    device_kind: str
    memory_total: int
    memory_free: int
    actions: frozenset[str]
    models: frozenset[str] | None
    slots: int
    resident: frozenset[str]
    held: list[Held] = field(default_factory=list)
    draining: bool = False
    model_nbytes: dict[str, int] = field(default_factory=dict)  # what a model's weights take there, where it is known
    light_slots: int = 0  # light jobs that it takes beside its slots


@dataclass(slots=True)
class WorkerHeartbeat:
    peer: Peer
    held: list[Held]
    memory_free: int
    resident: frozenset[str]
    quantum_age_ms: int
    models_upto: int = 0  # to be acknowledged


@dataclass(slots=True)
class WorkerEvent:
    """A running attempt reports. `progress` (0 to 1) is set on progress events."""

    peer: Peer
    job_id: str
    attempt: int
    name: str
    data: dict[str, Any]
    attachments: Sequence[dict[str, Any]] = ()
    frames: Any = ()
    progress: float | None = None


@dataclass(slots=True)
class WorkerResult:
    """An attempt ended. `code` is the catalogue's, for a failure."""

    peer: Peer
    job_id: str
    attempt: int
    outcome: Outcome
    code: ErrorCode | None = None
    load_ms: int = 0
    running_ms: int = 0  # without loading


@dataclass(slots=True)
class WorkerGoodbye:
    peer: Peer


@dataclass(slots=True)
class WorkerUnreachable:
    """The answer to a Probe: the connection is closed."""

    peer: Peer


@dataclass(slots=True)
class AssignFailed:
    """The worker's connection took no more: the job was not sent."""

    peer: Peer
    job_id: str
    attempt: int


@dataclass(slots=True)
class PayloadLost:
    """A job was assigned, but what it was to carry cannot be read: it ends."""

    job_id: str
    fault: Fault


@dataclass(slots=True)
class DrainWorker:
    worker_id: str


@dataclass(slots=True)
class Restore:
    """Once, at start: what the store remembers. Jobs in the order they came, their states QUEUED or ADOPTING."""

    jobs: list[Job]
    sessions: list[Session]


@dataclass(slots=True)
class Drain:
    """Take no more work; say when nothing runs any more."""


@dataclass(slots=True)
class Tick:
    """Time passed."""


Event = (
    Submit
    | Saved
    | SaveFailed
    | Settled
    | SettleFailed
    | CancelJob
    | AskResult
    | FollowEvents
    | ConnectionGone
    | OpenSession
    | CancelSession
    | ModelCame
    | WorkerHello
    | WorkerHeartbeat
    | WorkerEvent
    | WorkerResult
    | WorkerGoodbye
    | WorkerUnreachable
    | AssignFailed
    | PayloadLost
    | DrainWorker
    | Restore
    | Drain
    | Tick
)
