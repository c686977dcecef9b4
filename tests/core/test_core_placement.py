"""Which job goes where: order, capability, affinity, measured cost, exclusive jobs."""

from typing import Any

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.estimates import KEYS_MAX, Averages, Estimates
from orchestrator.core.fleet import SIGHTINGS_MAX
from orchestrator.core.model import Cost, Job, Requirement
from orchestrator.core.queue import SWEEP_MIN, Queue
from orchestrator.core.states import JobState
from tests.core.kit import Lab, restored


def assigned(lab: Lab) -> list[str]:
    return [f"{command.peer} {command.job.job_id}" for command in lab.commands if isinstance(command, c.Assign)]


def run_all(lab: Lab, worker: str = "w") -> list[str]:
    """Let one worker run everything that waits; the jobs in the order they were given to it."""
    order = [line.split()[1] for line in assigned(lab)]
    while lab.core.fleet.by_id[worker].jobs:
        job_id = next(iter(lab.core.fleet.by_id[worker].jobs))
        lab.result(worker, f"{job_id}/{lab.core.jobs[job_id].attempt}")
        order += [line.split()[1] for line in assigned(lab)]
    return order


def order_of(lab: Lab, **hello: Any) -> str:
    lab.hello("w", **hello)
    return " ".join(run_all(lab))


# --- the queue's order ----------------------------------------------------------------------------------------------


def test_first_in_first_out() -> None:
    lab = Lab()
    for number in (3, 1, 2):
        lab.submit(number)
    assert order_of(lab) == "j3 j1 j2"


def test_priority_goes_first_also_between_lines() -> None:
    lab = Lab()
    for number, (priority, model_id) in enumerate([(0, "a"), (4, "a"), (9, "b"), (4, "b"), (9, "a")], start=1):
        lab.submit(number, priority=priority, model_id=model_id)
    assert order_of(lab) == "j3 j5 j2 j4 j1"


def test_a_job_without_a_model_has_nothing_to_load() -> None:
    lab = Lab()
    lab.submit(1, model_id="a")
    lab.submit(2)
    assert order_of(lab) == "j2 j1"


def test_a_head_rises_one_level_in_thirty_seconds() -> None:
    lab = Lab()
    lab.submit(1, priority=3)
    lab.wait(29_999)
    lab.submit(2, priority=4)
    lab.wait(1)
    lab.submit(3, priority=4)
    lab.wait(30_000)  # job 1 is two levels up, the others one
    lab.submit(4, priority=5)
    assert order_of(lab) == "j1 j2 j3 j4"
    lab = Lab()
    lab.submit(1, priority=3)
    lab.wait(29_999)
    lab.submit(2, priority=4)
    assert order_of(lab) == "j2 j1"


def test_even_the_least_urgent_job_is_served_under_a_flood() -> None:
    lab = Lab()
    lab.hello("w")
    lab.submit(2, priority=9)
    lab.submit(1, priority=0, tenant="slow")
    started_ms, number = lab.now_ms, 2
    while lab.job(1).state is JobState.QUEUED:
        number += 1
        lab.submit(number, priority=9)
        lab.wait(1_000)
        held = next(iter(lab.core.fleet.by_id["w"].jobs))
        lab.result("w", f"{held}/1")
    assert 9 * 30_000 <= lab.now_ms - started_ms <= 9 * 30_000 + 5_000


def test_tenants_take_turns_within_a_line() -> None:
    lab = Lab()
    for number in range(1, 6):
        lab.submit(number, tenant="big")
    lab.submit(6, tenant="small")
    lab.submit(7, tenant="tiny")
    assert order_of(lab) == "j1 j6 j7 j2 j3 j4 j5"


def test_tenants_take_turns_between_lines() -> None:
    lab = Lab()
    for number in range(1, 7):
        lab.submit(number, tenant="big", model_id="ab"[number % 2])
    lab.submit(7, tenant="small", model_id="c")
    lab.submit(8, tenant="small", model_id="c")
    order = order_of(lab)
    assert order.index("j7") < order.index("j3")
    assert order.index("j8") < order.index("j5")


