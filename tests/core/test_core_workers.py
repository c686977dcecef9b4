"""Leases, fencing, adoption, loss: what workers say, in every order in which it may arrive."""

import pytest

from orchestrator.core import events as e
from orchestrator.core.states import JobState
from orchestrator.core.workers import UNREAD_MS
from protocol.enums import ErrorCode
from tests.core.kit import STATE, Lab, restored


def running(**settings: int) -> Lab:
    """Job 1 runs on worker w."""
    lab = Lab(**settings)
    lab.hello("w")
    lab.submit(1)
    assert lab.job(1).state is JobState.PROCESSING
    return lab


# --- leases -------------------------------------------------------------------------------------------------------


def test_any_message_renews_the_lease() -> None:
    lab = running()
    for _ in range(5):
        lab.wait(7_000)
        assert lab.beat("w", "j1/1") == ["beat w"]
        lab.wait(7_000)
        assert lab.event("w", "j1/1") == []
    assert lab.job(1).attempt == 1


def test_a_silent_worker_is_lost_and_its_job_runs_again_after_a_back_off() -> None:
    lab = running()
    lab.wait(15_000 + UNREAD_MS - 1)
    assert lab.job(1).state is JobState.PROCESSING
    lab.wait(1)
    assert (lab.job(1).state, lab.job(1).losses) == (JobState.BACKOFF, 1)
    assert lab.lost == ["lost w j1/1"]
    assert not lab.core.fleet.by_id
    assert lab.hello("v") == ["welcome v"]
    assert lab.wait(500) == ["assign v j1/2"]


def test_what_waits_in_the_sockets_is_read_before_leases_are_judged() -> None:
    """The orchestrator was stopped for a minute: its workers have not been silent."""
    lab = running()
    lab.hello("v")
    lab.submit(2)
    lab.now_ms += 60_000
    assert lab.beat("w", "j1/1") == ["beat w"]
    lab.wait(UNREAD_MS - 1)
    assert lab.beat("v", "j2/1") == ["beat v"]
    lab.wait(5_000)
    assert lab.job(1).state is lab.job(2).state is JobState.PROCESSING


def test_back_offs_double_up_to_a_limit() -> None:
    lab = Lab(losses_max=99, losses_before_exclusive=99, retry_backoff_ms_max=3_000)
    lab.submit(1)
    spans = []
    for loss in range(5):
        lab.hello(f"w{loss}")
        lab.feed(e.WorkerUnreachable(f"w{loss}"))
        due_ms = lab.core.next_deadline()
        timer = lab.job(1).retry_timer
        assert timer is not None
        assert due_ms is not None
        spans.append(timer.due_ms - lab.now_ms)
        lab.wait(spans[-1])
    assert spans == [500, 1_000, 2_000, 3_000, 3_000]


def test_strangers_are_asked_to_say_hello() -> None:
    lab = Lab()
    assert lab.beat("x") == ["rehello x"]
    assert lab.event("x", "j1/1") == ["rehello x"]
    assert lab.result("x", "j1/1") == ["rehello x"]
    for event in (e.WorkerGoodbye("x"), e.WorkerUnreachable("x"), e.AssignFailed("x", "j1", 1)):
        assert lab.feed(event) == []


# --- hello --------------------------------------------------------------------------------------------------------


def test_a_second_instance_of_a_name_is_refused_until_the_first_is_gone() -> None:
    lab = running()
    assert lab.hello("w", peer="w2", instance_id="other") == ["refuse w2 unavailable", "probe w"]
    assert lab.feed(e.WorkerUnreachable("w")) == []
    assert lab.hello("w", peer="w2", instance_id="other") == ["welcome w2"]
    assert lab.wait(500) == ["assign w2 j1/2"]


