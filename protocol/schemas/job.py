"""`job.*`: what became of the work."""

from typing import Annotated, Any

from pydantic import Field

from protocol.enums import Status
from protocol.messages import Int
from protocol.schemas.base import Action, ActionData, ResultData

Id = Annotated[str, Field(min_length=1, max_length=64)]


class JobRef(ActionData):
    job_id: Id


class JobList(ActionData):
    """The newest jobs first. `status` keeps those of one status; `before` continues after a page's last job_id."""

    status: Annotated[Status, Field(strict=False)] | None = None
    session_id: Id | None = None
    limit: Annotated[Int, Field(ge=1, le=1000)] = 50
    before: Id | None = None


class JobResult(ActionData):
    """Wait up to `wait_ms` for the end of a job; 0 answers at once with what is known."""

    job_id: Id
    wait_ms: Annotated[Int, Field(ge=0, le=3_600_000)] = 0


class JobEvents(ActionData):
    """Stream a job's events from after `after_seq`, until its terminal `state` event."""

    job_id: Id
    after_seq: Annotated[Int, Field(ge=0)] = 0


class AcceptedResult(ResultData):
    """The answer to `wait: false`. Spans in ms from now; `estimate_measured` tells a measured one from a guess."""

    job_id: str
    estimated_start_ms: int
    estimated_completion_ms: int
    estimate_measured: bool


class JobInfo(ResultData):
    job_id: str
    request_id: str
    action: str
    status: Status
    session_id: str | None = None
    priority: int
    attempt: int
    worker_id: str | None = None
    progress: float | None = None  # 0 to 1
    created_at: str
    finished_at: str | None = None
    error: dict[str, Any] | None = None


class JobListResult(ResultData):
    jobs: list[JobInfo]


class JobEventsResult(ResultData):
    oldest_seq: int
    status: Status


class CancelResult(ResultData):
    job_id: str
    status: Status  # a job that had ended before keeps its status


ACTIONS = [
    Action("job.get", "orchestrator", JobRef, JobInfo, "One job."),
    Action("job.list", "orchestrator", JobList, JobListResult, "Jobs, newest first."),
    Action("job.cancel", "orchestrator", JobRef, CancelResult, "Cancel a job; harmless when it has ended."),
    Action("job.result", "orchestrator", JobResult, ResultData, "A job's result: the response it had, or will have."),
    Action("job.events", "orchestrator", JobEvents, JobEventsResult, "Replay and follow a job's events."),
]
