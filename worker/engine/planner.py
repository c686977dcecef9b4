"""Which quantum is next: pure bookkeeping over what waits, so that it can be tested without a device.

The most urgent unit leads; of equally urgent ones, one of the lane that had the least of the device's time; of those,
the one that came first. Its lane is stepped, with as many other units as fit, the urgent and the early first. Budgets
are rows, not units, for guidance takes two rows. A lane's rows are capped by what one forward may take, and by the
time a shared quantum may last, judged by what its rows took before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from instructors.task import Lane, Unit, within_rows
from protocol.limits import PRIORITY_MAX

AGING_S = 30.0  # a unit that waited so long counts as one level more urgent, but never as the most urgent
SMOOTHING = 0.3  # weight of the latest measurement
SHORTEST_S = 1e-9  # a quantum that goes on elsewhere takes the device thread next to nothing


@dataclass(slots=True, eq=False)
class Waiting:
    """A unit of a begun job. `order`: its place in the order of arrival; `since`: when it was last stepped, seconds."""

    owner: Any  # the job, for whoever steps the unit
    unit: Unit
    priority: int
    order: int
    since: float

    def urgency(self, now: float) -> int:
        """Units of the highest priority are not slowed by others' rows, so nothing rises to it."""
        if self.priority >= PRIORITY_MAX:
            return PRIORITY_MAX
        return min(self.priority + int((now - self.since) / AGING_S), PRIORITY_MAX - 1)


class Alone:
    """Stands for the lane of all units that have none: they are stepped one at a time, the first to its end."""

    rows_max = rows_min = 1


ALONE = Alone()
AnyLane = Lane | Alone


class Planner:
    def __init__(self, quantum_s: float) -> None:
        """`quantum_s`: how long a quantum of several units may take."""
        self._quantum_s = quantum_s
        self._row_s: WeakKeyDictionary[AnyLane, float] = WeakKeyDictionary()
        self._served_s: WeakKeyDictionary[AnyLane, float] = WeakKeyDictionary()
        self._clock_s = 0.0  # what the lane stepped last had been served: nobody's credit goes further back

    def choose(self, waiting: Sequence[Waiting], now: float) -> list[Waiting]:
        """The units of the next quantum, the leading one first. `waiting` is not empty."""
        if len(waiting) == 1:
            return list(waiting)
        leader = min(waiting, key=lambda entry: (-entry.urgency(now), self._served(lane_of(entry)), entry.order))
        lane = lane_of(leader)
        if isinstance(lane, Alone):
            return [leader]
        urgent = leader.urgency(now) == PRIORITY_MAX
        company = [
            entry
            for entry in waiting
            if entry is not leader and lane_of(entry) is lane and (entry.urgency(now) == PRIORITY_MAX or not urgent)
        ]
        company.sort(key=lambda entry: (-entry.urgency(now), entry.order))
        entries = {id(entry.unit): entry for entry in (leader, *company)}
        chosen = within_rows([leader.unit, *(entry.unit for entry in company)], self.rows_max(lane))
        return [entries[id(unit)] for unit in chosen]

    def rows_max(self, lane: AnyLane) -> int:
        """How many rows the lane's next quantum may have. A lane that nobody knows yet is tried with one unit, or as
        many as cost the same."""
        row_s = self._row_s.get(lane)
        fits = 1 if row_s is None else int(self._quantum_s / max(row_s, SHORTEST_S))
        return max(1, min(lane.rows_max, max(lane.rows_min, fits)))

    def ran(self, lane: AnyLane, rows: int, elapsed_s: float) -> None:
        """A quantum of so many rows took so long."""
        if lane is not ALONE:
            before, row_s = self._row_s.get(lane), elapsed_s / max(rows, lane.rows_min)
            self._row_s[lane] = row_s if before is None else before + SMOOTHING * (row_s - before)
        self._clock_s = self._served(lane)
        self._served_s[lane] = self._clock_s + elapsed_s

    def _served(self, lane: AnyLane) -> float:
        """Seconds of the device's time that the lane had. One that had nothing to do gets no credit for that time."""
        return max(self._served_s.get(lane, 0.0), self._clock_s)


def lane_of(entry: Waiting) -> AnyLane:
    """Where the unit waits."""
    return ALONE if entry.unit.lane is None else entry.unit.lane
