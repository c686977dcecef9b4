"""From a request to a job: acceptance, idempotency, limits."""

import pytest

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.states import JobState
from protocol.enums import ErrorCode
from tests.core.kit import FAULT, STATE, Lab, restored


def test_a_waiting_request_is_queued_assigned_and_answered() -> None:
    lab = Lab()
    assert lab.submit(1) == []
    assert lab.hello("w") == ["welcome w", "assign w j1/1"]
    assert lab.result("w", "j1/1") == ["answer c r1 completed", "ack w j1/1", "audit j1"]


def test_a_durable_request_is_accepted_when_it_is_on_disk_and_ends_when_its_end_is() -> None:
    lab = Lab()
    lab.hello("w")
    assert lab.submit(1, durable=True) == ["save j1"]
    told = ["accepted c r1 j1", "record j1 state pending", "record j1 state processing", "assign w j1/1"]
    assert lab.feed(e.Saved("j1")) == told
    assert lab.result("w", "j1/1") == ["save end j1 completed"]
    assert lab.feed(e.Settled("j1")) == ["ack w j1/1"]


def test_events_go_to_who_asked_for_them() -> None:
    lab = Lab()
    assert lab.submit(1, events=STATE) == ["emit c r1 state pending"]
    assert lab.hello("w") == ["welcome w", "emit c r1 state processing", "assign w j1/1"]
    told = ["emit c r1 state completed", "answer c r1 completed", "ack w j1/1", "audit j1"]
    assert lab.result("w", "j1/1") == told


def test_a_durable_request_with_events_is_a_stream_after_its_acceptance() -> None:
    lab = Lab()
    lab.submit(1, durable=True, events=STATE)
    assert lab.feed(e.Saved("j1")) == ["accepted c r1 j1", "emit c r1 state pending", "record j1 state pending"]
    lab.cancel(1)
    assert lab.feed(e.Settled("j1")) == ["emit c r1 state cancelled", "reply c x j1 cancelled"]


def test_one_request_a_hundred_times_is_one_job_with_a_hundred_answers() -> None:
    lab = Lab()
    for number in range(100):
        lab.submit(1, job_id=f"j1-{number}", connection=f"c{number}")
    assert list(lab.core.jobs) == ["j1-0"]
    lab.hello("w")
    told = lab.result("w", "j1-0/1")
    assert told[:100] == [f"answer c{number} r1 completed" for number in range(100)]
    assert told[100:] == ["ack w j1-0/1", "audit j1-0"]
    assert lab.submit(1, job_id="again") == ["answer c r1 completed"]


def test_one_durable_request_a_hundred_times() -> None:
    lab = Lab()
    told = [lab.submit(1, job_id=f"j1-{number}", durable=True) for number in range(50)]
    assert told == [["save j1-0"], *[[]] * 49]
    assert lab.feed(e.Saved("j1-0")) == ["accepted c r1 j1-0"] * 50 + ["record j1-0 state pending"]
    for number in range(50, 100):
        assert lab.submit(1, job_id=f"j1-{number}", durable=True) == ["accepted c r1 j1-0"]
    assert lab.submit(1, durable=True, events=STATE) == ["accepted c r1 j1-0"]
    assert lab.hello("w") == [
        "welcome w",
        "emit c r1 state processing",
        "record j1-0 state processing",
        "assign w j1-0/1",
    ]


def test_a_durable_job_answers_who_waits_for_it_and_accepts_again_when_it_has_ended() -> None:
    lab = Lab()
    lab.accept(1)
    assert lab.submit(1, connection="d") == []
    lab.hello("w")
    lab.result("w", "j1/1")
    assert lab.feed(e.Settled("j1")) == ["answer d r1 completed", "ack w j1/1"]
    assert lab.submit(1, durable=True, events=STATE) == ["accepted c r1 j1"]
    assert lab.submit(1) == ["answer c r1 completed"]


