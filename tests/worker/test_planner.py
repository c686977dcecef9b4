"""Which quantum is next: the planner by itself, over units that only wait."""

import weakref
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.limits import PRIORITY_MAX
from worker.engine.planner import AGING_S, ALONE, Planner, Waiting, lane_of


@dataclass(eq=False)
class FakeLane:
    rows_max: int = 8
    row_s: float = 0.01
    rows_min: int = 1

    def step(self, units: object) -> None:
        raise AssertionError("the planner steps nothing")


@dataclass(eq=False)
class FakeUnit:
    lane: FakeLane | None
    rows: int = 1
    done: bool = False
    error: BaseException | None = None


def waiting(lane: FakeLane | None, *, priority: int = 4, order: int = 0, rows: int = 1, since: float = 0.0) -> Waiting:
    return Waiting(None, FakeUnit(lane, rows), priority, order, since)


def run(planner: Planner, entries: list[Waiting], quanta: int, now: float | None = None) -> dict[object, float]:
    """Seconds that each lane was served while all go on waiting."""
    served: dict[object, float] = {}
    if now is None:
        now = max(entry.since for entry in entries)
        for entry in entries:
            entry.since = now
    for _ in range(quanta):
        chosen = planner.choose(entries, now)
        lane, rows = lane_of(chosen[0]), sum(entry.unit.rows for entry in chosen)
        elapsed = rows * (lane.row_s if isinstance(lane, FakeLane) else 0.01)
        planner.ran(lane, rows, elapsed)
        now += elapsed
        served[lane] = served.get(lane, 0.0) + elapsed
        for entry in chosen:
            entry.since = now
    return served


LANES = st.builds(FakeLane, st.integers(1, 16), st.floats(0.001, 0.5))
SPREAD = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, PRIORITY_MAX), st.integers(1, 4), st.floats(0, 100)), min_size=1
)


@given(st.lists(LANES, min_size=3, max_size=3), SPREAD, st.integers(0, 40), st.floats(0.01, 2))
@settings(deadline=None)
def test_a_quantum_is_of_one_lane_led_by_the_most_urgent_and_within_its_rows(
    lanes: list[FakeLane], spread: list[tuple[int, int, int, float]], before: int, quantum_s: float
) -> None:
    planner = Planner(quantum_s)
    places = [*lanes, None]
    entries = [
        waiting(places[lane], priority=priority, order=order, rows=rows, since=100 - age)
        for order, (lane, priority, rows, age) in enumerate(spread)
    ]
    ages = [entry.since for entry in entries]
    run(planner, entries, before, 100.0)
    for entry, since in zip(entries, ages, strict=True):
        entry.since = since
    chosen = planner.choose(entries, 100.0)
    lane = lane_of(chosen[0])
    assert all(lane_of(entry) is lane for entry in chosen)
    assert len({id(entry) for entry in chosen}) == len(chosen)
    urgencies = [entry.urgency(100.0) for entry in entries]
    assert chosen[0].urgency(100.0) == max(urgencies)
    assert [entry.urgency(100.0) for entry in chosen] == sorted((e.urgency(100.0) for e in chosen), reverse=True)
    rows = sum(entry.unit.rows for entry in chosen)
    assert rows <= planner.rows_max(lane) or len(chosen) == 1
    if lane is ALONE:
        assert len(chosen) == 1
    if max(urgencies) == PRIORITY_MAX:
        assert all(entry.priority == PRIORITY_MAX for entry in chosen)
    left_out = [entry for entry in entries if lane_of(entry) is lane and entry not in chosen]
    if lane is not ALONE and max(urgencies) < PRIORITY_MAX:
        assert all(rows + entry.unit.rows > planner.rows_max(lane) for entry in left_out)  # nobody is left for nothing


@given(st.lists(LANES, min_size=2, max_size=5), st.integers(1, 3), st.integers(20, 200))
@settings(deadline=None)
def test_lanes_that_always_wait_get_equal_time(lanes: list[FakeLane], units: int, quanta: int) -> None:
    planner = Planner(1.0)
    entries = [  # of a priority that age does not raise
        waiting(lane, priority=PRIORITY_MAX - 1, order=order * len(lanes) + place)
        for order in range(units)
        for place, lane in enumerate(lanes)
    ]
    served = run(planner, entries, quanta)
    longest = max(lane.row_s * min(units, lane.rows_max) for lane in lanes)
    times = [served.get(lane, 0.0) for lane in lanes]
    assert max(times) - min(times) <= longest + 1e-9