def test_a_job_that_came_back_goes_before_its_tenants_others() -> None:
    lab = Lab()
    lab.hello("v")
    for number in (1, 2, 3):
        lab.submit(number)
    lab.feed(e.WorkerGoodbye("v"))
    assert order_of(lab) == "j1 j2 j3"


def test_removed_jobs_leave_no_trace_in_the_queue() -> None:
    lab = Lab(queue_jobs_max=10**6)
    for number in range(1, 4 * SWEEP_MIN):
        lab.core.handle(lab.now_ms, _submit(number))
    for number in range(2, 4 * SWEEP_MIN - 1):
        lab.core.handle(lab.now_ms, e.CancelJob(f"j{number}", "c", "x"))
    line = lab.core.queue.line(Requirement("make"))
    assert line is not None
    entries = sum(len(jobs) for ring in line.rings.values() for jobs in ring.tenants.values())
    assert (line.size, lab.core.queue.size) == (2, 2)
    assert entries < 2 * SWEEP_MIN
    assert order_of(lab) == f"j1 j{4 * SWEEP_MIN - 1}"


def _submit(number: int) -> e.Submit:
    need, cost = Requirement("make"), Cost("make", 1.0)
    return e.Submit(Job(f"j{number}", "t", f"r{number}", b"f", need, cost, 4, False, payload="p"), f"c{number}")


def test_a_tenant_whose_jobs_are_gone_leaves_the_ring() -> None:
    queue = Queue(30_000)
    jobs = [restored(number, JobState.QUEUED, tenant=tenant) for number, tenant in ((1, "a"), (2, "b"))]
    for job in jobs:
        queue.push(job, 0)
    queue.remove(jobs[0])
    queue.remove(jobs[0])
    line = queue.line(Requirement("make"))
    assert line is not None
    assert queue.best([line], frozenset(), 0) is jobs[1]
    assert queue.tenant_size("a") == 0
    assert queue.tenant_size("b") == 1
    assert queue.best([], frozenset(), 0) is None


def test_an_empty_priority_is_dropped_from_its_line() -> None:
    lab = Lab()
    for number, priority in enumerate((9, 0, 0), start=1):
        lab.submit(number, priority=priority)
    assert order_of(lab) == "j1 j2 j3"


# --- capability, pins, affinity, cost ---------------------------------------------------------------------------------


def test_only_capable_workers_get_a_job() -> None:
    lab = Lab()
    lab.hello("paint", actions=frozenset(("paint",)))
    lab.hello("other", models=frozenset(("other",)))
    lab.hello("cuda1", device_id="cuda:1")
    lab.hello("right", models=frozenset(("shapes",)))
    assert lab.submit(1, model_id="shapes", device_pin="cuda:0") == ["assign right j1/1"]


def test_a_pinned_job_waits_for_its_worker() -> None:
    lab = Lab()
    lab.hello("v")
    lab.hello("w")
    lab.submit(1, worker_pin="w")
    assert assigned(lab) == ["w j1"]
    lab.submit(2, worker_pin="w")
    assert assigned(lab) == []
    lab.result("w", "j1/1")
    assert assigned(lab) == ["w j2"]
    lab.feed(e.WorkerGoodbye("w"))
    assert lab.job(2).state is JobState.QUEUED
    lab.submit(3)
    assert assigned(lab) == ["v j3"]


def test_a_loaded_model_beats_one_to_load() -> None:
    lab = Lab()
    lab.hello("cold", memory_free=99)
    lab.hello("warm", resident=frozenset(("shapes", "x")))
    assert lab.submit(1, model_id="shapes") == ["assign warm j1/1"]
    assert lab.submit(2, model_id="shapes") == ["assign cold j2/1"]


