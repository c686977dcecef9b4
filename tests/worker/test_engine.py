"""The worker's own state machine: mailbox, begun jobs, held results. Real but for the work and the wire (fakes.py)."""

from typing import Any

import pytest

from instructors.task import Context, Result
from protocol.enums import HeldState
from protocol.errors import InvalidRequest
from protocol.limits import PRIORITY_MAX
from protocol.messages import Cancel, Drain
from tests.worker.fakes import FakeClock, FakeLane, FakeModel, FakePlain, Fakes, FakeShared, Work
from worker import jobs


@pytest.fixture
def fakes(clock: FakeClock) -> Fakes:
    return Fakes(clock)


def pictures(*paths: list[FakeLane | None], rows: int = 1, **more: object) -> Work:
    return Work([(rows, path) for path in paths], **more)  # type: ignore[arg-type]


def plain(quanta: int = 1, **more: object) -> Work:
    return Work([(1, [None] * quanta)], shared=False, **more)  # type: ignore[arg-type]


def cancel(fakes: Fakes, job_id: str) -> None:
    fakes.hear(Cancel(job_id=job_id, attempt=1))


# Sharing


def test_requests_share_their_quanta_and_each_ends_for_itself(fakes: Fakes, clock: FakeClock) -> None:
    steps, decode = FakeLane(clock), FakeLane(clock)
    for number, length in enumerate((5, 2, 9)):
        fakes.assign(f"j{number}", pictures([steps] * length + [decode]))
    fakes.run()
    assert [result["job_id"] for result in fakes.results] == ["j1", "j0", "j2"]
    assert max(len(quantum) for quantum in steps.quanta) == 3
    assert len(steps.quanta) <= 9 + 2  # and not 5 + 2 + 9: only the first of a new lane is alone


