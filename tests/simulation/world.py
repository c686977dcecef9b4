"""One simulated run: a virtual clock, a network, a disk, workers, clients and the real core, all drawn from a seed.

Everything that is random comes from the seed, so a run can be repeated: `python scripts/simulate.py --seed N --trace`.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.settings import CoreSettings
from tests.simulation.checks import Violation, check, check_idle
from tests.simulation.client import Client
from tests.simulation.disk import Disk
from tests.simulation.faults import Faults
from tests.simulation.ledger import Ledger
from tests.simulation.shell import Shell
from tests.simulation.worker import SimWorker

FAULTS_END_MS = 60_000
GIVE_UP_MS = FAULTS_END_MS + 1_800_000
SETTINGS = CoreSettings(result_keep_ms=20_000, queue_jobs_max=40, connection_requests_max=64)
MODELS = ("shapes", "letters", "digits")


@dataclass(frozen=True)
class Report:
    """What one seed came to."""

    seed: int
    events: int  # handled by the core
    jobs: int
    virtual_ms: int
    counts: dict[str, int] = field(default_factory=dict)  # of faults and of ends


class World:
    def __init__(self, seed: int, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now_ms = 1_000_000
        self.start_ms = self.now_ms
        self.faulty = True
        self.healed_ms = self.start_ms + FAULTS_END_MS
        self._tracing = trace
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._serial = 0
        self.ledger = Ledger(self)
        self.disk = Disk(self)
        self.shell = Shell(self, SETTINGS)
        rough = self.rng.random() < 0.5  # a worker plane that loses, doubles and reorders, which ZeroMQ does not
        self.rough = (0.08, 0.04, 0.04) if rough else (0.0, 0.0, 0.0)
        self.workers = [SimWorker(self, f"w{number}") for number in range(self.rng.randint(2, 5))]
        tenants = [f"t{number}" for number in range(self.rng.randint(1, 3))]
        count = self.rng.randint(2, 5)
        self.clients = [Client(self, f"c{number}", self.rng.choice(tenants)) for number in range(count)]
        self.faults = Faults(self)

    # --- time ---------------------------------------------------------------------------------------------------

    def at(self, delay_ms: int, action: Callable[..., None], *args: Any) -> None:
        self.at_time(self.now_ms + delay_ms, action, *args)

    def at_time(self, at_ms: int, action: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_ms, self._order, action, args))

    def serial(self) -> int:
        """A number that no other call of this run gets."""
        self._serial += 1
        return self._serial

    def trace(self, *words: object) -> None:
        if self._tracing:
            print(f"{(self.now_ms - self.start_ms) / 1000:9.3f}", *words)

    # --- the run ------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Faults, then heal, then every job must have ended. Raises Violation, or what the core raises."""
        self.shell.start()
        for actor in (*self.workers, *self.clients):
            actor.start()
        self.faults.schedule(FAULTS_END_MS)
        self.at(FAULTS_END_MS, self._heal)
        self._advance(self._quiet)
        self._rest(SETTINGS.result_keep_ms + 2 * SETTINGS.lease_ms + 25_000)
        self._judge()
        counts = {**self.faults.counts, **self.ledger.ends, "in a light slot": self.ledger.lights}
        return Report(self.seed, self.shell.handled, len(self.ledger.asks), self.now_ms - self.start_ms, counts)

    def _quiet(self) -> bool:
        """Everybody has what they are owed, and no job is left over from one who went away."""
        core = self.shell.core
        at_rest = not self.faulty and core is not None and not core.unsettled
        return at_rest and all(client.satisfied for client in self.clients)

    def _advance(self, done: Callable[[], bool]) -> None:
        while not done():
            if self.now_ms - self.start_ms > GIVE_UP_MS:
                unmet = [ask.request_id for client in self.clients for ask in client.asks.values() if ask.unmet]
                left = list(self.shell.core.unsettled) if self.shell.core is not None else []
                raise Violation(f"some requests or jobs never end: {unmet} {left}")
            self._step()

    def _rest(self, span_ms: int) -> None:
        until_ms = self.now_ms + span_ms
        while self._heap and self._heap[0][0] <= until_ms:
            self._step()

    def _step(self) -> None:
        at_ms, _, action, args = heapq.heappop(self._heap)
        self.now_ms = max(self.now_ms, at_ms)
        action(*args)

    def _heal(self) -> None:
        self.trace("-- heal --")
        self.faulty = False
        self.faults.heal()

    def _judge(self) -> None:
        assert self.shell.core is not None
        check_idle(self.shell.core)
        check(len(self.shell.core.fleet.by_id) == len(self.workers), "a worker is missing")
        self.ledger.judge()


def simulate(seed: int, trace: bool = False) -> Report:
    return World(seed, trace).run()