def test_a_worker_takes_a_job_of_its_loaded_model_first() -> None:
    lab = Lab()
    lab.submit(1, model_id="letters")
    lab.submit(2, model_id="shapes")
    lab.submit(3, model_id="letters")
    lab.submit(4, model_id="letters", priority=5)
    assert order_of(lab, resident=frozenset(("shapes",))) == "j4 j2 j1 j3"


def test_a_model_to_load_goes_where_there_is_most_free_memory() -> None:
    lab = Lab()
    for name, free in (("a", 10), ("b", 30), ("c", 20)):
        lab.hello(name, memory_free=free)
    assert [lab.submit(number, model_id="m") for number in (1, 2, 3)] == [
        ["assign b j1/1"],
        ["assign c j2/1"],
        ["assign a j3/1"],
    ]
    lab = Lab()
    lab.hello("a", memory_free=10, device_id="cuda:0")
    lab.hello("b", memory_free=30, device_id="cuda:1")
    assert lab.submit(1, model_id="m") == ["assign b j1/1"]


def test_what_is_loaded_now_comes_from_the_heartbeats() -> None:
    lab = Lab()
    lab.hello("a", memory_free=99)
    lab.hello("b")
    lab.beat("b", resident=frozenset(("m",)))
    assert lab.submit(1, model_id="m") == ["assign b j1/1"]
    lab.result("b", "j1/1")
    lab.beat("b", resident=frozenset())
    assert lab.submit(2, model_id="m") == ["assign a j2/1"]


def test_equal_workers_take_turns() -> None:
    lab = Lab()
    lab.hello("a", slots=2)
    lab.hello("b", slots=2)
    lab.hello("d", slots=2, device_id="cuda:1")
    told = [lab.submit(number)[0].split()[1] for number in range(1, 7)]
    assert sorted(told[:3]) == sorted(told[3:]) == ["a", "b", "d"]


def test_measured_times_decide_between_kinds_of_device() -> None:
    lab = Lab()
    lab.hello("slow", device_kind="cpu")
    lab.submit(1)
    lab.result("slow", "j1/1", running_ms=9_000)
    lab.hello("fast", device_kind="gpu")
    lab.feed(e.DrainWorker("slow"))
    lab.submit(2)
    lab.result("fast", "j2/1", running_ms=100)
    lab.feed(e.WorkerGoodbye("slow"))
    lab.hello("slow", device_kind="cpu", peer="s2")
    assert lab.submit(3) == ["assign fast j3/1"]
    assert lab.submit(4) == ["assign s2 j4/1"]


def test_a_measured_load_time_can_outweigh_a_slow_device() -> None:
    lab = Lab()
    lab.hello("gpu", device_kind="gpu", resident=frozenset())
    lab.submit(1, model_id="m")
    lab.result("gpu", "j1/1", load_ms=60_000, running_ms=100)
    lab.hello("cpu", device_kind="cpu", resident=frozenset(("m",)))
    assert lab.submit(2, model_id="m") == ["assign cpu j2/1"]


def test_averages_move_and_are_bounded() -> None:
    averages = Averages()
    averages.learn("gpu", "a", 100.0)
    averages.learn("gpu", "a", 200.0)
    assert averages.get("gpu", "a") == 130.0
    for number in range(KEYS_MAX):
        averages.learn("gpu", f"k{number}", 1.0)
    assert averages.get("gpu", "a") is None
    assert averages.get("gpu", f"k{KEYS_MAX - 1}") == 1.0


def test_an_unmeasured_kind_of_device_is_guessed_from_the_others() -> None:
    estimates = Estimates()
    cost = Cost("make", 10.0)
    assert (estimates.run_ms(cost, "gpu"), estimates.measured(cost)) == (2_500, False)
    estimates.learn("gpu", cost, None, 0, 1_000)
    assert estimates.run_ms(cost, "gpu") == estimates.run_ms(cost, "cpu") == 1_000
    assert estimates.measured(cost)
    assert estimates.load_ms("gpu", "m") == 5_000


