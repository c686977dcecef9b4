"""What the core remembers: jobs, askers, outcomes, sessions. Plain slotted records; the rules are elsewhere.

Times are epoch milliseconds of the caller's clock, spans are `*_ms`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from orchestrator.core.states import STATUS, JobState
from orchestrator.core.timers import Timer
from protocol.enums import ErrorCode, EventName, Status

Connection = Any  # a client connection, as the shell names it; hashable
Peer = Any  # a worker connection, likewise

ALL_EVENTS = frozenset(EventName)
NO_EVENTS: frozenset[str] = frozenset()
EVENTS_KEPT = 256  # state, item and log events kept per job; of progress and preview only the last


class Requirement(NamedTuple):
    """What a worker must offer to run a job. Jobs of equal requirement wait in one queue class."""

    action: str
    model_id: str | None = None
    worker_pin: str | None = None
    device_pin: str | None = None
    exclusive: bool = False  # alone on its worker, after two losses
    light: bool = False  # it takes a light slot where its worker has one


class Cost(NamedTuple):
    """What the estimates learn by: jobs of one `key` take time in proportion to `units` (steps x images)."""

    key: str
    units: float


class Fault(NamedTuple):
    """An error on its way to an asker; an empty message means the catalogue's."""

    code: ErrorCode
    message: str = ""
    details: dict[str, Any] | None = None
    retry_after_ms: int | None = None

    def to_wire(self) -> dict[str, Any]:
        """The `error` map of a response."""
        return {
            "code": self.code.value,
            "message": self.message or self.code.meaning,
            "details": self.details or {},
            "retryable": self.code.retryable,
            "retry_after_ms": self.retry_after_ms,
        }


class AskerKind(StrEnum):
    REPLY = "reply"  # `wait: true`: the final response answers it; keeps its job alive
    ACCEPT = "accept"  # `wait: false`: answered when the job is on disk; with events, a STREAM from then on
    STREAM = "stream"  # events only
    RESULT = "result"  # `job.result`
    CANCEL = "cancel"  # `job.cancel`: answered when the end is safe


@dataclass(slots=True, eq=False)
class Asker:
    """Somebody who wants to hear of a job, under a request_id of their own."""

    connection: Connection
    request_id: str
    kind: AskerKind
    events: frozenset[str] = NO_EVENTS
    probed: bool = True  # False: a REQ peer, whose going away is never seen
    timer: Timer | None = None  # of a `job.result` with wait_ms


@dataclass(slots=True)
class Outcome:
    """How a job ended. `frames` are the attachments' bytes, opaque here, described by `attachments`."""

    status: Status
    data: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    attachments: Sequence[dict[str, Any]] = ()
    frames: Any = ()
    nbytes: int = 0
    worker_id: str | None = None
    device_id: str | None = None


@dataclass(slots=True)
class EventRecord:
    """One event of a job. `frames` as in Outcome."""

    seq: int
    at_ms: int
    name: EventName
    data: dict[str, Any]
    attachments: Sequence[dict[str, Any]] = ()
    frames: Any = ()


@dataclass(slots=True, eq=False)
class Job:
    job_id: str
    tenant: str
    request_id: str
    fingerprint: bytes
    requirement: Requirement
    cost: Cost
    priority: int
    durable: bool
    state: JobState = JobState.QUEUED
    created_ms: int = 0
    session_id: str | None = None
    queue_timeout_ms: int | None = None
    run_timeout_ms: int | None = None
    deadline_ms: int | None = None
    payload: Any = None  # data and attachments, opaque here
    payload_nbytes: int = 0
    traceparent: str | None = None

    attempt: int = 0
    ended_attempt: int = 0  # the last one that a worker reported the end of
    losses: int = 0
    failures: int = 0  # retryable errors a worker answered with
    worker_id: str | None = None
    queued_ms: int = 0  # when it last joined the queue
    started_ms: int | None = None  # first assignment
    assigned_ms: int | None = None  # last assignment
    finished_ms: int | None = None
    ticket: int = 0  # its place in the queue; 0 when it has none
    estimate_ms: int = 0
    progress: float = 0.0
    seq: int = 0
    outcome: Outcome | None = None
    ends_when_saved: Outcome | None = None  # an end that came while ACCEPTING
    result_from: tuple[Peer, int] | None = None  # whom to acknowledge, and which attempt
    askers: list[Asker] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    last_progress: EventRecord | None = None
    last_preview: EventRecord | None = None
    deadline_timer: Timer | None = None
    queue_timer: Timer | None = None
    run_timer: Timer | None = None
    retry_timer: Timer | None = None
    grace_timer: Timer | None = None

    @property
    def status(self) -> Status:
        return STATUS[self.state]

    @property
    def key(self) -> tuple[str, str]:
        return self.tenant, self.request_id

    def history(self) -> list[EventRecord]:
        """The events kept of this job, in order."""
        if self.last_progress is None and self.last_preview is None:
            return self.events
        last = [record for record in (self.last_progress, self.last_preview) if record is not None]
        return sorted([*self.events, *last], key=lambda record: record.seq)


class SessionStatus(StrEnum):
    ACTIVE = "active"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(slots=True, eq=False)
class Session:
    session_id: str
    tenant: str
    name: str
    defaults: dict[str, Any]
    priority: int | None
    idle_timeout_ms: int
    created_ms: int
    touched_ms: int
    status: SessionStatus = SessionStatus.ACTIVE
    counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    progress_sum: float = 0.0  # of its live jobs; ended ones count as 1
    live_jobs: dict[str, None] = field(default_factory=dict)  # in order
    timer: Timer | None = None

    @property
    def progress(self) -> float | None:
        total = sum(self.counts.values())
        ended = total - len(self.live_jobs)
        return (ended + self.progress_sum) / total if total else None
