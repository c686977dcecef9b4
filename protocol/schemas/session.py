"""`session.*`: jobs that belong together, with shared defaults."""

from typing import Annotated, Any

from pydantic import Field

from protocol.limits import NAME_LENGTH_MAX, PRIORITY_MAX
from protocol.messages import Int, SpanMs
from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.job import Id


class SessionCreate(ActionData):
    """A session groups jobs and gives them defaults."""

    name: Annotated[str, Field(max_length=NAME_LENGTH_MAX)] = ""  # for people
    defaults: dict[str, Any] = {}  # `data` fields, used where an action has the field and a job leaves it out
    priority: Annotated[Int, Field(ge=0, le=PRIORITY_MAX)] | None = None  # of its jobs that give none
    idle_timeout_ms: SpanMs = 24 * 3600 * 1000  # without a live job and untouched for so long, it expires


class SessionRef(ActionData):
    session_id: Id


class SessionList(ActionData):
    limit: Annotated[Int, Field(ge=1, le=1000)] = 50


class Spans(ResultData):
    """How a span of time spreads over jobs, by nearest rank, in ms."""

    p50: int  # half of the jobs took so long at most
    p95: int


class DeviceJobs(ResultData):
    worker_id: str
    device_id: str
    jobs: int


class SessionAnalytics(ResultData):
    """Of the jobs that have ended, kept as long as those; and of those under way, as far as they are."""

    images: int = 0  # pictures in results
    steps: int = 0  # denoising steps, of each job's last attempt, as its `progress` events told
    queue_ms: Spans | None = None  # of ended jobs, from receipt to the first attempt; null: none was begun
    run_ms: Spans | None = None  # of ended jobs, their last attempt; null: none was begun
    devices: list[DeviceJobs] = []  # where jobs run, and where they ended; not those that the server ended
    retries: int = 0  # attempts beyond each job's first
    losses: int = 0  # attempts that ended because their worker vanished
    failures: dict[str, int] = {}  # failed jobs by error code


class SessionInfo(ResultData):
    session_id: str
    name: str
    status: str  # active, cancelled, expired
    defaults: dict[str, Any]
    priority: int | None = None
    idle_timeout_ms: int
    created_at: str
    jobs: dict[str, int]  # by status
    progress: float | None = None  # 0 to 1 over all its jobs; null without any
    analytics: SessionAnalytics = SessionAnalytics()


class SessionListResult(ResultData):
    sessions: list[SessionInfo]


class SessionCancelResult(ResultData):
    session_id: str
    cancelled_jobs: int


ACTIONS = [
    Action("session.create", "orchestrator", SessionCreate, SessionInfo, "Open a session."),
    Action("session.get", "orchestrator", SessionRef, SessionInfo, "One session with its counts and analytics."),
    Action("session.list", "orchestrator", SessionList, SessionListResult, "The tenant's sessions, newest first."),
    Action("session.cancel", "orchestrator", SessionRef, SessionCancelResult, "Cancel all jobs and close it."),
]