def test_several_jobs_that_come_back_at_once_find_several_workers() -> None:
    lab = Lab()
    lab.hello("w", slots=4)
    for number in range(1, 5):
        lab.submit(number, model_id="ab"[number % 2], priority=number)
    lab.feed(e.WorkerUnreachable("w"))
    for name in ("a", "b", "d"):
        lab.hello(name)
    told = lab.wait(500)
    assert [line.split()[2] for line in told] == ["j4/2", "j3/2", "j2/2"]
    assert {line.split()[1] for line in told} == {"a", "b", "d"}


def test_the_most_urgent_need_no_free_slot() -> None:
    lab = Lab()
    lab.hello("w", slots=2)
    lab.submit(1)
    lab.submit(2)
    assert lab.submit(3, priority=8) == []  # waits
    assert lab.submit(4, priority=9) == ["assign w j4/1"]
    assert lab.submit(5, priority=9, durable=True) == ["save j5"]
    assert "assign w j5/1" in lab.feed(e.Saved("j5"))
    assert lab.submit(6, priority=9) == []  # two are beyond the slots
    assert lab.submit(7, priority=9, worker_pin="w") == []
    told = lab.result("w", "j4/1")
    assert [line for line in told if line.startswith("assign")] == ["assign w j6/1"]  # the place stays theirs
    for done in ("j5/1", "j6/1", "j7/1", "j1/1"):
        told = lab.result("w", done)
    assert [line for line in told if line.startswith("assign")] == ["assign w j3/1"]


def test_the_room_of_the_most_urgent_waits_for_none_that_has_only_risen() -> None:
    lab = Lab(aging_ms=1_000)
    lab.hello("w", slots=2)
    for number, priority in ((1, 4), (2, 4), (3, 8), (4, 9), (5, 9)):
        lab.submit(number, priority=priority)
    lab.wait(1_000)  # job 3 has risen, and was first
    lab.submit(6, priority=9, tenant="other")
    told = lab.result("w", "j4/1")
    assert [line for line in told if line.startswith("assign")] == ["assign w j6/1"]


def test_a_worker_of_one_slot_runs_one_job_at_a_time() -> None:
    lab = Lab()
    lab.hello("w")
    lab.submit(1)
    assert lab.submit(2, priority=9) == []


def test_sightings_are_bounded() -> None:
    lab = Lab()
    for number in range(SIGHTINGS_MAX + 5):
        hello = e.WorkerHello(
            "p", f"w{number}", "i", "cuda:0", "gpu", 1, 1, frozenset((f"a{number}",)), None, 1, frozenset()
        )
        lab.core.handle(lab.now_ms, hello)
        lab.core.handle(lab.now_ms, e.WorkerGoodbye("p"))
    assert len(lab.core.fleet._seen) == SIGHTINGS_MAX
    assert len(lab.core.fleet._sites) == SIGHTINGS_MAX
    assert lab.submit(1, action="a0") == ["reject c r1 no_capable_worker"]
    assert lab.submit(1, action="a9") == []


# --- exclusive jobs ---------------------------------------------------------------------------------------------------


def with_exclusive(workers: int = 1, priority: int = 9) -> Lab:
    """Job 1 is exclusive and waits; each worker has two slots, one of them busy for long."""
    lab = Lab()
    lab.submit(1, priority=priority)
    for loss in (1, 2):
        lab.hello("x", peer=f"x{loss}")
        lab.feed(e.WorkerUnreachable(f"x{loss}"))
        if loss == 1:
            lab.wait(500)
    for number in range(workers):
        lab.hello(f"w{number}", slots=2)
        lab.submit(10 + number, worker_pin=f"w{number}")
    lab.wait(1_000)
    assert lab.job(1).requirement.exclusive
    return lab