def test_another_body_under_the_same_id_conflicts() -> None:
    lab = Lab()
    lab.submit(1)
    assert lab.submit(1, fingerprint=b"other") == ["reject c r1 request_conflict"]
    assert lab.submit(1, durable=True) == ["reject c r1 request_conflict"]
    assert lab.submit(1, tenant="u", job_id="j2") == []
    assert len(lab.core.jobs) == 2


def test_a_result_in_memory_lasts_sixty_seconds() -> None:
    lab = Lab()
    lab.hello("w", slots=4)
    for number in (1, 2):
        lab.submit(number)
        lab.result("w", f"j{number}/1")
        lab.beat("w")
        lab.wait(10_000)
        lab.beat("w")
    for _ in range(3):
        lab.wait(13_000)
        lab.beat("w")
    assert lab.submit(1, job_id="again") == ["answer c r1 completed"]
    lab.wait(2_000)
    assert list(lab.core.jobs) == ["j2"]
    lab.wait(10_000)
    assert not lab.core.jobs
    assert lab.submit(1) == ["assign w j1/1"]


def test_results_in_memory_keep_to_their_bytes() -> None:
    lab = Lab(result_keep_bytes_max=10_000)
    lab.hello("w")
    for number in range(1, 10):
        lab.submit(number)
        lab.result("w", f"j{number}/1")
    assert list(lab.core.jobs) == ["j6", "j7", "j8", "j9"]


@pytest.mark.parametrize("answer", [None, {"job_id": "j0"}])
def test_a_job_the_disk_refuses_never_was(answer: dict[str, str] | None) -> None:
    lab = Lab()
    lab.session()
    for connection in ("c", "d"):
        lab.submit(1, durable=True, connection=connection, session_id="s", deadline_ms=9, queue_timeout_ms=9)
    lab.feed(e.FollowEvents("j1", "f", "f1", 0))
    told = lab.feed(e.SaveFailed("j1", FAULT, answer))
    kind = "reject {} r1 unavailable" if answer is None else "reply {} r1 j0"
    assert told == [kind.format("c"), kind.format("d")]
    assert not lab.core.jobs
    session = lab.core.sessions.by_id["s"]
    assert not session.live_jobs
    assert sum(session.counts.values()) == 0
    assert lab.wait(10) == []


def test_the_queue_has_a_limit_that_counts_jobs_on_their_way_to_the_disk() -> None:
    lab = Lab(queue_jobs_max=2)
    lab.submit(1)
    lab.submit(2, durable=True)
    assert lab.submit(3) == ["reject c r3 queue_full"]
    lab.feed(e.Saved("j2"))
    assert lab.submit(3) == ["reject c r3 queue_full"]
    lab.hello("w")
    assert lab.submit(3) == []


def test_a_connection_has_a_limit() -> None:
    lab = Lab(connection_requests_max=2)
    lab.submit(1)
    assert lab.submit(1) == []
    for told in (lab.submit(1), lab.submit(2), lab.feed(e.AskResult("j1", "c", "r2", 9))):
        assert told[0].startswith("reject c r")
        assert told[0].endswith("queue_full")
    assert lab.feed(e.FollowEvents("j1", "c", "f", 0)) == ["reject c f queue_full"]
    assert lab.submit(2, connection="d") == []
    lab.accept(3, connection="d")
    told = lab.submit(3, durable=True, events=STATE, connection="c")
    assert told == ["reject c r3 queue_full"]
    assert lab.submit(3, durable=True, connection="c") == ["accepted c r3 j3"]
    assert lab.cancel(3) == ["save end j3 cancelled", "reject c x queue_full"]


