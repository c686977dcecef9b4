"""How jobs end: cancel and the three deadlines in every state, a disk that fails, results asked for later."""

import pytest

from orchestrator.core import events as e
from orchestrator.core.model import EVENTS_KEPT, Fault
from orchestrator.core.states import JobState
from protocol.enums import ErrorCode
from tests.core.kit import EVERYTHING, FAULT, STATE, Lab, restored


def in_state(state: JobState, durable: bool = False, **fields: int) -> Lab:
    """A lab whose job 1 is in this state, as far as its kind of job gets there."""
    lab = Lab()
    if state is JobState.ADOPTING:
        lab.feed(e.Restore([restored(1, state, attempt=1, **fields)], []))
        return lab
    lab.submit(1, durable=durable, **fields)
    if durable and state is not JobState.ACCEPTING:
        lab.feed(e.Saved("j1"))
    if state in (JobState.PROCESSING, JobState.BACKOFF, JobState.SETTLING, JobState.COMPLETED):
        lab.hello("w")
    if state is JobState.BACKOFF:
        lab.feed(e.WorkerUnreachable("w"))
    if state in (JobState.SETTLING, JobState.COMPLETED):
        lab.result("w", "j1/1")
    assert lab.job(1).state is state
    return lab


@pytest.mark.parametrize(
    ("state", "durable", "told"),
    [
        (JobState.QUEUED, False, ["answer c r1 cancelled cancelled", "audit j1", "reply d x j1 cancelled"]),
        (JobState.BACKOFF, False, ["answer c r1 cancelled cancelled", "audit j1", "reply d x j1 cancelled"]),
        (
            JobState.PROCESSING,
            False,
            ["stop w j1/1", "answer c r1 cancelled cancelled", "audit j1", "reply d x j1 cancelled"],
        ),
        (JobState.COMPLETED, False, ["reply d x j1 completed"]),
        (JobState.ACCEPTING, True, []),
        (JobState.QUEUED, True, ["save end j1 cancelled"]),
        (JobState.BACKOFF, True, ["save end j1 cancelled"]),
        (JobState.PROCESSING, True, ["stop w j1/1", "save end j1 cancelled"]),
        (JobState.ADOPTING, True, ["save end j1 cancelled"]),
        (JobState.SETTLING, True, []),
    ],
)
def test_cancel_in_every_state(state: JobState, durable: bool, told: list[str]) -> None:
    lab = in_state(state, durable)
    assert lab.cancel(1, "d") == told
    if state is JobState.ACCEPTING:
        told = ["accepted c r1 j1", "record j1 state pending", "save end j1 cancelled"]
        assert lab.feed(e.Saved("j1")) == told
    if durable:
        ended = "completed" if state is JobState.SETTLING else "cancelled"
        settled = lab.feed(e.Settled("j1"))
        assert f"reply d x j1 {ended}" in settled
    assert lab.cancel(1, "d")[-1].startswith("reply d x j1")
    assert lab.core.queue.size == 0


def test_the_first_end_wins_while_the_job_is_being_saved() -> None:
    lab = in_state(JobState.ACCEPTING, durable=True, deadline_ms=50)
    lab.cancel(1)
    assert lab.wait(60) == []
    assert lab.feed(e.Saved("j1"))[-1] == "save end j1 cancelled"


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.BACKOFF, JobState.PROCESSING])
def test_deadline_of_a_job_in_memory(state: JobState) -> None:
    lab = in_state(state, deadline_ms=400)
    told = ["answer c r1 failed deadline_exceeded", "audit j1"]
    assert lab.wait(399) == []
    assert lab.wait(1) == (["stop w j1/1", *told] if state is JobState.PROCESSING else told)


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.BACKOFF, JobState.PROCESSING, JobState.ADOPTING])
def test_deadline_of_a_durable_job(state: JobState) -> None:
    lab = in_state(state, durable=True, deadline_ms=400)
    assert lab.wait(399) == []
    assert lab.wait(1)[-1] == "save end j1 failed"
    assert lab.feed(e.Settled("j1")) == []