def test_one_worker_is_emptied_for_an_exclusive_job() -> None:
    lab = with_exclusive(workers=2)
    reserved = [worker.worker_id for worker in lab.core.fleet.by_id.values() if worker.reserved]
    assert len(reserved) == 1
    other = "w1" if reserved == ["w0"] else "w0"
    assert lab.submit(20) == [f"assign {other} j20/1"]
    assert lab.submit(21) == []
    held = next(iter(lab.core.fleet.by_id[reserved[0]].jobs))
    assert lab.result(reserved[0], f"{held}/1")[-1] == f"assign {reserved[0]} j1/3"
    assert lab.submit(22) == []
    assert lab.result(reserved[0], "j1/3")[-2:] == [f"assign {reserved[0]} j21/1", f"assign {reserved[0]} j22/1"]


def test_a_worker_that_empties_otherwise_takes_it_and_the_reserved_one_goes_on() -> None:
    lab = with_exclusive(workers=2)
    lab.submit(20)
    lab.submit(21)
    reserved = next(worker.worker_id for worker in lab.core.fleet.by_id.values() if worker.reserved)
    assert lab.hello("idle") == ["welcome idle", "assign idle j1/3", f"assign {reserved} j21/1"]


def test_a_reserved_worker_is_free_again_when_the_job_is_cancelled() -> None:
    lab = with_exclusive()
    lab.submit(20)
    assert lab.job(20).state is JobState.QUEUED
    assert lab.cancel(1)[-1] == "assign w0 j20/1"


def test_a_reservation_moves_when_its_worker_leaves_or_drains() -> None:
    lab = with_exclusive(workers=2)
    first = next(worker for worker in lab.core.fleet.by_id.values() if worker.reserved)
    lab.feed(e.DrainWorker(first.worker_id))
    second = next(worker for worker in lab.core.fleet.by_id.values() if worker.reserved)
    assert second is not first
    lab.feed(e.WorkerUnreachable(second.peer))
    assert not any(worker.reserved for worker in lab.core.fleet.by_id.values())
    assert lab.hello("idle") == ["welcome idle", "assign idle j1/3"]


def test_a_reserved_worker_on_a_new_connection_takes_what_waits() -> None:
    lab = with_exclusive(priority=0)
    lab.submit(20, worker_pin="w0")
    assert lab.job(20).state is JobState.QUEUED
    assert lab.hello("w0", ("j10/1",), peer="w0b", slots=3) == ["welcome w0b", "assign w0b j20/1"]
    assert lab.core.fleet.by_id["w0"].reserved


def test_a_full_fleet_is_not_reserved_before_the_job_is_next() -> None:
    lab = Lab()
    lab.submit(1, priority=0)
    for loss in (1, 2):
        lab.hello("x", peer=f"x{loss}")
        lab.feed(e.WorkerUnreachable(f"x{loss}"))
        lab.wait(500 if loss == 1 else 0)
    lab.hello("w", slots=2)
    for number in (2, 3, 4):
        lab.submit(number)
    lab.wait(1_000)
    assert not lab.core.fleet.by_id["w"].reserved
    assert lab.result("w", "j2/1")[-1] == "assign w j4/1"
    lab.result("w", "j3/1")
    assert lab.core.fleet.by_id["w"].reserved
    assert lab.result("w", "j4/1")[-1] == "assign w j1/3"


def test_an_exclusive_job_prefers_an_idle_worker_with_its_model() -> None:
    lab = Lab()
    lab.submit(1, model_id="m")
    for loss in (1, 2):
        lab.hello("x", peer=f"x{loss}")
        lab.feed(e.WorkerUnreachable(f"x{loss}"))
        lab.wait(500 if loss == 1 else 0)
    lab.hello("busy", slots=2, resident=frozenset(("m",)))
    lab.submit(2, worker_pin="busy")
    lab.hello("cold", slots=2)
    lab.hello("warm", slots=2, resident=frozenset(("m",)))
    assert "assign warm j1/3" in lab.wait(1_000)
