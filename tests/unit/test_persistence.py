"""What is written of a job that has ended, whatever its worker said."""

from typing import Any

import pytest

from orchestrator.core.model import Cost, EventRecord, Job, Outcome, Requirement
from orchestrator.core.states import JobState
from orchestrator.persistence import audit_rows, outcome_rows, steps_of
from orchestrator.store import JobRow
from orchestrator.store import Outcome as OutcomeRow
from protocol.enums import EventName, Status
from protocol.limits import INT_MAX


def a_job(status: Status = Status.COMPLETED, told: dict[str, Any] | None = None, progress: float = 0.0) -> Job:
    """One that was received at 1000, began at 1200 and again at 2000, and ended at 2500."""
    job = Job("j", "t", "r", b"f" * 32, Requirement("inference.text2img"), Cost("k", 1.0), 4, False)
    job.state, job.created_ms, job.finished_ms = JobState.COMPLETED, 1000, 2500
    job.started_ms, job.assigned_ms, job.attempt, job.losses = 1200, 2000, 2, 1
    job.outcome = Outcome(status, {"images": [{}, {}]}, worker_id="w", device_id="cuda:0")
    job.progress = progress
    if told is not None:
        job.last_progress = EventRecord(7, 2400, EventName.PROGRESS, told)
    return job


def test_an_ended_job_is_written_alike_in_memory_and_on_disk() -> None:
    job = a_job(told={"step": 9, "steps": 20, "image": 1, "images": 2})
    row, *_ = audit_rows(job)
    outcome, *_ = outcome_rows(job, EventRecord(8, 2500, EventName.STATE, {"error": None}), [], [])
    assert isinstance(row, JobRow)
    assert isinstance(outcome, OutcomeRow)
    for written in (row, outcome):
        assert (written.started_ms, written.running_ms, written.device_id) == (1200, 500, "cuda:0")
        assert (written.images, written.steps, written.error_code) == (2, 40, None)
        assert (written.attempt, written.losses, written.finished_ms) == (2, 1, 2500)


def test_only_failures_have_a_code() -> None:
    codes = {}
    for status in (Status.FAILED, Status.CANCELLED):
        job = a_job(status)
        assert job.outcome is not None
        job.outcome.error, job.outcome.data = {"code": "timeout_run"}, {}
        row = audit_rows(job)[0]
        assert isinstance(row, JobRow)
        codes[status] = row.error_code
        assert (row.images, row.steps) == (0, 0)
    assert codes == {Status.FAILED: "timeout_run", Status.CANCELLED: None}


@pytest.mark.parametrize(
    ("told", "progress", "steps"),
    [
        ({"steps": 20, "images": 4}, 0.25, 20),
        ({"steps": 20}, 0.5, 10),
        (None, 0.5, 0),
        ({"step": 3}, 0.5, 0),
        ({"steps": "20", "images": 4}, 0.5, 0),
        ({"steps": 20, "images": None}, 0.5, 0),
        ({"steps": -20, "images": 4}, 0.5, 0),
        ({"steps": 2**64 - 1, "images": 2**64 - 1}, 1.0, INT_MAX),
    ],
)
def test_steps_of_a_job_that_did_not_complete(told: dict[str, Any] | None, progress: float, steps: int) -> None:
    assert steps_of(a_job(Status.CANCELLED, told, progress)) == steps
