"""What stays in the device's memory: loaded once, kept, the least recently used evicted under a byte budget.

A resident (a model) is made of parts (its UNet, its text encoders, its VAE), and residents with the same part share
it. What is evicted from a GPU is set aside in the machine's own memory, from where it comes back quicker than from
the disk, until that has its own budget full.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from instructors.memory import NoRoomNow, is_out_of_memory
from instructors.task import R, Resident
from protocol.errors import OutOfMemory

log = structlog.get_logger("worker.residency")


@dataclass(slots=True)
class _Entry:
    value: Any
    parts: Mapping[str, Any]
    pins: int = 0
    retired: bool = False  # to be unloaded with its last pin
    kept: bool = False  # never evicted


class Residency:
    """Residents by key, oldest use first. Used by the device thread; `names` may be read by any."""

    def __init__(
        self, budget_bytes: int, release: Callable[[], None], device: str = "cpu", aside_bytes: int = 0
    ) -> None:
        """`release` gives memory that evicted values held back to the device. `aside_bytes`: for what is set aside."""
        self._budget = budget_bytes
        self._release = release
        self._device = device
        self._aside_budget = aside_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._aside: OrderedDict[str, _Entry] = OrderedDict()
        self._reserved: dict[str, int] = {}  # for what is being loaded elsewhere, by key
        self.names: list[str] = []
        self.kept: frozenset[str] = frozenset()  # names of those that are never evicted

    @property
    def nbytes(self) -> int:
        """On the device."""
        return _nbytes(self._entries.values())

    @property
    def aside_nbytes(self) -> int:
        return _nbytes(self._aside.values())

    def part(self, key: str) -> Any:
        """A part that some resident has on the device; None where none has."""
        return next((entry.parts[key] for entry in self._entries.values() if key in entry.parts), None)

    def keys_of(self, name: str) -> list[str]:
        """The keys of what reports call by this name, oldest use first; what is set aside comes before."""
        return [key for key, entry in (*self._aside.items(), *self._entries.items()) if entry.value.name == name]

    def holders(self, part_key: str) -> dict[str, bool]:
        """The names of those that are made of this part -> whether they have it on the device, or set aside."""
        aside = {entry.value.name: False for entry in self._aside.values() if part_key in entry.parts}
        return aside | {entry.value.name: True for entry in self._entries.values() if part_key in entry.parts}

    def at_hand(self, key: str) -> Resident | None:
        """What is on the device under this key, pinned and now the most recently used."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        entry.pins += 1
        return entry.value

    def get(self, key: str) -> Resident | None:
        """As `at_hand`, also from where it was set aside; None if it must be loaded. Raises NoRoomNow."""
        if key not in self._entries:
            self._bring_back(key)
        return self.at_hand(key)

    def load(self, key: str, nbytes: int, make: Callable[[], R]) -> R:
        """Make room by the estimate, load, pin. Raises OutOfMemory if it does not fit even alone, and NoRoomNow if
        it does not fit beside what is in use."""
        self._reserved.pop(key, None)
        self._make_room(nbytes)
        value = self._try(key, make)
        if value is None:
            self._evict_to(0)
            value = make()
        parts = _parts(key, value)
        if sum(part.nbytes for part in parts.values()) > self._budget:
            raise OutOfMemory("The model is larger than the memory this worker may use for models.")
        self._entries[key] = _Entry(value, parts, pins=1)
        self._evict_to(self._budget)
        self._publish()
        return value

    def reserve(self, key: str, nbytes: int) -> None:
        """Make room, by the estimate, for what is being loaded elsewhere, until it is here (`load`) or given up
        (`release`). Raises NoRoomNow."""
        self._make_room(nbytes)
        self._reserved[key] = nbytes

    def release(self, key: str) -> None:
        """It could not be loaded."""
        self._reserved.pop(key, None)

    def keep(self, key: str, kept: bool = True) -> None:
        """Never evict what is here under this key; False: as any other again."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.kept = kept
            entry.retired = entry.retired and not kept
            self._publish()

    def is_kept(self, key: str) -> bool:
        return key in self._entries and self._entries[key].kept

    def unpin(self, key: str) -> None:
        entry = self._entries[key]
        entry.pins -= 1
        if entry.retired:
            self.forget(key)

    def retire(self, key: str) -> None:
        """Unload it as soon as nobody uses it, wherever it is."""
        entry = self._entries.get(key)
        if not self.forget(key) and entry is not None:
            entry.retired = True

    def evict_unused(self) -> bool:
        """Forget all that no running task uses; whether there was any."""
        before = self.nbytes
        self._evict_to(0)
        return self.nbytes < before

    def forget(self, key: str) -> bool:
        """Unload one resident from everywhere, for a user who asks for it; False where it is in use or not there."""
        entry = self._entries.get(key)
        if entry is not None and entry.pins:
            return False
        self._entries.pop(key, None)
        aside = self._aside.pop(key, None)
        there = aside is not None or entry is not None
        if there:
            _close(entry or aside)
            self._publish()
            self._release()
        return there

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

    def _bring_back(self, key: str) -> None:
        entry = self._aside.get(key)
        if entry is None:
            return
        self._make_room(sum(part.nbytes for part in entry.parts.values() if not self._in_use(part)))
        del self._aside[key]
        for part in entry.parts.values():
            part.move(self._device)
        self._entries[key] = entry
        self._publish()

    def _make_room(self, nbytes: int) -> None:
        room = self._budget - sum(self._reserved.values())
        self._evict_to(max(room - nbytes, 0))
        if self.nbytes + nbytes > room and (self._entries or self._reserved):
            raise NoRoomNow

    def _evict_to(self, nbytes: int) -> None:
        """Let go of unpinned values, oldest use first, until at most `nbytes` are held."""
        evicted = False
        for key, entry in list(self._entries.items()):
            if self.nbytes <= nbytes:
                break
            if entry.pins == 0 and not entry.kept:
                del self._entries[key]
                log.info("evicted", key=key)
                self._set_aside(key, entry)
                evicted = True
        if evicted:
            self._publish()
            self._release()

    def _set_aside(self, key: str, entry: _Entry) -> None:
        """Keep it in the machine's memory, if there is a budget for that and all its parts can move."""
        if not self._aside_budget or not all(hasattr(part, "move") for part in entry.parts.values()):
            _close(entry)
            return
        for part in entry.parts.values():
            if not self._in_use(part):
                part.move("cpu")
        self._aside[key] = entry
        while self.aside_nbytes > self._aside_budget:
            _close(self._aside.popitem(last=False)[1])

    def _in_use(self, part: Any) -> bool:
        """Whether a resident has this very part on the device. One may have another of the same key, which it loaded
        while this one was set aside."""
        return any(part is own for entry in self._entries.values() for own in entry.parts.values())

    def _publish(self) -> None:
        self.names = list(dict.fromkeys(entry.value.name for entry in self._entries.values()))
        self.kept = frozenset(entry.value.name for entry in self._entries.values() if entry.kept)


def _close(entry: _Entry | None) -> None:
    """It leaves the memory. What lives in a process of its own is told."""
    close = getattr(entry.value, "close", None) if entry is not None else None
    if close is not None:
        close()


def _parts(key: str, value: Any) -> Mapping[str, Any]:
    """What the value's memory is made of; most values are one thing."""
    return getattr(value, "parts", None) or {key: value}


def _nbytes(entries: Iterable[_Entry]) -> int:
    parts = {id(part): part.nbytes for entry in entries for part in entry.parts.values()}
    return sum(parts.values())