def test_a_request_joins_at_the_next_quantum(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("first", pictures([lane] * 50))
    for _ in range(10):
        fakes.turn()
    fakes.assign("second", pictures([lane] * 3))
    fakes.turn()
    assert [unit.quanta for unit in lane.quanta[-1]] == [11, 1]


def test_a_job_of_several_pictures_answers_when_the_last_is_done(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("j", pictures([lane], [lane] * 3, [lane] * 2))
    fakes.assign("other", pictures([lane] * 9))
    while not fakes.results:
        fakes.turn()
    assert fakes.results[0]["data"] == {"units": 3}
    assert [unit.quanta for unit in fakes.tasks[0].units] == [1, 3, 2]
    fakes.run()
    assert fakes.outcome("other") == "done"


def test_pictures_wait_neither_behind_a_long_task_nor_does_that_behind_them(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("long", plain(100))
    fakes.turn()
    fakes.assign("picture", pictures([lane] * 20))
    for _ in range(44):
        fakes.turn()
    assert fakes.outcome("picture") == "done"
    assert fakes.tasks[0].quanta >= 20


# One at a time


def test_tasks_that_share_nothing_run_one_after_another(fakes: Fakes) -> None:
    for number in range(4):
        fakes.assign(f"j{number}", plain(3))
    fakes.run()
    assert [result["job_id"] for result in fakes.results] == ["j0", "j1", "j2", "j3"]
    assert [fakes.tasks.index(task) for task in fakes.log] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len(fakes.tasks) == 4


def test_a_more_urgent_task_comes_between(fakes: Fakes) -> None:
    fakes.assign("slow", plain(10))
    fakes.assign("next", plain(1))
    fakes.turn()
    fakes.assign("urgent", plain(3), priority=5)
    fakes.run()
    assert [result["job_id"] for result in fakes.results] == ["urgent", "slow", "next"]
    assert [fakes.tasks.index(task) for task in fakes.log][:5] == [0, 1, 1, 1, 0]


# The highest priority


@pytest.mark.parametrize("shared", [True, False])
def test_the_highest_priority_waits_one_quantum_and_has_no_company(
    fakes: Fakes, clock: FakeClock, shared: bool
) -> None:
    lane = FakeLane(clock)
    for number in range(4):
        fakes.assign(f"j{number}", pictures([lane] * 30))
    fakes.assign("plain", plain(30))
    for _ in range(10):
        fakes.turn()
    fakes.assign("urgent", pictures([lane] * 5) if shared else plain(5), priority=PRIORITY_MAX)
    fakes.assign("late", pictures([lane], models=("slow to load",)))
    mine = len(fakes.log)
    for turn in range(5):
        fakes.turn()
        assert len(fakes.log) == mine + turn + 1  # nothing but its own rows
    assert fakes.outcome("urgent") == "done"
    assert "slow to load" not in fakes.residency.names
    fakes.run()
    assert fakes.outcome("late") == "done"


# Leaving


def test_a_cancelled_request_leaves_before_the_next_quantum_and_its_neighbours_finish(
    fakes: Fakes, clock: FakeClock
) -> None:
    lane = FakeLane(clock)
    for number in range(3):
        fakes.assign(f"j{number}", pictures([lane] * 20, [lane] * 20))
    for _ in range(8):
        fakes.turn()
    cancel(fakes, "j1")
    gone = fakes.tasks[1].units
    before = [unit.quanta for unit in gone]
    fakes.turn()
    assert fakes.outcome("j1") == "cancelled"
    assert all(unit.closed for unit in gone)
    fakes.run()
    assert [unit.quanta for unit in gone] == before
    assert [fakes.outcome(job) for job in ("j0", "j2")] == ["done", "done"]


def test_cancelled_in_the_mailbox_it_never_begins(fakes: Fakes) -> None:
    fakes.assign("long", plain(5))
    fakes.assign("j", plain())
    fakes.turn()
    cancel(fakes, "j")
    assert fakes.outcome("j") == "cancelled"  # at once
    fakes.run()
    assert len(fakes.tasks) == 1


def test_what_one_picture_does_wrong_ends_its_job_alone(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("bad", pictures([lane] * 9, [lane] * 9, fails={(1, 3): InvalidRequest("No.")}))
    fakes.assign("worse", pictures([lane] * 9, fails={(0, 5): RuntimeError("a fault")}))
    fakes.assign("good", pictures([lane] * 9))
    fakes.run()
    assert [fakes.outcome(job) for job in ("bad", "worse", "good")] == ["invalid_request", "internal", "done"]
    assert [unit.closed for unit in fakes.tasks[0].units] == [True, True]
    assert fakes.tasks[0].units[0].quanta < 9


def test_an_answer_that_cannot_be_sent_ends_its_job_alone(
    fakes: Fakes, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a character, as JSON may hold and a model's files with it."""
    lane = FakeLane(clock)
    monkeypatch.setattr(FakeShared, "result", lambda task: Result({"text": "\ud800" * (len(task.units) == 2)}))
    fakes.assign("bad", pictures([lane], [lane]))
    fakes.assign("good", pictures([lane]))
    fakes.run()
    assert [fakes.outcome(job) for job in ("bad", "good")] == ["internal", "done"]


# Memory


def test_out_of_memory_evicts_what_nobody_uses_and_tries_once_more(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    for model in ("idle", "busy"):
        fakes.assign(model, pictures([lane] * (1 if model == "idle" else 50), models=(model,)))
    fakes.turn()
    while not fakes.results:
        fakes.turn()
    fakes.assign("j", pictures([lane] * 5, [lane] * 5, models=("own",), fails={(0, 3): MemoryError(), (1, 2): None}))
    while len(fakes.results) < 2:
        fakes.turn()
    assert fakes.outcome("j") == "done"
    assert len([task for task in fakes.tasks if task.work is fakes.work[2]]) == 2  # made once more, from the start
    assert fakes.residency.names == ["busy", "own"]  # its own stayed


def test_the_second_try_goes_on_with_what_the_first_had_finished(fakes: Fakes, clock: FakeClock) -> None:
    """Its pictures were told already, and a random seed would make others."""
    restored: list[tuple[FakeShared, bytes]] = []

    class Keeper(FakeShared):
        def save(self) -> bytes:
            return b"%d units" % sum(unit.done and unit.error is None for unit in self.units)

        def restore(self, state: bytes) -> None:
            restored.append((self, state))

    registry = fakes.place.registry
    action, _ = registry._actions["test.shared"]
    registry._actions["test.shared"] = (action, lambda data, context: Keeper(fakes.work[data.work], fakes, context))
    lane = FakeLane(clock)
    fakes.assign("idle", pictures([lane], models=("idle",)))
    fakes.run()
    fakes.assign("j", pictures([lane] * 2, [lane] * 5, fails={(1, 3): MemoryError()}))
    fakes.run()
    assert fakes.outcome("j") == "done"
    assert restored == [(fakes.tasks[-1], b"1 units")]


def test_out_of_memory_twice_is_the_answer(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("idle", pictures([lane], models=("idle",)))
    fakes.run()
    fails = {(0, 3): MemoryError(), (0, 1): MemoryError()}
    fakes.assign("j", pictures([lane] * 5, fails=fails))
    fakes.assign("neighbour", pictures([lane] * 9))
    fakes.run()
    assert (fakes.outcome("j"), fakes.outcome("neighbour")) == ("out_of_memory", "done")
    fakes.assign("again", pictures([lane] * 5, fails={(0, 0): MemoryError()}))
    fakes.run()
    assert fakes.outcome("again") == "out_of_memory"
    assert len([task for task in fakes.tasks if task.work is fakes.work[3]]) == 1  # nothing was left to evict


def test_nothing_holds_the_failed_try_when_the_next_begins(fakes: Fakes, clock: FakeClock) -> None:
    """On a device that is full, what an error's traceback holds decides whether the second try succeeds."""

    class Tensor:
        alive = 0

        def __init__(self) -> None:
            Tensor.alive += 1

        def __del__(self) -> None:
            Tensor.alive -= 1

    def compute(tensor: Tensor) -> None:
        raise MemoryError

    alive: list[int] = []

    class Greedy(FakePlain):
        def __init__(self, work: Work, fakes: Fakes) -> None:
            super().__init__(work, fakes)
            alive.append(Tensor.alive)

        def step(self) -> None:
            compute(Tensor())

    fakes.assign("idle", pictures([FakeLane(clock)], models=("idle",)))
    fakes.run()
    registry = fakes.place.registry
    action, _ = registry._actions["test.plain"]
    registry._actions["test.plain"] = (action, lambda data, _: Greedy(fakes.work[data.work], fakes))
    fakes.assign("j", plain())
    fakes.run()
    assert fakes.outcome("j") == "out_of_memory"
    assert alive == [0, 0]


def test_a_job_waits_for_memory_that_the_running_ones_hold(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.residency._budget = 15  # one model
    fakes.assign("first", pictures([lane] * 9, models=("a",)))
    fakes.turn()
    fakes.assign("second", pictures([lane] * 2, models=("b",)))
    fakes.assign("third", pictures([lane] * 2, models=("a",)))
    fakes.turn()
    assert [job.state for job in fakes.session._held] == [HeldState.RUNNING, HeldState.ASSIGNED, HeldState.ASSIGNED]
    fakes.assign("urgent", pictures([lane] * 2, models=("a",)), priority=PRIORITY_MAX)
    fakes.turn()
    fakes.turn()
    assert fakes.outcome("urgent") == "done"  # its model is there
    fakes.run()
    assert [result["job_id"] for result in fakes.results] == ["urgent", "first", "second", "third"]
    assert all(result["success"] for result in fakes.results)


def test_nobody_waits_behind_a_cancelled_job_that_waited_for_memory(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.residency._budget = 15  # one model
    fakes.assign("first", pictures([lane] * 50, models=("a",)))
    fakes.turn()
    fakes.assign("second", pictures([lane] * 2, models=("b",)))
    fakes.assign("third", pictures([lane] * 2, models=("a",)))
    fakes.turn()
    cancel(fakes, "second")
    for _ in range(5):
        fakes.turn()
    assert (fakes.outcome("second"), fakes.outcome("third")) == ("cancelled", "done")


def test_a_plain_task_waits_for_memory_as_well(fakes: Fakes, clock: FakeClock) -> None:
    """It loads within its first step."""

    class Loader(FakePlain):
        context: Context

        def step(self) -> Result | None:
            self.context.resident("b", 10, lambda: FakeModel("b"))
            return super().step()

    fakes.residency._budget = 15
    registry = fakes.place.registry
    action, _ = registry._actions["test.plain"]

    def make(data: Any, context: Context) -> Loader:
        task = Loader(fakes.work[data.work], fakes)
        task.context = context
        return task

    registry._actions["test.plain"] = (action, make)
    fakes.assign("first", pictures([FakeLane(clock)] * 9, models=("a",)))
    fakes.turn()
    fakes.assign("second", plain())
    fakes.run()
    assert [fakes.outcome(job_id) for job_id in ("first", "second")] == ["done", "done"]
    assert fakes.residency.names == ["b"]


def test_cancelled_while_its_model_does_not_fit_it_is_answered(
    fakes: Fakes, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = FakeLane(clock)
    fakes.residency._budget = 15
    fakes.assign("first", pictures([lane] * 9, models=("a",)))
    fakes.turn()
    make_room = fakes.residency._make_room

    def slowly(nbytes: int) -> None:
        cancel(fakes, "second")  # the socket thread does, meanwhile
        make_room(nbytes)

    monkeypatch.setattr(fakes.residency, "_make_room", slowly)
    fakes.assign("second", pictures([lane], models=("b",)))
    fakes.run()
    assert (fakes.outcome("first"), fakes.outcome("second")) == ("done", "cancelled")


# Room, and the ways to end


def test_waiting_for_room_the_device_counts_as_idle(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker whose results nobody acknowledges would be taken for hung, and lose them."""
    fakes.assign("j0", plain())
    fakes.assign("j1", plain())
    fakes.turn()
    fakes.engine.room.clear()
    busy: list[int] = []

    def wait(timeout: float) -> None:
        busy.append(fakes.place.pulse.busy_since_ns)
        fakes.engine.room.set()

    monkeypatch.setattr(fakes.engine.room, "wait", wait)
    fakes.turn()
    assert busy == [0]
    fakes.turn()
    assert fakes.outcome("j1") == "done"


def test_no_job_begins_while_results_wait_but_those_begun_go_on(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("begun", pictures([lane] * 5))
    fakes.turn()
    fakes.assign("waiting", pictures([lane] * 5))
    fakes.engine.room.clear()
    fakes.turn()
    fakes.turn()
    assert len(fakes.tasks) == 1
    fakes.engine.room.set()
    fakes.run()
    assert fakes.outcome("waiting") == "done"


def test_a_newer_attempt_makes_room_where_its_elders_result_filled_it(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RESULTS_MAX", 1)
    fakes.assign("j", plain())
    fakes.run()
    assert not fakes.engine.room.is_set()
    fakes.assign("j", plain(), attempt=2)
    fakes.run()
    assert [result["attempt"] for result in fakes.results] == [1, 2]


def test_finish_ends_after_all_that_was_assigned(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("a", pictures([lane] * 5))
    fakes.assign("b", plain(3))
    fakes.assign("c", plain(3))
    fakes.turn()
    fakes.hear(Drain())
    assert not fakes.engine.over
    fakes.run()
    assert fakes.engine.over
    assert {fakes.outcome(job) for job in "abc"} == {"done"}


def test_stop_ends_after_those_begun_and_leaves_the_others_assigned(fakes: Fakes, clock: FakeClock) -> None:
    lane = FakeLane(clock)
    fakes.assign("a", pictures([lane] * 5))
    fakes.assign("b", plain(3))
    fakes.assign("c", plain(3))
    fakes.turn()
    fakes.engine.stop()
    while not fakes.engine.over:
        fakes.turn()
    assert sorted(result["job_id"] for result in fakes.results) == ["a", "b"]
    assert {job.assign.job_id: job.state for job in fakes.session._held}["c"] is HeldState.ASSIGNED


def test_the_pulse_beats_at_each_quantum(fakes: Fakes, clock: FakeClock) -> None:
    fakes.assign("j", pictures([FakeLane(clock)] * 5))
    beats = set()
    while not fakes.results:
        fakes.turn()
        beats.add(fakes.place.pulse.busy_since_ns)
    assert len(beats) >= 5