def test_deadline_while_accepting_and_while_settling() -> None:
    lab = in_state(JobState.ACCEPTING, durable=True, deadline_ms=400)
    assert lab.wait(400) == []
    assert lab.feed(e.Saved("j1"))[-1] == "save end j1 failed"
    lab = in_state(JobState.SETTLING, durable=True, deadline_ms=400)
    assert lab.wait(400) == []
    assert lab.feed(e.Settled("j1")) == ["ack w j1/1"]


def test_a_deadline_that_passed_while_the_orchestrator_was_away() -> None:
    lab = Lab()
    lab.now_ms += 60_000
    told = lab.feed(e.Restore([restored(1, JobState.QUEUED, deadline_ms=1_000)], []))
    assert told == ["save end j1 failed"]


def test_queue_timeout_counts_until_the_first_attempt() -> None:
    lab = in_state(JobState.QUEUED, queue_timeout_ms=400)
    assert lab.wait(400) == ["answer c r1 failed timeout_queue", "audit j1"]
    lab = in_state(JobState.PROCESSING, queue_timeout_ms=400)
    lab.feed(e.WorkerGoodbye("w"))
    assert lab.wait(1_000) == []
    assert lab.job(1).state is JobState.QUEUED
    lab = Lab()
    lab.feed(e.Restore([restored(1, JobState.QUEUED, attempt=1, queue_timeout_ms=400)], []))
    assert lab.wait(1_000) == []


def test_run_timeout_counts_for_each_attempt() -> None:
    lab = in_state(JobState.PROCESSING, run_timeout_ms=2_000)
    lab.wait(1_500)
    lab.feed(e.WorkerUnreachable("w"))
    lab.hello("w")
    assert lab.wait(500) == ["assign w j1/2"]
    assert lab.wait(1_999) == []
    assert lab.wait(1) == ["stop w j1/2", "answer c r1 failed timeout_run", "audit j1"]
    lab = in_state(JobState.PROCESSING, run_timeout_ms=2_000)
    lab.feed(e.WorkerGoodbye("w"))
    assert lab.wait(5_000) == []


def test_a_job_whose_payload_cannot_be_read_ends() -> None:
    lab = in_state(JobState.PROCESSING)
    told = lab.feed(e.PayloadLost("j1", Fault(ErrorCode.UNAVAILABLE)))
    assert told == ["stop w j1/1", "answer c r1 failed unavailable", "audit j1"]


def test_an_outcome_the_disk_refuses_is_written_again_and_nobody_hears_of_it_before() -> None:
    lab = in_state(JobState.SETTLING, durable=True)
    for _ in range(3):
        assert lab.feed(e.SettleFailed("j1")) == []
        assert lab.wait(499) == []
        assert lab.wait(1) == ["save end j1 completed"]
    assert lab.feed(e.Settled("j1")) == ["ack w j1/1"]


# --- askers -------------------------------------------------------------------------------------------------------


def test_job_result_waits_for_the_end_or_for_its_time() -> None:
    lab = in_state(JobState.PROCESSING)
    assert lab.feed(e.AskResult("j1", "d", "now", 0)) == ["answer d now processing"]
    lab.feed(e.AskResult("j1", "d", "short", 1_000))
    lab.feed(e.AskResult("j1", "d", "long", 60_000))
    assert lab.wait(1_000) == ["answer d short processing"]
    told = ["answer c r1 completed", "answer d long completed", "ack w j1/1", "audit j1"]
    assert lab.result("w", "j1/1") == told
    assert lab.feed(e.AskResult("j1", "d", "late", 1_000)) == ["answer d late completed"]
    assert lab.core.askers.connections == 0


