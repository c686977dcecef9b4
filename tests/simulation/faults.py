"""What goes wrong in a run, when, and how it heals."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.core import events as e

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    def __init__(self, world: "World") -> None:
        self._world = world
        self.counts: Counter[str] = Counter()

    def schedule(self, until_ms: int) -> None:
        """Draw the faults of this run."""
        kinds: list[tuple[str, int, Callable[[], None]]] = [
            ("worker crash", 4, self._crash_worker),
            ("worker and parent crash", 1, self._crash_parent),
            ("worker pause", 5, self._pause_worker),
            ("worker connection", 3, lambda: self._any(self._world.workers).break_link()),
            ("client connection", 4, lambda: self._any(self._world.clients).break_link()),
            ("worker hands back", 1, lambda: self._any(self._world.workers).hand_back()),
            ("worker drain", 4, self._drain_worker),
            ("orchestrator crash", 2, self._crash_orchestrator),
            ("orchestrator drain", 1, lambda: self._world.shell.feed(e.Drain())),
            ("disk fails", 3, self._fail_disk),
            ("disk slow", 1, self._slow_disk),
        ]
        rng = self._world.rng
        for kind, times_max, fault in kinds:
            for _ in range(rng.randint(0, times_max)):
                self._world.at(rng.randint(1_000, until_ms - 1), self._strike, kind, fault)

    def heal(self) -> None:
        self._repair_disk()
        for worker in self._world.workers:
            worker.resume()
        self._world.shell.start()

    def _strike(self, kind: str, fault: Callable[[], None]) -> None:
        self._world.trace("!!", kind)
        self.counts[kind] += 1
        fault()

    def _any(self, actors: list[Any]) -> Any:
        return self._world.rng.choice(actors)

    def _crash_worker(self) -> None:
        self._any(self._world.workers).crash()

    def _crash_parent(self) -> None:
        self._any(self._world.workers).crash(parent_too=True)

    def _pause_worker(self) -> None:
        worker = self._any(self._world.workers)
        worker.pause()
        self._world.at(self._world.rng.randint(1_000, 40_000), worker.resume)

    def _drain_worker(self) -> None:
        core = self._world.shell.core
        worker = self._any(self._world.workers)
        if core is not None and worker.name in core.fleet.by_id:
            self._world.shell.feed(e.DrainWorker(worker.name))

    def _crash_orchestrator(self) -> None:
        self._world.shell.crash()
        self._world.at(self._world.rng.randint(100, 8_000), self._world.shell.start)

    def _fail_disk(self) -> None:
        self._world.disk.failing = True
        self._world.at(self._world.rng.randint(100, 8_000), self._repair_disk)

    def _slow_disk(self) -> None:
        self._world.disk.delay_ms_max = 3_000
        self._world.at(self._world.rng.randint(100, 8_000), self._repair_disk)

    def _repair_disk(self) -> None:
        self._world.disk.failing = False
        self._world.disk.delay_ms_max = 10
