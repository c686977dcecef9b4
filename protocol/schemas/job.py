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
    """Pages of jobs."""

    status: Annotated[Status, Field(strict=False)] | None = None  # only those of this status
    session_id: Id | None = None  # only those of this session
    limit: Annotated[Int, Field(ge=1, le=1000)] = 50  # of one page
    before: Id | None = None  # the last job_id of the page before


class JobResult(ActionData):
    """Wait for the end of a job."""

    job_id: Id
    wait_ms: Annotated[Int, Field(ge=0, le=3_600_000)] = 0  # at most so long; 0: answer at once with what is known


class JobEvents(ActionData):
    """Stream a job's events from after `after_seq`, until its terminal `state` event."""

    job_id: Id
    after_seq: Annotated[Int, Field(ge=0)] = 0  # 0: from the oldest kept


class AcceptedResult(ResultData):
    """The answer to `wait: false`."""

    job_id: str
    estimated_start_ms: int  # from now
    estimated_completion_ms: int  # from now
    estimate_measured: bool  # false: a guess, no such job has run yet


class JobInfo(ResultData):
    job_id: str
    request_id: str
    action: str
    status: Status
    session_id: str | None = None
    priority: int
    attempt: int  # 0: none yet
    worker_id: str | None = None  # of the last attempt
    progress: float | None = None  # 0 to 1
    created_at: str
    finished_at: str | None = None
    error: dict[str, Any] | None = None  # see Errors


class JobListResult(ResultData):
    jobs: list[JobInfo]


class JobEventsResult(ResultData):
    oldest_seq: int  # of the events kept; what came before is gone
    status: Status  # at this moment


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
