"""Light jobs: slots of their own beside a worker's, and what they share with other jobs."""

from typing import Any

import pytest

from orchestrator.core import events as e
from orchestrator.core.forecast import forecasts
from orchestrator.core.model import Cost, Job, Requirement
from orchestrator.core.states import JobState
from orchestrator.payload import cost_of, requirement_of
from tests.core.kit import Lab

RUN_MS = 1000  # of the lab's jobs


def light(lab: Lab, *numbers: int, **fields: Any) -> list[str]:
    """Submit light jobs; the assigns."""
    told = [line for number in numbers for line in lab.submit(number, light=True, **fields)]
    return [line for line in told if line.startswith("assign")]


def heavy(lab: Lab, *numbers: int, **fields: Any) -> list[str]:
    told = [line for number in numbers for line in lab.submit(number, **fields)]
    return [line for line in told if line.startswith("assign")]


def test_light_jobs_run_beside_a_worker_whose_slots_are_taken() -> None:
    lab = Lab()
    lab.hello("w", slots=1, light_slots=2)
    heavy(lab, 1)
    assert heavy(lab, 2) == []
    assert light(lab, 3, 4) == ["assign w j3/1", "assign w j4/1"]
    assert light(lab, 5) == []
    assert lab.core.fleet.by_id["w"].status == "busy"
    assert lab.result("w", "j3/1")[-1] == "assign w j5/1"
    assert lab.result("w", "j1/1")[-1] == "assign w j2/1"


def test_light_jobs_take_light_slots_first_and_then_others() -> None:
    lab = Lab()
    lab.hello("w", slots=2, light_slots=1)
    assert len(light(lab, 1, 2)) == 2
    worker = lab.core.fleet.by_id["w"]
    assert [slot.light for slot in worker.jobs.values()] == [True, False]
    assert heavy(lab, 3) == ["assign w j3/1"]
    assert light(lab, 4) == []
    lab.result("w", "j2/1")  # its slot suits either
    assert "j4" in worker.jobs
    assert not worker.jobs["j4"].light


def test_a_worker_without_light_slots_takes_them_like_any_other_job() -> None:
    lab = Lab()
    lab.hello("w", slots=2)
    light(lab, 1)
    heavy(lab, 2)
    assert light(lab, 3) == heavy(lab, 4) == []
    assert lab.result("w", "j1/1")[-1] == "assign w j3/1"


def test_light_slots_of_any_worker_go_before_slots() -> None:
    lab = Lab()
    lab.hello("plain", slots=4)
    lab.hello("both", slots=4, light_slots=2)
    assert light(lab, 1, 2, 3) == ["assign both j1/1", "assign both j2/1", "assign plain j3/1"]


def test_workers_take_turns_with_light_jobs_too() -> None:
    lab = Lab()
    for name in ("a", "b"):
        lab.hello(name, light_slots=8)
    assert [line.split()[1] for line in light(lab, *range(1, 5))] == ["a", "b", "a", "b"]


def test_a_loaded_model_beats_one_to_load_for_light_jobs_too() -> None:
    lab = Lab()
    lab.hello("cold", light_slots=2)
    lab.hello("warm", light_slots=2, resident=frozenset(("m",)))
    told = light(lab, 1, 2, 3, model_id="m")
    assert told == ["assign warm j1/1", "assign warm j2/1", "assign cold j3/1"]


def test_the_more_urgent_light_job_goes_first() -> None:
    lab = Lab()
    lab.hello("w", light_slots=1)
    light(lab, 1, 2)  # the second one in the slot
    light(lab, 3, priority=2)
    light(lab, 4, priority=7)
    assert lab.result("w", "j1/1")[-1] == "assign w j4/1"


def test_the_most_urgent_light_jobs_have_room_beyond_all_slots() -> None:
    lab = Lab()
    lab.hello("w", slots=2, light_slots=1)
    heavy(lab, 1, 2)
    light(lab, 3)
    assert light(lab, 4, priority=8) == []
    assert light(lab, 5, priority=9) == ["assign w j5/1"]
    assert heavy(lab, 6, priority=9) == ["assign w j6/1"]
    assert light(lab, 7, priority=9) == []
    told = lab.result("w", "j6/1")
    assert told[-1] == "assign w j7/1"


def exclusive_light(lab: Lab) -> None:
    """Job 1 is light, was lost twice, and waits to run alone."""
    light(lab, 1)
    for loss in (1, 2):
        lab.hello("x", peer=f"x{loss}", light_slots=1)
        lab.feed(e.WorkerUnreachable(f"x{loss}"))
        lab.wait(500 if loss == 1 else 0)


@pytest.mark.parametrize("of_light", [False, True])
def test_a_job_that_runs_alone_waits_for_light_ones_to_end_and_keeps_them_away(of_light: bool) -> None:
    lab = Lab()
    if of_light:
        exclusive_light(lab)
    else:
        heavy(lab, 1)
        for loss in (1, 2):
            lab.hello("x", peer=f"x{loss}")
            lab.feed(e.WorkerUnreachable(f"x{loss}"))
            lab.wait(500 if loss == 1 else 0)
    lab.hello("w", slots=2, light_slots=2)
    light(lab, 10, 11)
    lab.wait(1_000)
    assert lab.core.fleet.by_id["w"].reserved
    assert light(lab, 12) == heavy(lab, 13) == []
    lab.result("w", "j10/1")
    assert lab.result("w", "j11/1")[-1] == "assign w j1/3"
    assert light(lab, 14) == []
    told = [line for line in lab.result("w", "j1/3") if line.startswith("assign")]
    assert sorted(told) == ["assign w j12/1", "assign w j13/1", "assign w j14/1"]