@pytest.mark.parametrize("alone_s", [10, 1000])
def test_a_lane_that_had_nothing_to_do_gets_no_credit_for_that_time(alone_s: int) -> None:
    planner, old, new = Planner(1.0), FakeLane(row_s=0.1), FakeLane(row_s=0.1)
    first, second = waiting(old, order=0), waiting(new, order=1)
    run(planner, [first], alone_s * 10)
    served = run(planner, [first, second], 100)
    assert served[new] == pytest.approx(served[old], abs=0.21)
    run(planner, [first], 500)
    served = run(planner, [first, second], 100)  # nor for a pause
    assert served[new] == pytest.approx(served[old], abs=0.21)


def test_a_long_task_that_shares_nothing_does_not_keep_a_lane_waiting() -> None:
    planner, lane = Planner(1.0), FakeLane()
    long, picture = waiting(None, order=0), waiting(lane, order=1)
    run(planner, [long], 50)
    served = run(planner, [long, picture], 10)
    assert served[lane] == pytest.approx(served[ALONE], abs=0.011)


def test_what_shares_nothing_is_run_to_its_end_first_come_first_served() -> None:
    planner = Planner(1.0)
    entries = [waiting(None, order=order) for order in range(3)]
    assert all(planner.choose(entries, 0.0) == [entries[0]] for _ in range(5))
    entries[2].priority = 5
    assert planner.choose(entries, 0.0) == [entries[2]]


@given(st.floats(0.001, 3.0), st.floats(0.05, 2.0), st.integers(1, 64), st.integers(1, 3))
@settings(deadline=None)
def test_a_shared_quantum_stays_within_its_time_once_that_is_known(
    row_s: float, quantum_s: float, rows_max: int, rows: int
) -> None:
    planner, lane = Planner(quantum_s), FakeLane(rows_max, row_s)
    entries = [waiting(lane, order=order, rows=rows) for order in range(40)]
    for _ in range(20):
        chosen = planner.choose(entries, 0.0)
        taken = sum(entry.unit.rows for entry in chosen)
        assert len(chosen) == 1 or taken * row_s <= quantum_s * (1 + 1e-9)
        assert len(chosen) == 1 or taken <= rows_max
        planner.ran(lane, taken, taken * row_s)
    fits = max(rows, min(rows_max, int(quantum_s / row_s * (1 - 1e-9)), 40 * rows) // rows * rows)
    assert taken >= fits - rows  # and no smaller than it must be


def test_a_slow_beginning_is_forgotten() -> None:
    """The first forward of a shape may take long: kernels are chosen, memory is taken."""
    planner, lane = Planner(1.0), FakeLane()
    planner.ran(lane, 1, 5.0)
    for _ in range(30):
        rows = planner.rows_max(lane)
        planner.ran(lane, rows, rows * 0.01)
    assert planner.rows_max(lane) == lane.rows_max


@given(st.integers(0, PRIORITY_MAX - 1), st.integers(0, PRIORITY_MAX - 1))
def test_nothing_starves_below_the_highest_priority(low: int, high: int) -> None:
    planner, busy, starving = Planner(1.0), FakeLane(row_s=1.0), FakeLane(row_s=1.0)
    patient, urgent = waiting(starving, priority=low, order=1), waiting(busy, priority=high, order=0)
    now, bound = 0.0, (max(high - low, 0) + 1) * AGING_S + 3
    while patient.since == 0.0 and now <= bound:
        [chosen] = planner.choose([patient, urgent], now)
        planner.ran(lane_of(chosen), 1, 1.0)
        now += 1.0
        chosen.since = now
    assert now <= bound


def test_nothing_rises_to_the_highest_priority() -> None:
    planner, lane = Planner(1.0), FakeLane()
    old, urgent = waiting(lane, priority=8, order=0, since=-1e9), waiting(lane, priority=PRIORITY_MAX, order=1)
    planner.ran(lane, 1, 0.01)
    assert planner.choose([old, urgent], 0.0) == [urgent]
    other = waiting(lane, priority=PRIORITY_MAX, order=2)
    assert planner.choose([old, urgent, other], 0.0) == [urgent, other]


def test_the_planner_keeps_no_lane_alive() -> None:
    """A lane leads to its module, and that to gigabytes."""
    planner, lane = Planner(1.0), FakeLane()
    gone = weakref.ref(lane)
    run(planner, [waiting(lane), waiting(lane, order=1)], 3)
    del lane
    assert gone() is None


def test_rows_that_a_quantum_costs_anyway_are_used_however_slow_it_is() -> None:
    planner, lane = Planner(quantum_s=0.5), FakeLane(rows_max=32, rows_min=4)
    entries = [waiting(lane, order=order, rows=2) for order in range(5)]
    for elapsed_s in (1.5, 1.5, 1.5):  # of a forward of four rows, whoever waits
        chosen = planner.choose(entries, 0.0)
        assert len(chosen) == 2
        planner.ran(lane, 4, elapsed_s)
    planner.ran(lane, 2, 0.2)
    assert planner._row_s[lane] < 1.5 / 4  # a lone picture's forward had four rows, too