def test_the_same_instance_on_a_new_connection_goes_on() -> None:
    lab = running()
    assert lab.hello("w", ("j1/1",), peer="w2") == ["welcome w2"]
    assert lab.beat("w") == ["rehello w"]
    assert lab.result("w2", "j1/1") == ["answer c r1 completed", "ack w2 j1/1", "audit j1"]


def test_a_process_that_was_started_again_has_lost_its_job() -> None:
    lab = running()
    assert lab.hello("w", peer="w2") == ["welcome w2"]
    assert (lab.job(1).state, lab.job(1).losses) == (JobState.BACKOFF, 1)
    assert lab.wait(500) == ["assign w2 j1/2"]


def test_a_doubled_hello_that_an_assign_crossed_loses_nothing() -> None:
    lab = running()
    assert lab.hello("w") == ["welcome w"]
    assert (lab.job(1).state, lab.job(1).losses) == (JobState.PROCESSING, 0)
    assert lab.beat("w", "j1/1") == ["beat w"]


def test_a_doubled_hello_after_a_lost_assign_gives_the_job_back() -> None:
    lab = running()
    lab.hello("w")
    told = []
    for _ in range(5):
        lab.wait(2_000)
        told += lab.beat("w")
    assert "assign w j1/2" in told
    assert lab.job(1).losses == 0


def test_a_connection_has_one_worker() -> None:
    lab = running()
    assert lab.hello("v", peer="w") == ["welcome w"]
    assert list(lab.core.fleet.by_id) == ["v"]
    assert lab.wait(500) == ["assign w j1/2"]


# --- lost messages ------------------------------------------------------------------------------------------------


def test_a_lost_assign_is_noticed_by_two_heartbeats_without_the_job() -> None:
    lab = running()
    for _ in range(3):
        lab.wait(2_000)
        assert lab.beat("w") == ["beat w"]
    lab.wait(2_000)
    assert lab.beat("w") == ["beat w"]
    lab.wait(2_000)
    assert lab.beat("w") == ["beat w", "assign w j1/2"]
    assert lab.job(1).losses == 0


def test_an_assign_with_large_attachments_has_time_to_arrive() -> None:
    lab = Lab()
    lab.hello("w")
    lab.submit(1, payload_nbytes=256 * 1024 * 1024)
    for _ in range(70):
        lab.wait(2_000)
        assert lab.beat("w") == ["beat w"]
    assert lab.beat("w", "j1/1") == ["beat w"]
    assert lab.job(1).attempt == 1


def test_one_heartbeat_without_the_job_is_forgiven() -> None:
    lab = running()
    lab.wait(7_000)
    lab.beat("w")
    lab.beat("w", "j1/1")
    lab.wait(2_000)
    assert lab.beat("w") == ["beat w"]


def test_an_assign_that_could_not_be_sent_goes_elsewhere_and_the_worker_rests() -> None:
    lab = running()
    assert lab.feed(e.AssignFailed("w", "j1", 1)) == []
    assert lab.core.fleet.by_id["w"].stalled
    assert lab.feed(e.AssignFailed("w", "j1", 1)) == []
    assert lab.hello("v") == ["welcome v", "assign v j1/2"]
    lab.submit(2)
    assert lab.beat("w") == ["beat w", "assign w j2/1"]


def test_a_lost_cancel_is_repeated_as_long_as_the_worker_lists_the_job() -> None:
    lab = running()
    assert lab.cancel(1) == ["stop w j1/1", "answer c r1 cancelled cancelled", "audit j1", "reply c x j1 cancelled"]
    assert lab.beat("w", "j1/1") == ["beat w", "stop w j1/1"]
    lab.submit(2)
    assert lab.beat("w") == ["beat w", "assign w j2/1"]


def test_a_stopped_attempt_that_reports_frees_its_slot() -> None:
    lab = running()
    lab.cancel(1)
    lab.submit(2)
    assert lab.result("w", "j1/1", ErrorCode.CANCELLED) == ["ack w j1/1", "assign w j2/1"]


