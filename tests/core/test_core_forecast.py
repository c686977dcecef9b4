"""How a job would fare on each worker, and that asking changes nothing."""

from typing import Any

import pytest

from orchestrator.core import events as e
from orchestrator.core.estimates import GUESS_LOAD_MS
from orchestrator.core.forecast import forecasts
from orchestrator.core.model import Cost, Job, Requirement
from orchestrator.core.states import JobState
from tests.core.kit import Lab

RUN_MS = 1000  # of the lab's jobs: 4 units of 250 ms


def a_job(priority: int = 4, **need: Any) -> Job:
    return Job("new", "t", "new", b"f", Requirement(**{"action": "make", **need}), Cost("make", 4.0), priority, False)


def fares(lab: Lab, priority: int = 4, **need: Any) -> list[tuple[str, int, int, int]]:
    """(worker, start, load, run) of each worker."""
    found = forecasts(lab.core, a_job(priority, **need), lab.now_ms)
    return [(each.worker.worker_id, each.start_ms, each.load_ms, each.run_ms) for each in found]


def test_a_free_worker_begins_at_once_whatever_waits_for_others() -> None:
    lab = Lab()
    lab.hello("a")
    lab.hello("b")
    for number in range(1, 4):
        lab.submit(number, worker_pin="a")
    assert fares(lab) == [("b", 0, 0, RUN_MS), ("a", RUN_MS + 2 * RUN_MS // 2, 0, RUN_MS)]


def test_a_busy_worker_begins_when_its_first_slot_is_free() -> None:
    lab = Lab()
    lab.hello("a", slots=2)
    lab.submit(1)
    lab.wait(300)
    assert fares(lab) == [("a", 0, 0, RUN_MS)]
    lab.submit(2)
    lab.wait(100)
    assert fares(lab) == [("a", 600, 0, RUN_MS)]
    lab.wait(5000)
    assert fares(lab) == [("a", 0, 0, RUN_MS)]  # both are late: any moment now


def test_only_what_is_as_urgent_waits_ahead() -> None:
    lab = Lab()
    lab.hello("a")
    for number in range(1, 4):
        lab.submit(number)
    assert fares(lab) == [("a", 3 * RUN_MS, 0, RUN_MS)]
    assert fares(lab, priority=5) == [("a", RUN_MS, 0, RUN_MS)]


def test_the_most_urgent_have_room_beyond_the_slots() -> None:
    lab = Lab()
    lab.hello("a", slots=2)
    lab.submit(1)
    lab.submit(2)
    assert fares(lab, priority=8) == [("a", RUN_MS, 0, RUN_MS)]
    assert fares(lab, priority=9) == [("a", 0, 0, RUN_MS)]


def test_models_are_loaded_where_they_are_not() -> None:
    lab = Lab()
    lab.hello("cold", device_kind="gpu")
    lab.hello("warm", device_kind="slow", resident=frozenset(("m",)))
    assert fares(lab, model_id="m") == [("warm", 0, 0, RUN_MS), ("cold", 0, GUESS_LOAD_MS, RUN_MS)]
    assert [each.warm for each in forecasts(lab.core, a_job(model_id="m"), lab.now_ms)] == [True, False]
    assert [each.warm for each in forecasts(lab.core, a_job(), lab.now_ms)] == [True, True]  # nothing to load
    lab.submit(1, model_id="m", worker_pin="cold")
    lab.result("cold", "j1/1", load_ms=70, running_ms=200)
    assert fares(lab, model_id="m")[0] == ("warm", 0, 0, 200)  # never measured there: as on any other device
    assert fares(lab, model_id="m")[1] == ("cold", 0, 70, 200)  # measured, the running without the loading


def test_only_workers_that_could_run_it_are_told() -> None:
    lab = Lab()
    lab.hello("a", device_id="cuda:0", models=frozenset(("m",)))
    lab.hello("b", device_id="cuda:1", models=frozenset(("n",)))
    lab.hello("c", device_id="cuda:1", actions=frozenset(("other",)))
    assert [fare[0] for fare in fares(lab, model_id="n")] == ["b"]
    assert [fare[0] for fare in fares(lab, device_pin="cuda:0")] == ["a"]
    assert [fare[0] for fare in fares(lab, worker_pin="b")] == ["b"]
    assert fares(lab, worker_pin="b", model_id="m") == []
    lab.feed(e.DrainWorker("b"))
    assert fares(lab, model_id="n") == []


def test_a_worker_that_is_emptied_for_a_job_alone_is_free_after_it() -> None:
    lab = Lab()
    lab.hello("a", slots=2)
    for number in (1, 2):
        lab.submit(number, cost=Cost("make", 4.0 * number))
    lab.core.fleet.by_id["a"].reserved = True
    assert fares(lab) == [("a", 2 * RUN_MS, 0, RUN_MS)]


@pytest.mark.parametrize("draining", [False, True])
def test_asking_changes_nothing(draining: bool) -> None:
    lab = Lab()
    lab.hello("a")
    lab.submit(1)
    lab.submit(2)
    if draining:
        lab.feed(e.Drain())
    job = a_job()
    worker, queue = lab.core.fleet.by_id["a"], lab.core.queue
    before = set(lab.core.jobs), dict(worker.jobs), queue.size, queue.backlog_ms(0, light=False)
    fault = lab.core.lifecycle.refusal(job, "c")
    forecasts(lab.core, job, lab.now_ms)
    assert (fault is not None and fault.code == "draining") == draining
    assert lab.core.commands == []
    assert (job.state, job.ticket) == (JobState.QUEUED, 0)
    assert (set(lab.core.jobs), worker.jobs, queue.size, queue.backlog_ms(0, light=False)) == before
