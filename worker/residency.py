"""Which models stay in the device's memory: loaded once, kept, the least recently used evicted under a byte budget."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from instructors.memory import is_out_of_memory
from instructors.task import R, Resident
from protocol.errors import OutOfMemory

log = structlog.get_logger("worker.residency")


@dataclass(slots=True)
class _Entry:
    value: Any
    nbytes: int
    pins: int = 0


class Residency:
    """Residents by key, oldest use first. Used by the device thread; `names` may be read by any."""

    def __init__(self, budget_bytes: int, release: Callable[[], None]) -> None:
        """`release` gives memory that evicted values held back to the device."""
        self._budget = budget_bytes
        self._release = release
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.names: list[str] = []

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def get(self, key: str) -> Resident | None:
        """The resident, pinned and now the most recently used; None if it must be loaded."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        entry.pins += 1
        return entry.value

    def load(self, key: str, nbytes: int, make: Callable[[], R]) -> R:
        """Make room by the estimate, load, pin. Raises OutOfMemory if it does not fit even alone."""
        self._evict_to(max(self._budget - nbytes, 0))
        value = self._try(key, make)
        if value is None:
            self._evict_to(0)
            value = make()
        if value.nbytes > self._budget:
            raise OutOfMemory("The model is larger than the memory this worker may use for models.")
        self._evict_to(self._budget - value.nbytes)
        self._entries[key] = _Entry(value, value.nbytes, pins=1)
        self._publish()
        return value

    def evict_unused(self) -> bool:
        """Forget all that no running task uses; whether there was any."""
        before = self.nbytes
        self._evict_to(0)
        return self.nbytes < before

    def _try(self, key: str, make: Callable[[], R]) -> R | None:
        """None where memory ran out and evicting may help. A call of its own, so that the error's traceback,
        which holds what was loaded so far, is gone when it returns."""
        try:
            return make()
        except Exception as error:
            if not is_out_of_memory(error) or not self._entries:
                raise
            log.warning("loading ran out of memory: trying again with nothing else loaded", key=key)
            return None

    def unpin(self, key: str) -> None:
        self._entries[key].pins -= 1

    def _evict_to(self, nbytes: int) -> None:
        """Forget unpinned values, oldest use first, until at most `nbytes` are held."""
        total = before = self.nbytes
        for key, entry in list(self._entries.items()):
            if total > nbytes and entry.pins == 0:
                total -= entry.nbytes
                del self._entries[key]
                log.info("evicted", key=key, nbytes=entry.nbytes)
        if total < before:
            self._publish()
            self._release()

    def _publish(self) -> None:
        self.names = list(dict.fromkeys(entry.value.name for entry in self._entries.values()))
