"""The queue: per requirement and priority a ring of tenants, first in first out within each.

A head rises one priority level per `aging_ms`, so nothing starves. Removal is lazy: a job that left the queue has
another ticket than its entry, and the entry is dropped when it comes to the front.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from orchestrator.core.model import Job, Requirement
from protocol.limits import PRIORITY_MAX

SWEEP_MIN = 1024

Section = tuple[str | None, bool]  # of the queue: pinned to which worker, light


class Entry(NamedTuple):
    ticket: int
    job: Job

    @property
    def waiting(self) -> bool:
        return self.job.ticket == self.ticket


class Ring:
    """One priority level: tenants take turns, each tenant's jobs in order."""

    __slots__ = ("tenants",)

    def __init__(self) -> None:
        self.tenants: OrderedDict[str, deque[Entry]] = OrderedDict()

    def push(self, entry: Entry, first: bool) -> None:
        line = self.tenants.get(entry.job.tenant)
        if line is None:
            line = self.tenants[entry.job.tenant] = deque()
        if first:
            line.appendleft(entry)
        else:
            line.append(entry)

    def head(self) -> Entry | None:
        """The next job of the tenant whose turn it is; entries that left the queue are dropped on the way."""
        while self.tenants:
            tenant, line = next(iter(self.tenants.items()))
            while line and not line[0].waiting:
                line.popleft()
            if line:
                return line[0]
            del self.tenants[tenant]
        return None

    def pass_turn(self, tenant: str) -> None:
        self.tenants.move_to_end(tenant)


class Line:
    """All jobs of one requirement."""

    __slots__ = ("_best", "_best_until_ms", "removed", "requirement", "rings", "size")

    def __init__(self, requirement: Requirement) -> None:
        self.requirement = requirement
        self.rings: dict[int, Ring] = {}
        self.size = 0
        self.removed = 0  # since the last sweep; an upper bound of the dead entries
        self._best: tuple[int, Entry] | None = None
        self._best_until_ms = 0  # then a head has risen; 0 when a job came or went

    def changed(self) -> None:
        self._best_until_ms = 0

    def sweep(self) -> None:
        """Drop dead entries behind a living head, when there may be many."""
        if self.removed < SWEEP_MIN or self.removed < 2 * self.size:
            return
        self.removed = 0
        for ring in self.rings.values():
            for tenant, entries in list(ring.tenants.items()):
                ring.tenants[tenant] = deque(entry for entry in entries if entry.waiting)

    def best(self, now_ms: int, aging_ms: int) -> tuple[int, Entry]:
        """The head with the highest effective priority, the oldest of equals, with that priority."""
        if now_ms >= self._best_until_ms:
            self._look(now_ms, aging_ms)
        assert self._best is not None  # a line without jobs is no line
        return self._best

    def urgent(self) -> Entry | None:
        """The head of those that came with the highest priority; what has risen to it is not among them."""
        ring = self.rings.get(PRIORITY_MAX)
        return None if ring is None else ring.head()

    def _look(self, now_ms: int, aging_ms: int) -> None:
        self._best, self._best_until_ms = None, now_ms + aging_ms
        for priority, ring in list(self.rings.items()):
            entry = ring.head()
            if entry is None:
                del self.rings[priority]
                continue
            risen, into_ms = divmod(now_ms - entry.job.queued_ms, aging_ms)
            level = min(PRIORITY_MAX, priority + risen)
            self._best_until_ms = min(self._best_until_ms, now_ms + aging_ms - into_ms)
            if self._best is None or (level, -entry.ticket) > (self._best[0], -self._best[1].ticket):
                self._best = level, entry


def _section(requirement: Requirement) -> Section:
    return requirement.worker_pin, requirement.light