def test_a_lost_acknowledgement_is_repeated() -> None:
    lab = running()
    lab.result("w", "j1/1")
    assert lab.result("w", "j1/1") == ["ack w j1/1"]
    assert lab.beat("w", "j1/1 done") == ["beat w", "stop w j1/1"]


def test_a_durable_result_is_acknowledged_when_settled_on_the_connection_that_is_there() -> None:
    lab = Lab()
    lab.accept(1)
    lab.hello("w")
    assert lab.result("w", "j1/1") == ["save end j1 completed"]
    assert lab.result("w", "j1/1") == []
    assert lab.beat("w", "j1/1 done durable") == ["beat w"]
    lab.feed(e.WorkerUnreachable("w"))
    assert lab.hello("w", ("j1/1 done durable",), peer="w2") == ["welcome w2"]
    assert lab.feed(e.Settled("j1")) == ["ack w2 j1/1"]


def test_a_result_that_came_after_the_end_is_acknowledged_at_once() -> None:
    lab = Lab()
    lab.accept(1)
    lab.hello("w")
    assert lab.cancel(1) == ["stop w j1/1", "save end j1 cancelled"]
    assert lab.result("w", "j1/1") == ["ack w j1/1"]
    assert lab.feed(e.Settled("j1")) == ["reply c x j1 cancelled"]


# --- fencing ------------------------------------------------------------------------------------------------------


def moved() -> Lab:
    """Job 1 ran on w, which fell silent, and runs on v as attempt 2."""
    lab = running()
    lab.wait(15_000 + UNREAD_MS)
    lab.hello("v")
    assert lab.wait(500) == ["assign v j1/2"]
    return lab


def test_a_stale_attempt_is_stopped_and_its_result_dropped() -> None:
    lab = moved()
    assert lab.hello("w", ("j1/1",)) == ["welcome w", "stop w j1/1"]
    assert lab.event("w", "j1/1") == ["stop w j1/1"]
    assert lab.result("w", "j1/1") == ["ack w j1/1"]
    assert lab.job(1).state is JobState.PROCESSING
    assert lab.result("v", "j1/2") == ["answer c r1 completed", "ack v j1/2", "audit j1"]


def test_the_right_number_from_the_wrong_worker_does_not_count() -> None:
    lab = moved()
    lab.hello("w")
    assert lab.event("w", "j1/2") == ["stop w j1/2"]
    assert lab.result("w", "j1/2") == ["ack w j1/2"]
    assert lab.job(1).state is JobState.PROCESSING


def test_a_worker_back_before_anybody_else_began_goes_on() -> None:
    lab = running()
    lab.wait(15_000 + UNREAD_MS)
    assert lab.hello("w", ("j1/1",)) == ["welcome w"]
    assert (lab.job(1).state, lab.job(1).attempt) == (JobState.PROCESSING, 1)
    assert lab.wait(5_000) == []
    assert lab.result("w", "j1/1")[0] == "answer c r1 completed"


@pytest.mark.parametrize("sign", ["event", "heartbeat", "result"])
def test_an_assign_taken_for_lost_is_taken_back_by_any_sign_of_life(sign: str) -> None:
    lab = running()
    lab.feed(e.AssignFailed("w", "j1", 1))
    assert lab.job(1).state is JobState.QUEUED
    if sign == "event":
        assert lab.event("w", "j1/1") == []
    elif sign == "heartbeat":
        assert lab.beat("w", "j1/1") == ["beat w"]
    else:
        assert lab.result("w", "j1/1") == ["answer c r1 completed", "ack w j1/1", "audit j1"]
        return
    assert (lab.job(1).state, lab.job(1).attempt) == (JobState.PROCESSING, 1)


