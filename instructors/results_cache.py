"""Results that were computed already, by what they depend on: kept in memory, and in Redis where that is configured.

Equal requests that come at a time are computed once: the first asker computes, the others wait for what it finds. Used
on the device thread only.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from instructors.redis_cache import RedisCache
from protocol.limits import MIB

VALUE_BYTES_MAX = 16 * MIB  # of one result; larger ones are handed to who waits for them, but not kept
ENTRY_BYTES = 320  # what an entry takes beside its value (275 were measured)


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes
    expires_at: float  # monotonic, seconds


class MemoryCache:
    """The least recently used values go when there is no room; `nbytes` is never above `bytes_max`."""

    def __init__(self, bytes_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`bytes_max` 0: nothing is kept."""
        self._bytes_max = bytes_max
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> bytes | None:
        """The value, which counts as used now; None where there is none, or its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock() >= entry.expires_at:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        """Keep it for so long, if it is not too large."""
        if key in self._entries:
            self._drop(key)
        size = len(value) + ENTRY_BYTES
        if len(value) > VALUE_BYTES_MAX or size > self._bytes_max:
            return
        while self.nbytes + size > self._bytes_max:
            self._drop(next(iter(self._entries)))
        self._entries[key] = _Entry(value, self._clock() + ttl_s)
        self.nbytes += size

    def _drop(self, key: bytes) -> None:
        self.nbytes -= len(self._entries.pop(key).value) + ENTRY_BYTES


class Claim:
    """Somebody's wish for a result.

    `value` is the result, once there is one; `error` what ended its computation instead. While both are None, `mine`
    tells whether it is this asker who is to compute it and to say how that ended, by `settle` or `fail`; the others
    wait until `changed` is called. An asker that leaves early calls `close`: then the next one computes.
    """

    __slots__ = ("_changed", "_flight", "error", "mine", "value")

    def __init__(self, flight: "_Flight | None", changed: Callable[[], None]) -> None:
        self._flight = flight
        self._changed = changed
        self.value: bytes | None = None
        self.error: BaseException | None = None
        self.mine = False

    def settle(self, value: bytes) -> None:
        """The result, for all who ask for it. Ignored where it is not this asker's to tell."""
        if self._flight is not None and self.mine:
            self._flight.settle(value)

    def fail(self, error: BaseException) -> None:
        """The computation failed, and would for the others, too."""
        if self._flight is not None and self.mine:
            self._flight.land(None, error)

    def close(self) -> None:
        """It is no longer wanted here. May be called twice, and after the end."""
        if self._flight is not None:
            self._flight.leave(self)

    def take(self, value: bytes | None, error: BaseException | None) -> None:
        self._flight, self.value, self.error, self.mine = None, value, error, False
        self._changed()

    def become_mine(self) -> None:
        self.mine = True
        self._changed()

    def leave(self) -> None:
        self._flight, self.mine = None, False


class _Flight:
    """One computation under way, and those who ask for it, in the order in which they came."""

    def __init__(self, cache: "ResultsCache", key: bytes, ttl_s: float) -> None:
        self.key = key
        self.ttl_s = ttl_s
        self._cache = cache
        self._claims: dict[Claim, None] = {}
        self.looking = False  # Redis was asked

    @property
    def wanted(self) -> bool:
        return bool(self._claims)

    def join(self, changed: Callable[[], None]) -> Claim:
        claim = Claim(self, changed)
        self._claims[claim] = None
        return claim

    def go_on(self) -> None:
        """Redis does not have it, or nobody computes it any more: the first asker is to."""
        self.looking = False
        if not self._claims:
            self._cache.forget(self)
            return
        next(iter(self._claims)).become_mine()

    def leave(self, claim: Claim) -> None:
        del self._claims[claim]
        was_mine = claim.mine
        claim.leave()
        if was_mine:
            self.go_on()

    def settle(self, value: bytes) -> None:
        self._cache.keep(self, value)
        self.land(value, None)

    def land(self, value: bytes | None, error: BaseException | None) -> None:
        self._cache.forget(self)
        claims, self._claims = self._claims, {}
        for claim in claims:
            claim.take(value, error)


def _nothing() -> None:
    """Called where nobody waits to hear."""


class ResultsCache:
    """Counts since the start: `hits` were in memory, `shared_hits` in Redis, `joined` waited for an equal request's,
    and `misses` were to be computed."""

    def __init__(self, bytes_max: int, redis_url: str | None, call_soon: Callable[[Callable[[], None]], None]) -> None:
        """`bytes_max`: of what is kept in memory. `call_soon` has a function called on the device thread; it is used
        where there is Redis. Raises RedisUnusable."""
        self._memory = MemoryCache(bytes_max)
        self._redis = RedisCache(redis_url, lambda: call_soon(self._collect)) if redis_url else None
        self._flights: dict[bytes, _Flight] = {}
        self.hits = self.shared_hits = self.joined = self.misses = 0

    def claim(self, key: bytes, ttl_s: float, changed: Callable[[], None] = _nothing) -> Claim:
        """Ask for a result, which is kept for `ttl_s` if it is computed now. `changed` is called on the device thread,
        never within this call."""
        value = self._memory.get(key)
        if value is not None:
            self.hits += 1
            claim = Claim(None, changed)
            claim.value = value
            return claim
        flight = self._flights.get(key)
        if flight is not None:
            self.joined += 1
            return flight.join(changed)
        flight = self._flights[key] = _Flight(self, key, ttl_s)
        claim = flight.join(changed)
        flight.looking = self._redis is not None and self._redis.ask(key)
        claim.mine = not flight.looking
        self.misses += claim.mine
        return claim

    def _collect(self) -> None:
        """Take what Redis answered."""
        assert self._redis is not None
        for key, value, left_s in self._redis.answers():
            flight = self._flights.get(key)
            if flight is None or not flight.looking:
                continue
            if value is None:
                self.misses += flight.wanted
                flight.go_on()
            else:
                self.shared_hits += 1
                self._memory.put(key, value, min(left_s, flight.ttl_s))
                flight.land(value, None)

    def keep(self, flight: _Flight, value: bytes) -> None:
        self._memory.put(flight.key, value, flight.ttl_s)
        if self._redis is not None:
            self._redis.put(flight.key, value, flight.ttl_s)

    def forget(self, flight: _Flight) -> None:
        self._flights.pop(flight.key, None)

    def facts(self) -> dict[str, Any]:
        """For statistics. `state`: "memory" (no Redis is configured), "ok", or "degraded" while Redis is away."""
        return {
            "state": "memory" if self._redis is None else self._redis.state,
            "entries": len(self._memory),
            "nbytes": self._memory.nbytes,
            "hits": self.hits,
            "shared_hits": self.shared_hits,
            "joined": self.joined,
            "misses": self.misses,
        }

    def close(self) -> None:
        """Let go of Redis."""
        if self._redis is not None:
            self._redis.close()