def test_a_stream_replays_what_was_kept_and_goes_on() -> None:
    lab = in_state(JobState.PROCESSING)
    lab.event("w", "j1/1", "progress", progress=0.1)
    lab.event("w", "j1/1", "preview", frames=(b"old",))
    lab.event("w", "j1/1", "item", frames=(b"item",), attachments=[{}])
    lab.event("w", "j1/1", "progress", progress=0.5)
    lab.event("w", "j1/1", "preview", frames=(b"new",))
    told = lab.feed(e.FollowEvents("j1", "d", "f", after_seq=1))
    assert told == ["reply d f 1 processing", *(f"emit d f {name}" for name in
        ("state processing", "item", "progress", "preview"))]  # fmt: skip
    assert lab.event("w", "j1/1", "log") == ["emit d f log"]
    assert lab.result("w", "j1/1")[0] == "emit d f state completed"
    told = lab.feed(e.FollowEvents("j1", "d", "g", after_seq=7))
    assert told == ["reply d g 1 completed", "emit d g log", "emit d g state completed"]
    assert all(record.frames == () and not record.attachments for record in lab.job(1).history())
    assert lab.core.askers.connections == 0


def test_history_is_bounded() -> None:
    lab = in_state(JobState.PROCESSING)
    for _ in range(400):
        lab.event("w", "j1/1", "log")
        lab.event("w", "j1/1", "progress", progress=0.5)
        lab.event("w", "j1/1", "preview")
    history = lab.job(1).history()
    assert len(history) == EVENTS_KEPT + 2
    seqs = [record.seq for record in history]
    assert seqs == sorted(set(seqs))
    told = lab.feed(e.FollowEvents("j1", "d", "f", after_seq=0))
    assert told[0] == f"reply d f {seqs[0]} processing"
    assert len(told) == 1 + len(history)


def test_a_job_without_history_says_what_comes_next() -> None:
    lab = in_state(JobState.ADOPTING)
    lab.job(1).seq = 41
    assert lab.feed(e.FollowEvents("j1", "d", "f", 0)) == ["reply d f 42 processing"]


def test_events_after_the_end_of_the_attempt_are_no_events() -> None:
    lab = in_state(JobState.PROCESSING)
    lab.submit(1, connection="d", events=EVERYTHING)
    lab.cancel(1)
    assert lab.event("w", "j1/1", "progress", progress=0.9) == ["stop w j1/1"]


# --- clients that vanish ------------------------------------------------------------------------------------------


def test_a_vanished_clients_waiting_job_is_cancelled_after_the_grace() -> None:
    lab = in_state(JobState.PROCESSING)
    assert lab.feed(e.ConnectionGone("c")) == []
    assert lab.wait(9_999) == []
    assert lab.wait(1) == ["stop w j1/1", "audit j1"]


def test_a_client_that_comes_back_in_time_gets_its_answer() -> None:
    lab = in_state(JobState.PROCESSING)
    lab.feed(e.ConnectionGone("c"))
    lab.wait(9_000)
    assert lab.submit(1, connection="c2") == []
    lab.wait(5_000)
    assert lab.result("w", "j1/1") == ["answer c2 r1 completed", "ack w j1/1", "audit j1"]


def test_a_job_somebody_else_waits_for_goes_on() -> None:
    lab = in_state(JobState.PROCESSING)
    lab.submit(1, connection="d")
    lab.feed(e.ConnectionGone("c"))
    assert lab.wait(12_000) == []
    lab.feed(e.ConnectionGone("d"))
    lab.wait(1_000)
    lab.feed(e.ConnectionGone("nobody"))
    assert lab.result("w", "j1/1") == ["ack w j1/1", "audit j1"]


def test_two_vanished_clients_of_one_job_have_one_grace() -> None:
    lab = Lab()
    lab.submit(1)
    lab.submit(1)
    lab.feed(e.ConnectionGone("c"))
    assert lab.wait(10_000) == ["audit j1"]


def test_the_grace_ends_with_the_job() -> None:
    lab = in_state(JobState.PROCESSING)
    lab.feed(e.ConnectionGone("c"))
    lab.result("w", "j1/1")
    lab.beat("w")
    assert lab.wait(10_000) == []