def test_an_attempt_that_ended_is_not_taken_up_again() -> None:
    lab = running()
    assert lab.result("w", "j1/1", ErrorCode.UNAVAILABLE) == ["ack w j1/1"]
    assert lab.result("w", "j1/1", ErrorCode.UNAVAILABLE) == ["ack w j1/1"]
    assert lab.beat("w", "j1/1 done") == ["beat w", "stop w j1/1"]
    assert (lab.job(1).state, lab.job(1).failures) == (JobState.BACKOFF, 1)


def test_a_stop_nobody_asked_for_is_tried_again_and_never_published_as_a_cancel() -> None:
    lab = running()
    assert lab.result("w", "j1/1", ErrorCode.CANCELLED) == ["ack w j1/1"]
    assert lab.wait(500) == ["assign w j1/2"]
    lab.feed(e.AssignFailed("w", "j1", 2))
    assert lab.result("w", "j1/2", ErrorCode.CANCELLED) == ["ack w j1/2"]
    assert lab.job(1).state is JobState.QUEUED


# --- failures and poison ------------------------------------------------------------------------------------------


def test_a_passing_failure_is_tried_three_times() -> None:
    lab = running()
    for attempt in (1, 2):
        assert lab.result("w", f"j1/{attempt}", ErrorCode.UNAVAILABLE) == [f"ack w j1/{attempt}"]
        assert f"assign w j1/{attempt + 1}" in lab.wait(1_000)
    told = ["answer c r1 failed unavailable", "ack w j1/3", "audit j1"]
    assert lab.result("w", "j1/3", ErrorCode.UNAVAILABLE) == told


def test_twice_lost_runs_alone_and_thrice_lost_is_poisoned() -> None:
    lab = Lab()
    lab.submit(1)
    for loss in (1, 2):
        lab.hello("w", peer=f"w{loss}", slots=2)
        lab.feed(e.WorkerUnreachable(f"w{loss}"))
        lab.wait(1_000)
    assert lab.job(1).requirement.exclusive
    assert lab.hello("w", peer="w3", slots=2) == ["welcome w3", "assign w3 j1/3"]
    assert lab.submit(2) == []  # the worker has a second slot, but job 1 is alone
    told = lab.feed(e.WorkerUnreachable("w3"))
    assert told == ["answer c r1 failed poisoned", "audit j1"]


def test_a_job_lost_twice_runs_alone_after_a_restart_too() -> None:
    lab = Lab()
    lab.feed(e.Restore([restored(1, JobState.QUEUED, attempt=2, losses=2), restored(2, JobState.QUEUED)], []))
    assert "assign w j1/3" in lab.hello("w", slots=2)
    assert lab.job(2).state is JobState.QUEUED  # the worker has a second slot, but job 1 is alone


def test_goodbye_and_restart_count_for_nothing() -> None:
    lab = running()
    for number in range(2, 6):
        lab.feed(e.WorkerGoodbye(f"w{number - 1}" if number > 2 else "w"))
        assert lab.hello("w", peer=f"w{number}") == [f"welcome w{number}", f"assign w{number} j1/{number}"]
    assert lab.job(1).losses == 0


def test_everything_a_leaving_worker_held_finds_a_place_at_once() -> None:
    lab = Lab()
    lab.hello("w", slots=3)
    for number in (1, 2, 3):
        lab.submit(number)
    lab.hello("u", slots=2)
    lab.hello("v", slots=2)
    told = lab.feed(e.WorkerGoodbye("w"))
    assert sorted(line.split()[0] for line in told) == ["assign"] * 3
    assert {line.split()[1] for line in told} == {"u", "v"}


# --- after a restart ----------------------------------------------------------------------------------------------


def test_a_durable_job_that_ran_is_handed_over() -> None:
    lab = Lab()
    lab.feed(e.Restore([restored(1, JobState.ADOPTING, attempt=2)], []))
    assert lab.hello("v") == ["welcome v"]
    assert lab.hello("w", ("j1/2 durable",)) == ["welcome w", "record j1 state processing"]
    assert lab.wait(10_000) == []
    lab.beat("w", "j1/2 durable")
    assert lab.result("w", "j1/2") == ["save end j1 completed"]