def test_what_no_worker_can_run_is_refused() -> None:
    lab = Lab()
    assert lab.submit(1, action="paint") == []  # nobody is here to say
    lab.hello("w", models=frozenset(("shapes",)))
    cases = [
        ({"action": "paint"}, "no_capable_worker"),
        ({"model_id": "letters"}, "model_not_found"),
        ({"worker_pin": "other"}, "no_capable_worker"),
        ({"device_pin": "cuda:1"}, "no_capable_worker"),
        ({"worker_pin": "w", "device_pin": "cuda:1"}, "no_capable_worker"),
    ]
    for number, (fields, code) in enumerate(cases, start=2):
        assert lab.submit(number, **fields) == [f"reject c r{number} {code}"], fields
    rejected = lab.submit(9, model_id="letters") and lab.commands[0]
    assert isinstance(rejected, c.Reject)
    assert rejected.fault.details == {"known": ["shapes"]}
    assert lab.submit(8, model_id="shapes", worker_pin="w", device_pin="cuda:0") == ["assign w j8/1"]


def test_a_worker_that_is_away_still_counts() -> None:
    lab = Lab()
    lab.hello("w")
    lab.wait(20_000)
    assert not lab.core.fleet.by_id
    assert lab.submit(1) == []
    assert lab.submit(2, action="paint") == ["reject c r2 no_capable_worker"]


def test_what_came_before_any_worker_is_looked_through_when_they_had_time_to_come() -> None:
    lab = Lab()
    lab.submit(1, action="paint")
    lab.accept(2, action="paint")
    lab.submit(3)
    lab.hello("w")
    told = lab.wait(10_000)
    assert told == ["answer c r1 failed no_capable_worker", "audit j1", "save end j2 failed"]
    assert lab.job(3).state is JobState.PROCESSING


def test_after_a_restart_nothing_is_refused_until_the_workers_had_time_to_come_back() -> None:
    lab = Lab()
    lab.feed(e.Restore([restored(1, JobState.QUEUED)], []))
    lab.hello("w")
    assert lab.submit(2, action="paint") == []
    lab.wait(9_999)
    assert lab.submit(3, action="paint") == []
    told = lab.wait(1)
    assert told == [line for n in (2, 3) for line in (f"answer c r{n} failed no_capable_worker", f"audit j{n}")]
    assert lab.submit(4, action="paint") == ["reject c r4 no_capable_worker"]


def test_the_estimate_counts_what_waits_ahead_and_learns() -> None:
    lab = Lab()
    lab.hello("w", slots=1)
    lab.accept(1)
    accepted = lab.commands[0]
    assert isinstance(accepted, c.Accepted)
    assert (accepted.start_ms, accepted.completion_ms, accepted.measured) == (0, 1_000, False)  # 4 units of 250 ms
    lab.result("w", "j1/1", running_ms=800, load_ms=100)
    lab.feed(e.Settled("j1"))
    lab.submit(2)
    lab.submit(3)
    lab.accept(4)
    accepted = lab.commands[0]
    assert isinstance(accepted, c.Accepted)
    assert (accepted.start_ms, accepted.completion_ms, accepted.measured) == (1_200, 2_000, True)
    lab.accept(5, priority=9)
    accepted = lab.commands[0]
    assert isinstance(accepted, c.Accepted)
    assert accepted.start_ms == 400  # half of what runs; nothing else is as urgent


def test_payload_bytes_are_counted_until_the_end() -> None:
    lab = Lab()
    lab.submit(1)
    lab.accept(2)
    assert lab.core.payload_nbytes == 14
    lab.cancel(1)
    assert lab.core.payload_nbytes == 7
    lab.cancel(2)
    assert lab.core.payload_nbytes == 7
    lab.feed(e.Settled("j2"))
    assert lab.core.payload_nbytes == 0
    assert lab.core.job("t", "j2") is lab.job(2)
    assert lab.core.job("u", "j2") is None


def test_codes_of_the_catalogue_go_through() -> None:
    lab = Lab()
    lab.submit(1)
    lab.hello("w")
    told = lab.result("w", "j1/1", ErrorCode.OUT_OF_MEMORY)
    assert told == ["answer c r1 failed out_of_memory", "ack w j1/1", "audit j1"]
