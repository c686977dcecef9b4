"""The worker's own state machine under anything, in any order. Real but for the work and the wire (fakes.py)."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from protocol.errors import InvalidRequest
from protocol.limits import PRIORITY_MAX
from protocol.messages import Cancel, Drain, ResultAck
from tests.worker.fakes import FakeClock, FakeLane, Fakes, FakeShared, Work
from worker import jobs


class WorkerMachine(RuleBasedStateMachine):
    """An orchestrator that assigns, cancels, acknowledges and replaces as it likes, between any two turns."""

    clock: FakeClock  # installed by the test

    def __init__(self) -> None:
        super().__init__()
        self.fakes = Fakes(self.clock, quantum_s=0.055)
        self.fakes.residency._budget = 25  # two of the three models
        self.lanes = [FakeLane(self.clock, rows_max=4), FakeLane(self.clock, rows_max=1, row_s=0.03), None]
        self.assigned: dict[tuple[str, int], Work] = {}
        self.attempts: dict[str, int] = {}
        self.cancelled: set[tuple[str, int]] = set()
        self.replaced: set[tuple[str, int]] = set()
        self.expected_failures: set[tuple[str, int]] = set()

    def held(self, job_id: str) -> bool:
        return any(job.assign.job_id == job_id for job in self.fakes.session._held)

    @rule(
        paths=st.lists(
            st.tuples(st.integers(1, 3), st.lists(st.integers(0, 2), min_size=1, max_size=6)), min_size=1, max_size=3
        ),
        shared=st.booleans(),
        priority=st.integers(0, PRIORITY_MAX),
        fails=st.none() | st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from(["bug", "memory", "user"])),
        models=st.lists(st.sampled_from("abc"), max_size=2, unique=True),
        old=st.integers(0, 9),
    )
    def assign(
        self,
        paths: list[tuple[int, list[int]]],
        shared: bool,
        priority: int,
        fails: tuple[int, int, str] | None,
        models: list[str],
        old: int,
    ) -> None:
        errors = {"bug": RuntimeError, "memory": MemoryError, "user": lambda: InvalidRequest("No.")}
        work = Work(
            [(rows, [self.lanes[lane] for lane in path]) for rows, path in paths], shared=shared, models=tuple(models)
        )
        if fails is not None:
            unit, quantum, kind = fails
            work.fails[(unit, quantum)] = errors[kind]()
        ids = list(self.attempts)
        job_id = ids[old] if old < len(ids) and old % 3 == 0 else f"j{len(ids)}"
        attempt = self.attempts.get(job_id, 0) + 1
        if self.attempts.get(job_id) and self.held(job_id):
            self.replaced.add((job_id, attempt - 1))
        self.attempts[job_id] = attempt
        before = len(self.fakes.session._held)
        self.fakes.assign(job_id, work, priority, attempt)
        assert len(self.fakes.session._held) in (before, before + 1)
        self.assigned[job_id, attempt] = work
        if fails is not None:
            self.expected_failures.add((job_id, attempt))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.attempts)))
        self.cancelled.add((job_id, self.attempts[job_id]))
        self.fakes.hear(Cancel(job_id=job_id, attempt=self.attempts[job_id]))

    @precondition(lambda self: self.fakes.results)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.acknowledge_result(data.draw(st.sampled_from(self.fakes.results)))

    def acknowledge_result(self, result: dict[str, Any]) -> None:
        reference = {"job_id": result["job_id"], "attempt": result["attempt"]}
        self.fakes.hear(ResultAck(results=[reference]))  # type: ignore[list-item]

    @precondition(lambda self: self.fakes.busy)
    @rule(turns=st.integers(1, 6))
    def turn(self, turns: int) -> None:
        left = [
            unit
            for task in self.fakes.tasks
            if isinstance(task, FakeShared)
            for unit in task.units
            if unit.closed and unit.quanta < len(unit._path)
        ]
        before = [unit.quanta for unit in left]
        for _ in range(turns):
            if self.fakes.busy:
                self.fakes.turn()
        assert [unit.quanta for unit in left] == before

    @invariant()
    def rows_stay_within_their_bounds(self) -> None:
        for lane in self.lanes[:2]:
            assert lane is not None
            for units in lane.quanta:
                rows = sum(unit.rows for unit in units)
                assert len(units) == 1 or (rows <= lane.rows_max and rows * lane.row_s <= 0.055 + 1e-9)

    @invariant()
    def no_attempt_has_two_results(self) -> None:
        keys = [(result["job_id"], result["attempt"]) for result in self.fakes.results]
        assert len(keys) == len(set(keys))

    def teardown(self) -> None:
        """In the end every attempt that was not replaced has its result, and nothing is kept."""
        fakes = self.fakes
        while fakes.busy or not fakes.engine.room.is_set():
            fakes.run()
            for result in fakes.results:  # which makes room for those that wait for it
                self.acknowledge_result(result)
        fakes.hear(Drain())
        while not fakes.engine.over:
            fakes.turn()
        results = {(result["job_id"], result["attempt"]): result for result in fakes.results}
        for key, work in self.assigned.items():
            if key not in results:
                assert key in self.replaced, f"{key} was lost"
            elif results[key]["success"]:
                assert results[key]["data"] == {"units": len(work.units) if work.shared else 0}
            else:
                code = results[key]["error"]["code"]
                allowed = {"cancelled"} if key in self.cancelled else set()
                allowed |= {"internal", "out_of_memory", "invalid_request"} if key in self.expected_failures else set()
                assert code in allowed
        for task in fakes.tasks:
            if isinstance(task, FakeShared):
                assert all(unit.closed for unit in task.units)
        assert not any(entry.pins for entry in fakes.residency._entries.values())
        for result in fakes.results:
            self.acknowledge_result(result)
        assert fakes.session._may_leave()
        held = fakes.session._held
        assert (held._results, held._result_bytes) == (0, 0)


@pytest.mark.timeout(240)  # 15 s on a quiet machine
def test_no_job_is_lost_doubled_or_left_unanswered(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    WorkerMachine.clock = clock
    monkeypatch.setattr(jobs, "RESULTS_MAX", 5)  # so that room runs out
    run_state_machine_as_test(WorkerMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
