"""The cache of results in memory, and one computation for equal requests."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from instructors.results_cache import ENTRY_BYTES, VALUE_BYTES_MAX, MemoryCache, ResultsCache

TTL_S = 60.0


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def never(_: Callable[[], None]) -> None:
    raise AssertionError("without Redis nothing comes from other threads")


@pytest.fixture
def cache() -> ResultsCache:
    return ResultsCache(1 << 20, None, never)


class CacheMachine(RuleBasedStateMachine):
    """Beside a model that keeps everything in a list, the last used at its end."""

    KEYS = st.sampled_from([bytes([number]) * 32 for number in range(8)])
    BYTES_MAX = 10 * ENTRY_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.cache = MemoryCache(self.BYTES_MAX, self.clock)
        self.model: list[tuple[bytes, bytes, float]] = []

    def without(self, key: bytes) -> list[tuple[bytes, bytes, float]]:
        return [entry for entry in self.model if entry[0] != key]

    @rule(key=KEYS, size=st.integers(0, 11 * ENTRY_BYTES), ttl_s=st.floats(0.5, 20))
    def put(self, key: bytes, size: int, ttl_s: float) -> None:
        value = np.random.default_rng(size).bytes(size)
        self.cache.put(key, value, ttl_s)
        self.model = self.without(key)
        if size + ENTRY_BYTES <= self.BYTES_MAX:
            self.model.append((key, value, self.clock.now + ttl_s))
        while sum(len(value) + ENTRY_BYTES for _, value, _ in self.model) > self.BYTES_MAX:
            del self.model[0]

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        found = [entry for entry in self.model if entry[0] == key and self.clock.now < entry[2]]
        self.model = self.without(key) + found
        assert self.cache.get(key) == (found[0][1] if found else None)

    @rule(span_s=st.floats(0, 10))
    def time_passes(self, span_s: float) -> None:
        self.clock.now += span_s

    @invariant()
    def bytes_are_counted_and_bounded(self) -> None:
        assert self.cache.nbytes == sum(len(value) + ENTRY_BYTES for _, value, _ in self.model) <= self.BYTES_MAX
        assert len(self.cache) == len(self.model)


TestMemoryCache = CacheMachine.TestCase
TestMemoryCache.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_value_is_gone_when_its_time_is_over() -> None:
    clock = FakeClock()
    cache = MemoryCache(1 << 20, clock)
    cache.put(b"k", b"v", 60)
    clock.now += 59.9
    assert cache.get(b"k") == b"v"  # reading does not prolong it
    clock.now += 0.1
    assert cache.get(b"k") is None
    assert (len(cache), cache.nbytes) == (0, 0)


def test_too_large_a_value_is_not_kept_and_costs_no_other() -> None:
    cache = MemoryCache(4 * VALUE_BYTES_MAX)
    cache.put(b"small", b"v", 60)
    cache.put(b"large", bytes(VALUE_BYTES_MAX + 1), 60)
    assert cache.get(b"large") is None
    assert cache.get(b"small") == b"v"


def test_on_a_zipf_trace_it_hits_as_often_as_a_simulated_lru() -> None:
    capacity, trace = 500, np.random.default_rng(4).zipf(1.1, 60_000) % 20_000
    cache = ResultsCache(capacity * (100 + ENTRY_BYTES), None, never)
    simulated: OrderedDict[int, None] = OrderedDict()
    simulated_hits = 0
    for item in trace.tolist():
        claim = cache.claim(item.to_bytes(32, "little"), TTL_S)
        if claim.mine:
            claim.settle(bytes(100))
        simulated_hits += item in simulated
        simulated[item] = None
        simulated.move_to_end(item)
        if len(simulated) > capacity:
            simulated.popitem(last=False)
    rate, simulated_rate = cache.hits / len(trace), simulated_hits / len(trace)
    assert 0.3 < simulated_rate < 0.95  # the trace has something to tell
    assert abs(rate - simulated_rate) < 0.01


def test_a_result_is_computed_once_and_then_at_hand(cache: ResultsCache) -> None:
    first = cache.claim(b"k", TTL_S)
    assert first.mine
    assert first.value is None
    first.settle(b"result")
    assert (first.value, first.mine) == (b"result", False)
    second = cache.claim(b"k", TTL_S)
    assert (second.value, second.mine) == (b"result", False)
    assert cache.claim(b"other", TTL_S).mine
    assert (cache.hits, cache.joined, cache.misses) == (1, 0, 2)


def test_a_hundred_equal_requests_wait_for_one_computation(cache: ResultsCache) -> None:
    changed: list[int] = []
    claims = [cache.claim(b"k", TTL_S, lambda number=number: changed.append(number)) for number in range(100)]
    assert [claim.mine for claim in claims] == [True] + [False] * 99
    assert changed == []
    claims[0].settle(b"result")
    assert {claim.value for claim in claims} == {b"result"}
    assert changed == list(range(100))
    assert (cache.joined, cache.misses) == (99, 1)


def test_an_error_is_everybodys_and_is_not_kept(cache: ResultsCache) -> None:
    claims = [cache.claim(b"k", TTL_S) for _ in range(3)]
    error = ValueError("no such thing")
    claims[0].fail(error)
    assert [claim.error for claim in claims] == [error] * 3
    assert cache.claim(b"k", TTL_S).mine  # the next one tries again


def test_when_the_first_asker_leaves_the_next_one_computes(cache: ResultsCache) -> None:
    changed: list[int] = []
    claims = [cache.claim(b"k", TTL_S, lambda number=number: changed.append(number)) for number in range(4)]
    claims[1].close()
    claims[0].close()
    assert [claim.mine for claim in claims] == [False, False, True, False]
    assert changed == [2]
    claims[0].settle(b"of one who has left")
    claims[3].settle(b"of one who was not to compute")
    assert claims[2].value is None
    claims[2].settle(b"result")
    assert [claim.value for claim in claims] == [None, None, b"result", b"result"]


def test_when_all_have_left_the_next_asker_begins_anew(cache: ResultsCache) -> None:
    claims = [cache.claim(b"k", TTL_S) for _ in range(3)]
    for claim in claims:
        claim.close()
        claim.close()
    assert cache.claim(b"k", TTL_S).mine


def test_what_is_too_large_to_keep_still_reaches_those_who_wait(cache: ResultsCache) -> None:
    claims = [cache.claim(b"k", TTL_S) for _ in range(2)]
    large = bytes((1 << 20) + 1)
    claims[0].settle(large)
    assert claims[1].value == large
    assert cache.claim(b"k", TTL_S).mine


def test_without_memory_equal_requests_are_computed_together_all_the_same() -> None:
    cache = ResultsCache(0, None, never)
    first, second = cache.claim(b"k", TTL_S), cache.claim(b"k", TTL_S)
    first.settle(b"result")
    assert second.value == b"result"
    assert cache.facts() == {
        "state": "memory", "entries": 0, "nbytes": 0, "hits": 0, "shared_hits": 0, "joined": 1, "misses": 1,
    }  # fmt: skip
