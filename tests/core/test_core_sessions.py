"""Sessions: counts, progress, cancel, idle expiry."""

import pytest

from orchestrator.core import events as e
from orchestrator.core.model import Session, SessionStatus
from orchestrator.core.states import JobState
from protocol.enums import Status
from tests.core.kit import Lab, restored


def counts(lab: Lab) -> dict[str, int]:
    session = lab.core.sessions.by_id["s"]
    return {status.value: count for status, count in session.counts.items() if count}


def test_a_session_counts_its_jobs_and_their_progress() -> None:
    lab = Lab()
    assert lab.session() == ["save session s active"]
    session = lab.core.sessions.by_id["s"]
    assert session.progress is None
    for number in (1, 2, 3):
        lab.submit(number, session_id="s")
    lab.submit(4)
    lab.hello("w", slots=2)
    assert counts(lab) == {"pending": 1, "processing": 2}
    lab.event("w", "j1/1", "progress", progress=0.5)
    lab.event("w", "j2/1", "progress", progress=0.25)
    assert session.progress == 0.25
    lab.event("w", "j1/1", "progress", progress=0.75)
    lab.result("w", "j1/1")
    lab.cancel(3)
    assert counts(lab) == {"processing": 1, "completed": 1, "cancelled": 1}
    assert session.progress == 2.25 / 3
    lab.result("w", "j2/1")
    assert session.progress == 1.0


def test_jobs_only_join_an_open_session_of_their_tenant() -> None:
    lab = Lab()
    lab.session()
    assert lab.submit(1, session_id="other") == ["reject c r1 not_found"]
    assert lab.submit(1, session_id="s", tenant="u") == ["reject c r1 not_found"]
    assert lab.core.session("t", "s") is lab.core.sessions.by_id["s"]
    assert lab.core.session("u", "s") is None
    assert lab.core.session("t", "none") is None
    lab.feed(e.CancelSession("s", "c", "x"))
    assert lab.submit(1, session_id="s") == ["reject c r1 not_found"]


def test_cancelling_a_session_cancels_its_jobs() -> None:
    lab = Lab()
    lab.session()
    lab.hello("w")
    lab.submit(1, session_id="s")
    lab.accept(2, session_id="s")
    lab.submit(3)
    told = [
        *("stop w j1/1", "answer c r1 cancelled cancelled", "audit j1"),
        *("save end j2 cancelled", "save session s cancelled", "reply c x s 2"),
    ]
    assert lab.feed(e.CancelSession("s", "c", "x")) == told
    lab.feed(e.Settled("j2"))
    assert counts(lab) == {"cancelled": 2}
    assert lab.job(3).state is JobState.QUEUED
    assert lab.feed(e.CancelSession("s", "c", "y")) == ["reply c y s 0"]


def test_an_idle_session_expires_and_is_forgotten_later() -> None:
    lab = Lab()
    lab.session(idle_timeout_ms=60_000)
    lab.wait(30_000)
    lab.submit(1, session_id="s")
    assert lab.wait(59_999) == []
    lab.cancel(1)
    assert lab.wait(60_000) == ["save session s expired"]
    assert lab.core.sessions.by_id["s"].status is SessionStatus.EXPIRED
    assert lab.submit(2, session_id="s") == ["reject c r2 not_found"]
    assert lab.wait(60_000) == []
    assert not lab.core.sessions.by_id


def test_a_session_with_work_does_not_expire() -> None:
    lab = Lab()
    lab.session(idle_timeout_ms=1_000)
    lab.submit(1, session_id="s")
    assert lab.wait(60_000) == []
    assert lab.core.sessions.by_id["s"].status is SessionStatus.ACTIVE


@pytest.mark.parametrize("idle_ms", [0, 90_000])
def test_sessions_come_back_after_a_restart(idle_ms: int) -> None:
    lab = Lab()
    session = Session("s", "t", "", {}, None, 60_000, lab.now_ms, lab.now_ms)
    lab.now_ms += idle_ms
    lab.feed(e.Restore([restored(1, JobState.QUEUED, session_id="s")], [session]))
    assert counts(lab) == {"pending": 1}
    assert session.counts[Status.PENDING] == 1
    lab.wait(1)
    assert session.status is SessionStatus.ACTIVE


def test_a_job_whose_session_is_gone_goes_on() -> None:
    lab = Lab()
    lab.feed(e.Restore([restored(1, JobState.QUEUED, session_id="gone")], []))
    lab.hello("w")
    lab.event("w", "j1/1", "progress", progress=0.5)
    assert lab.result("w", "j1/1") == ["save end j1 completed"]
    lab.submit(2, durable=True)
    lab.job(2).session_id = "gone"
    lab.core.sessions.job_removed(lab.job(2))
    assert lab.job(2).session_id is None


def test_sessions_are_limited() -> None:
    lab = Lab(sessions_max=2)
    lab.session("a")
    assert not lab.core.sessions.full()
    lab.session("b")
    assert lab.core.sessions.full()