class Queue:
    def __init__(self, aging_ms: int) -> None:
        self._aging_ms = aging_ms
        self._lines: dict[Section, dict[Requirement, Line]] = {}  # so a worker sees only what it may have room for
        self._ticket = 0
        self._served = 0
        self._turns: dict[str, int] = {}  # tenant -> when it was last served
        self._tenant_sizes: dict[str, int] = {}
        self._backlog_ms = {light: [0] * (PRIORITY_MAX + 1) for light in (False, True)}
        self.size = 0

    def push(self, job: Job, now_ms: int, *, first: bool = False) -> bool:
        """Queue a job, at the front of its tenant's line if `first`. True if its line was empty before."""
        self._ticket += 1
        job.ticket, job.queued_ms = self._ticket, now_ms
        lines = self._lines.setdefault(_section(job.requirement), {})
        line = lines.get(job.requirement)
        if line is None:
            line = lines[job.requirement] = Line(job.requirement)
        ring = line.rings.get(job.priority)
        if ring is None:
            ring = line.rings[job.priority] = Ring()
        ring.push(Entry(self._ticket, job), first)
        line.size += 1
        line.changed()
        self._count(job, +1)
        return line.size == 1

    def remove(self, job: Job) -> None:
        """Take a job out of the queue, wherever in it; harmless when it is not in it."""
        if not job.ticket:
            return
        job.ticket = 0
        lines = self._lines[_section(job.requirement)]
        line = lines[job.requirement]
        line.size -= 1
        line.removed += 1
        line.changed()
        line.sweep()
        if not line.size:
            del lines[job.requirement]
            if not lines:
                del self._lines[_section(job.requirement)]
        self._count(job, -1)

    def serve(self, job: Job) -> None:
        """Take a job out because a worker gets it: its tenant goes to the end of the ring."""
        line = self._lines[_section(job.requirement)][job.requirement]
        line.rings[job.priority].pass_turn(job.tenant)
        self.pass_turn(job.tenant)
        self.remove(job)

    def pass_turn(self, tenant: str) -> None:
        """A worker takes a job of this tenant: those of others that are as urgent come before its next."""
        if tenant in self._tenant_sizes:
            self._served += 1
            self._turns[tenant] = self._served

    def lines(self, worker_id: str, *, light_only: bool = False) -> Iterator[Line]:
        """The lines of waiting jobs that are not pinned to another worker."""
        for pin in (worker_id, None):
            for light in (True,) if light_only else (False, True):
                yield from self._lines.get((pin, light), {}).values()

    def line(self, requirement: Requirement) -> Line | None:
        """The waiting jobs of one requirement; None when there are none."""
        return self._lines.get(_section(requirement), {}).get(requirement)

    def all_requirements(self) -> list[Requirement]:
        return [requirement for lines in self._lines.values() for requirement in lines]

    def jobs_of(self, requirement: Requirement) -> list[Job]:
        """The waiting jobs of one requirement, in no particular order."""
        rings = self._lines[_section(requirement)][requirement].rings.values()
        return [entry.job for ring in rings for line in ring.tenants.values() for entry in line if entry.waiting]

    def best(self, lines: Iterable[Line], resident: frozenset[str], now_ms: int) -> Job | None:
        """The job to run next: effective priority, then a model that is loaded, then the tenant served longest ago."""
        found: tuple[tuple[int, bool, int, int], Job] | None = None
        for line in lines:
            level, entry = line.best(now_ms, self._aging_ms)
            model_id = line.requirement.model_id
            cold = model_id is not None and model_id not in resident
            rank = (-level, cold, self._turns.get(entry.job.tenant, 0), entry.ticket)
            if found is None or rank < found[0]:
                found = rank, entry.job
        return found[1] if found else None

    def urgent(self, lines: Iterable[Line], resident: frozenset[str]) -> Job | None:
        """The job to run next of those that came with the highest priority: in the order of `best`."""
        heads = [(line.requirement.model_id, entry) for line in lines if (entry := line.urgent()) is not None]

        def rank(head: tuple[str | None, Entry]) -> tuple[bool, int, int]:
            model_id, entry = head
            cold = model_id is not None and model_id not in resident
            return cold, self._turns.get(entry.job.tenant, 0), entry.ticket

        return min(heads, key=rank)[1].job if heads else None

    def backlog_ms(self, priority: int, *, light: bool) -> int:
        """Predicted run time of the light jobs, or of the others, that wait at this priority or above."""
        return sum(self._backlog_ms[light][priority:])

    def tenant_size(self, tenant: str) -> int:
        return self._tenant_sizes.get(tenant, 0)

    def _count(self, job: Job, sign: int) -> None:
        self.size += sign
        self._backlog_ms[job.requirement.light][job.priority] += sign * job.estimate_ms
        count = self._tenant_sizes.get(job.tenant, 0) + sign
        if count:
            self._tenant_sizes[job.tenant] = count
        else:
            del self._tenant_sizes[job.tenant]
            self._turns.pop(job.tenant, None)
