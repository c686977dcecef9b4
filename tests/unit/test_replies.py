"""The headers of answers."""

from orchestrator.core.states import JobState
from orchestrator.replies import timing
from protocol.messages import Timing
from tests.core.kit import restored


def test_no_span_is_negative_after_the_clock_was_set_back() -> None:
    """A job of the run before may have come later than it ends."""
    job = restored(1, JobState.COMPLETED, created_ms=9_000, started_ms=2_000, assigned_ms=2_500, finished_ms=3_000)
    spans = Timing.model_validate(timing(job, 4_000))
    assert (spans.queued_ms, spans.running_ms, spans.total_ms) == (0, 500, 0)