def test_accepted_jobs_and_streams_outlive_their_clients() -> None:
    lab = in_state(JobState.PROCESSING, durable=True)
    lab.submit(1, connection="c", events=STATE, durable=True)
    lab.submit(1, connection="c")
    lab.feed(e.AskResult("j1", "c", "q", 60_000))
    assert lab.feed(e.ConnectionGone("c")) == []
    lab.wait(12_000)
    assert lab.result("w", "j1/1") == ["save end j1 completed"]
    assert lab.feed(e.Settled("j1")) == ["ack w j1/1"]


def test_who_can_be_told_that_the_server_is_alive() -> None:
    lab = Lab()
    lab.submit(1)
    lab.submit(2, connection="req", probed=False)
    lab.accept(3, connection="durable", events=STATE)
    assert list(lab.core.askers.waiting()) == ["c"]


# --- drain --------------------------------------------------------------------------------------------------------


def test_drain_answers_what_waits_in_memory_and_leaves_the_rest_on_disk() -> None:
    lab = Lab()
    lab.hello("w")
    for number in (1, 3, 6):
        lab.submit(number)
        lab.accept(number + 1)
    told = [line for number in (3, 6) for line in (f"answer c r{number} failed draining", f"audit j{number}")]
    assert lab.feed(e.Drain()) == told
    assert lab.submit(5) == ["reject c r5 draining"]
    assert lab.submit(1, connection="d") == []
    told = lab.result("w", "j1/1")
    assert told == ["answer c r1 completed", "answer d r1 completed", "ack w j1/1", "audit j1", "drained"]
    assert [lab.job(number).state for number in (2, 4, 7)] == [JobState.QUEUED] * 3


def test_drained_is_said_when_nothing_runs() -> None:
    lab = in_state(JobState.PROCESSING, durable=True)
    lab.accept(2)
    lab.submit(3, durable=True)
    assert lab.feed(e.Drain()) == []
    assert lab.result("w", "j1/1") == ["save end j1 completed"]
    assert lab.feed(e.Settled("j1")) == ["ack w j1/1"]
    told = lab.feed(e.Saved("j3"))
    assert told == ["accepted c r3 j3", "record j3 state pending", "drained"]
    assert lab.feed(e.Tick()) == ["drained"]


def test_what_comes_back_while_draining_is_set_aside() -> None:
    lab = Lab()
    for number, worker in enumerate(("u", "v", "w", "x"), start=1):
        lab.hello(worker)
        (lab.accept if number % 2 else lab.submit)(number)
    assert lab.feed(e.Drain()) == []
    assert lab.feed(e.WorkerUnreachable("u")) == ["record j1 state pending"]
    assert lab.feed(e.WorkerUnreachable("v")) == ["answer c r2 failed draining", "audit j2"]
    assert lab.feed(e.WorkerGoodbye("w")) == ["record j3 state pending"]
    assert lab.feed(e.WorkerGoodbye("x")) == ["answer c r4 failed draining", "audit j4", "drained"]
    lab.hello("y")
    assert lab.wait(60_000).count("drained") > 0
    assert lab.job(1).state is JobState.BACKOFF
    assert lab.job(3).state is JobState.QUEUED


def test_nothing_is_taken_in_from_the_last_life_while_draining() -> None:
    lab = Lab()
    lab.feed(e.Drain())
    assert lab.hello("w", ("j1/1",)) == ["welcome w", "stop w j1/1", "drained"]


def test_a_save_that_fails_while_draining() -> None:
    lab = in_state(JobState.ACCEPTING, durable=True)
    assert lab.feed(e.Drain()) == []
    assert lab.feed(e.SaveFailed("j1", FAULT)) == ["reject c r1 unavailable", "drained"]


def test_a_failure_of_the_job_itself_ends_it_while_draining() -> None:
    lab = in_state(JobState.PROCESSING)
    lab.feed(e.Drain())
    told = lab.result("w", "j1/1", ErrorCode.INTERNAL)
    assert told == ["answer c r1 failed internal", "ack w j1/1", "audit j1", "drained"]