def test_a_draining_or_stalled_worker_gets_no_light_jobs() -> None:
    lab = Lab()
    lab.hello("w", light_slots=4)
    light(lab, 1)
    lab.feed(e.AssignFailed("w", "j1", 1))
    assert lab.job(1).state is JobState.QUEUED
    assert lab.beat("w")[-1] == "assign w j1/2"
    lab.feed(e.DrainWorker("w"))
    assert light(lab, 2) == []


def test_a_lost_worker_gives_its_light_slots_back_to_nobody() -> None:
    lab = Lab()
    lab.hello("w", light_slots=4)
    light(lab, 1, 2)
    assert (lab.core.fleet.light_slots.count, lab.core.fleet.light_slots.running_ms) == (4, 2 * RUN_MS)
    lab.feed(e.WorkerUnreachable("w"))
    assert (lab.core.fleet.light_slots.count, lab.core.fleet.light_slots.running_ms) == (0, 0)
    lab.hello("v", light_slots=1)
    told = lab.wait(500)
    assert sorted(line.split()[2] for line in told if line.startswith("assign")) == ["j1/2", "j2/2"]


def test_a_light_assign_that_was_lost_on_the_way_is_given_again() -> None:
    lab = Lab()
    lab.hello("w", light_slots=2)
    light(lab, 1)
    lab.wait(6_001)
    lab.beat("w")
    assert "assign w j1/2" in lab.beat("w")


def test_adopted_light_jobs_take_light_slots() -> None:
    """After a restart the orchestrator knows of them by the worker's list alone."""
    lab = Lab()
    lab.hello("w", ("j1/1 light", "j2/1"), slots=2, light_slots=1)
    worker = lab.core.fleet.by_id["w"]
    assert {job_id: slot.light for job_id, slot in worker.jobs.items()} == {"j1": True, "j2": False}
    assert worker.free


def test_a_worker_that_says_hello_again_keeps_what_it_holds_where_it_is() -> None:
    lab = Lab()
    lab.hello("w", slots=1, light_slots=1)
    light(lab, 1)
    heavy(lab, 2)
    lab.hello("w", ("j1/1",), slots=1, light_slots=1)  # the other assign crossed it
    assert {job_id: slot.light for job_id, slot in lab.core.fleet.by_id["w"].jobs.items()} == {"j1": True, "j2": False}


# --- predictions of time ----------------------------------------------------------------------------------------------


def starts(lab: Lab, *, light: bool, priority: int = 4) -> dict[str, int]:
    """When each worker would begin such a job."""
    job = Job("new", "t", "new", b"f", Requirement("make", light=light), Cost("make", 4.0), priority, False)
    return {each.worker.worker_id: each.start_ms for each in forecasts(lab.core, job, lab.now_ms)}


def test_a_forecast_knows_which_slots_a_job_can_take() -> None:
    lab = Lab()
    lab.hello("w", slots=1, light_slots=2)
    heavy(lab, 1)
    assert starts(lab, light=True) == {"w": 0}
    assert starts(lab, light=False) == {"w": RUN_MS}
    lab.wait(400)
    light(lab, 2, 3)
    assert starts(lab, light=True) == {"w": 600}  # the slot is free before the light ones
    lab.wait(300)
    lab.result("w", "j1/1", running_ms=RUN_MS)
    assert starts(lab, light=False) == starts(lab, light=True) == {"w": 0}


def test_light_jobs_and_others_wait_behind_their_like_alone() -> None:
    lab = Lab()
    lab.hello("w", slots=1, light_slots=1)
    heavy(lab, 1, 2, 3)
    light(lab, 4, 5)
    assert starts(lab, light=False) == {"w": RUN_MS + 2 * RUN_MS}
    assert starts(lab, light=True) == {"w": RUN_MS + RUN_MS}


def test_without_light_slots_all_wait_behind_all() -> None:
    lab = Lab()
    lab.hello("w", slots=1)
    heavy(lab, 1, 2)
    light(lab, 3)
    assert starts(lab, light=False) == starts(lab, light=True) == {"w": RUN_MS + 2 * RUN_MS}


def accepted_start_ms(lab: Lab, number: int, **fields: Any) -> int:
    lab.accept(number, **fields)
    return next(command.start_ms for command in lab.commands if hasattr(command, "start_ms"))


def test_the_estimate_of_an_accepted_job_counts_its_own_slots() -> None:
    lab = Lab()
    lab.hello("w", slots=1, light_slots=4)
    heavy(lab, *range(1, 5))
    assert accepted_start_ms(lab, 10) == 3 * RUN_MS + RUN_MS // 2
    for number in range(20, 24):
        light(lab, number)
    assert accepted_start_ms(lab, 11, light=True) == 4 * RUN_MS // 2 // 4


# --- what is light ----------------------------------------------------------------------------------------------------


def test_predictions_are_light_and_pictures_are_not() -> None:
    data = {"model_id": "loc:1"}
    assert requirement_of("inference.predict", data, None, None) == Requirement(
        "inference.predict", "loc:1", light=True
    )
    assert not requirement_of("inference.text2img", data, None, None).light
    assert not requirement_of("no.such", data, None, None).light


def test_what_a_prediction_costs_is_learned_by_model_and_number() -> None:
    one, other = (cost_of("inference.predict", {"model_id": name}) for name in ("a", "b"))
    assert one.key != other.key
    assert one.units == 1.0
    assert cost_of("predict.batch", {"model_id": "a", "requests": [{}, {}, {}]}).units == 3.0
    assert cost_of("predict.batch", {"model_id": "a", "items": {"attachment": 0}}).units == 1.0