def test_a_durable_job_whose_start_never_reached_the_disk_is_handed_over_too() -> None:
    lab = Lab()
    lab.feed(e.Restore([restored(1, JobState.QUEUED)], []))
    assert lab.hello("w", ("j1/1 durable",)) == ["welcome w", "record j1 state processing"]
    assert lab.job(1).attempt == 1


def test_a_job_nobody_hands_over_is_queued_without_a_loss() -> None:
    lab = Lab()
    lab.feed(e.Restore([restored(1, JobState.ADOPTING, attempt=2)], []))
    lab.hello("w")
    assert lab.wait(9_999) == []
    assert lab.wait(1) == ["record j1 state pending", "record j1 state processing", "assign w j1/3"]
    assert lab.job(1).losses == 0


def test_the_queue_comes_back_in_order() -> None:
    lab = Lab()
    lab.feed(e.Restore([restored(number, JobState.QUEUED) for number in (3, 1, 2)], []))
    told = lab.hello("w", slots=9)
    assert [line for line in told if "assign" in line] == ["assign w j3/1", "assign w j1/1", "assign w j2/1"]


def test_a_durable_job_that_had_ended_is_not_taken_in() -> None:
    lab = Lab()
    assert lab.hello("w", ("j7/1 done durable",)) == ["welcome w", "stop w j7/1"]


def test_a_job_of_the_last_life_waits_for_its_client() -> None:
    lab = Lab()
    assert lab.hello("w", ("j1/1",)) == ["welcome w"]
    lab.wait(5_000)
    assert lab.submit(1, job_id="new", events=STATE) == []
    assert list(lab.core.jobs) == ["j1"]
    lab.wait(9_000)
    told = ["emit c r1 state completed", "answer c r1 completed", "ack w j1/1", "audit j1"]
    assert lab.result("w", "j1/1") == told


def test_a_job_of_the_last_life_that_ended_answers_its_client_later() -> None:
    lab = Lab()
    lab.hello("w", ("j1/1 done",))
    assert lab.result("w", "j1/1") == ["ack w j1/1", "audit j1"]
    assert lab.submit(1, job_id="new") == ["answer c r1 completed"]


def test_a_job_of_the_last_life_that_nobody_asks_for_is_cancelled() -> None:
    lab = Lab()
    lab.hello("w", ("j1/1",))
    assert lab.wait(9_999) == []
    assert lab.wait(1) == ["stop w j1/1", "audit j1"]


def test_a_job_of_the_last_life_takes_over_what_its_client_brings_again() -> None:
    lab = Lab()
    lab.session()
    lab.hello("w", ("j1/1", "j2/1"), slots=2)
    lab.event("w", "j1/1", "progress", progress=0.5)
    lab.submit(1, job_id="new", run_timeout_ms=9_000, deadline_ms=60_000, session_id="s", worker_pin="w")
    assert lab.submit(2, job_id="n2", session_id="unknown") == []
    assert (lab.job(1).session_id, lab.job(2).session_id) == ("s", None)
    assert lab.core.sessions.by_id["s"].progress == 0.5
    assert lab.core.payload_nbytes == 14
    assert lab.hello("w", ("j2/1",), peer="w2", slots=2) == ["welcome w2"]
    assert lab.wait(500) == ["assign w2 j1/2"]
    assert lab.wait(9_000) == ["stop w2 j1/2", "answer c r1 failed timeout_run", "audit j1"]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (e.WorkerUnreachable("w"), "worker_lost"),
        (e.WorkerGoodbye("w"), "worker_lost"),
        (None, "unavailable"),
    ],
)
def test_a_job_of_the_last_life_without_its_payload_cannot_run_again(end: e.Event | None, code: str) -> None:
    lab = Lab()
    lab.hello("w", ("j1/1",))
    lab.feed(e.AskResult("j1", "c", "q", 60_000))
    told = lab.result("w", "j1/1", ErrorCode.UNAVAILABLE) if end is None else lab.feed(end)
    assert told[0] == f"answer c q failed {code}"


