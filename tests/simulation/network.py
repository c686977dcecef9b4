"""Connections between the simulated processes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.world import World

LATE_MS = 9_000  # how late a message may be on a rough link


class Link:
    """One connection; the core knows it by its name. Messages arrive in order, or get lost when it breaks.

    A rough link also loses, doubles and reorders, while there are faults.
    """

    def __init__(self, world: "World", name: str, rough: bool = False) -> None:
        self._world = world
        self._rough = rough
        self._last_ms = {True: 0, False: 0}
        self.name = name
        self.open = True

    def send(self, up: bool, deliver: Callable[..., None], *args: Any) -> None:
        """Call `deliver` at the other end; `up` is towards the orchestrator."""
        world = self._world
        if not self.open:
            return
        if not (self._rough and world.faulty):
            self._last_ms[up] = max(world.now_ms + world.rng.randint(0, 4), self._last_ms[up])
            world.at_time(self._last_ms[up], self._deliver, deliver, args)
            return
        loss, double, late = world.rough
        for _ in range(2 if world.rng.random() < double else 1):
            if world.rng.random() < loss:
                world.trace("lost on", self.name, args[1:2])
                continue
            delay_ms = world.rng.randint(0, LATE_MS) if world.rng.random() < late else world.rng.randint(0, 4)
            world.at(delay_ms, self._deliver, deliver, args)

    def close(self) -> None:
        self.open = False

    def _deliver(self, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.open:
            deliver(*args)