def test_a_client_back_first_is_given_the_job_that_runs_already() -> None:
    lab = Lab()
    lab.session()
    lab.submit(9, request_id="r1", session_id="s")
    assert lab.hello("w", ("j1/1",)) == ["welcome w"]
    assert list(lab.core.jobs) == ["j1"]
    assert list(lab.core.sessions.by_id["s"].live_jobs) == ["j1"]
    assert lab.result("w", "j1/1") == ["answer c r1 completed", "ack w j1/1", "audit j1"]


def test_a_twin_that_runs_already_wins() -> None:
    lab = Lab()
    lab.hello("v")
    lab.submit(9, request_id="r1")
    assert lab.hello("w", ("j1/1",)) == ["welcome w", "stop w j1/1"]
    assert list(lab.core.jobs) == ["j9"]


@pytest.mark.parametrize("fields", [{"fingerprint": b"other"}, {"durable": True}])
def test_a_twin_of_another_kind_is_no_twin(fields: dict[str, object]) -> None:
    lab = Lab()
    lab.submit(9, request_id="r1", **fields)
    told = lab.hello("w", ("j1/1",))
    assert "stop w j1/1" in told


def test_an_unknown_job_of_a_known_process_is_stopped() -> None:
    lab = Lab()
    lab.hello("w")
    assert lab.hello("w", ("j1/1",), peer="w2") == ["welcome w2", "stop w2 j1/1"]
    assert lab.beat("w2", "j1/1") == ["beat w2", "stop w2 j1/1"]
    assert not lab.core.jobs


# --- drain of a worker --------------------------------------------------------------------------------------------


def test_a_draining_worker_gets_no_job_and_is_told_until_it_leaves() -> None:
    lab = running()
    lab.submit(2)
    assert lab.feed(e.DrainWorker("w")) == ["drain w"]
    assert lab.core.fleet.by_id["w"].status == "draining"
    assert lab.beat("w", "j1/1") == ["beat w", "drain w"]
    assert lab.hello("w", ("j1/1",), peer="w2") == ["welcome w2", "drain w2"]
    assert lab.result("w2", "j1/1") == ["answer c r1 completed", "ack w2 j1/1", "audit j1"]
    assert lab.feed(e.WorkerGoodbye("w2")) == []
    assert lab.hello("w", peer="w3", instance_id="new") == ["welcome w3", "assign w3 j2/1"]


def test_a_worker_that_says_it_drains_gets_no_job() -> None:
    lab = Lab()
    lab.submit(1)
    assert lab.hello("w", draining=True) == ["welcome w"]
    assert lab.hello("w", draining=True) == ["welcome w"]


def test_a_worker_shows_its_status() -> None:
    lab = Lab()
    lab.hello("w")
    worker = lab.core.fleet.by_id["w"]
    assert worker.status == "ready"
    lab.submit(1)
    assert worker.status == "busy"


def test_a_model_that_came_is_run_before_the_worker_says_hello_about_it() -> None:
    lab = Lab()
    lab.hello("w", models=frozenset(("m:1",)))
    assert lab.submit(1, model_id="m:2") == ["reject c r1 model_not_found"]
    assert lab.feed(e.ModelCame("w", frozenset(("m", "m:2")))) == []
    assert lab.submit(2, model_id="m:2") == ["assign w j2/1"]
    assert lab.submit(3, model_id="m:1") == []
    assert lab.result("w", "j2/1")[-1] == "assign w j3/1"
    lab.result("w", "j3/1")
    lab.hello("w", models=frozenset(("m:1",)))
    assert lab.submit(4, model_id="m:2") == ["reject c r4 model_not_found"]
    assert lab.feed(e.ModelCame("gone", frozenset(("m:2",)))) == []
