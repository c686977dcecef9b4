"""Requests shared out by hash: evenly, stickily, and with no more moves than a change asks for."""

from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.registry.state import ANY, Policy, Split
from orchestrator.registry.traffic import Candidate, Site, choose, fraction_of, pick

KEYS = [f"session-{number}" for number in range(10_000)]


def shares(weights: dict[str, float], name: str = "m") -> dict[str, str]:
    """key -> version."""
    splits = [Split(version, weight) for version, weight in weights.items()]
    return {key: pick(splits, name, key) for key in KEYS}


def chi_square(found: dict[str, str], weights: dict[str, float]) -> float:
    counts, total = Counter(found.values()), sum(weights.values())
    expected = {version: len(KEYS) * weight / total for version, weight in weights.items()}
    return sum((counts[version] - count) ** 2 / count for version, count in expected.items())


@pytest.mark.parametrize(
    ("weights", "limit"),  # of chi-square at 0.1 %, for the versions less one degrees of freedom
    [
        ({"1": 50.0, "2": 50.0}, 10.83),
        ({"1": 90.0, "2": 10.0}, 10.83),
        ({"1": 99.0, "2": 1.0}, 10.83),
        ({"1": 70.0, "2": 20.0, "3": 10.0}, 13.82),
        ({str(version): 10.0 for version in range(10)}, 27.88),
    ],
)
def test_ten_thousand_keys_are_shared_as_the_weights_say(weights: dict[str, float], limit: float) -> None:
    assert chi_square(shares(weights), weights) < limit


def test_a_chi_square_this_large_would_tell_wrong_weights() -> None:
    assert chi_square(shares({"1": 90.0, "2": 10.0}), {"1": 88.0, "2": 12.0}) > 10.83


def test_a_key_is_always_at_the_same_version() -> None:
    assert shares({"1": 90.0, "2": 10.0}) == shares({"2": 10.0, "1": 90.0})


def test_models_share_their_keys_out_independently() -> None:
    one, other = shares({"1": 50.0, "2": 50.0}), shares({"1": 50.0, "2": 50.0}, name="other")
    assert 0.47 < sum(one[key] == other[key] for key in KEYS) / len(KEYS) < 0.53


def test_twice_the_weight_moves_only_the_keys_it_must() -> None:
    before, after = shares({"1": 90.0, "2": 10.0}), shares({"1": 80.0, "2": 20.0})
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {(before[key], after[key]) for key in moved} == {("1", "2")}
    assert 0.09 < len(moved) / len(KEYS) < 0.11


def test_a_version_that_keeps_its_weight_gives_no_key_to_another_that_does() -> None:
    before = shares({"1": 40.0, "2": 30.0, "3": 20.0, "4": 10.0})
    after = shares({"1": 30.0, "2": 30.0, "3": 20.0, "4": 20.0})
    kept = {"2", "3"}
    moves = Counter((before[key], after[key]) for key in KEYS if before[key] != after[key])
    assert all(one == "1" or other == "4" for one, other in moves), moves
    assert not any({one, other} <= kept for one, other in moves)


def test_a_version_taken_away_leaves_the_others_where_they_were() -> None:
    before, after = shares({"1": 50.0, "2": 30.0, "3": 20.0}), shares({"1": 62.5, "2": 37.5})
    assert all(before[key] in (after[key], "3") for key in KEYS)


def test_a_fraction_is_a_number_between() -> None:
    assert all(0 < fraction_of(key) < 1 for key in KEYS)
    assert fraction_of("a", "b") != fraction_of("ab", "")


CPU, GPU, OTHER_GPU = Site("cpu", "cpu"), Site("cuda:0", "NVIDIA H200"), Site("cuda:1", "NVIDIA H200")
FAST = Candidate("fast", [GPU], latency_ms=50, cost=4.0)
SLOW = Candidate("slow", [CPU, GPU], latency_ms=500, cost=1.0)
NEW = Candidate("new", [CPU])
AWAY = Candidate("away", [])


def chosen(*chain: Candidate, retry: bool = False, **policy: object) -> str | None:
    found = choose(chain, replace(ANY, **policy), lambda _: retry)  # type: ignore[arg-type]
    return found.model_id if found is not None else None


def test_the_first_that_a_worker_could_run() -> None:
    found = choose([AWAY, SLOW, AWAY, FAST, NEW], ANY, lambda _: False)
    assert found is not None
    assert (found.model_id, found.rest, found.device_ids) == ("slow", ["fast", "new"], None)
    assert chosen(AWAY) is None


def test_a_slow_one_is_passed_over_where_a_faster_one_follows() -> None:
    assert chosen(SLOW, FAST, latency_ms_max=100) == "fast"
    assert chosen(SLOW, NEW, FAST, latency_ms_max=100) == "new"  # how slow that is, nobody knows yet
    assert chosen(SLOW, FAST, latency_ms_max=500) == "slow"
    assert chosen(SLOW, FAST, latency_ms_max=10) == "fast"  # all are too slow: then the fastest


def test_a_slow_one_is_measured_again_now_and_then() -> None:
    assert chosen(SLOW, FAST, latency_ms_max=100, retry=True) == "slow"


def test_devices_are_strict() -> None:
    assert chosen(NEW, SLOW, devices=("cuda",)) == "slow"
    assert chosen(NEW, SLOW, devices=("cuda:1",)) is None
    assert chosen(NEW, SLOW, devices=("NVIDIA H200",)) == "slow"
    both = Candidate("both", [CPU, GPU, OTHER_GPU])
    found = choose([both], Policy(devices=("cuda",)), lambda _: False)
    assert found is not None
    assert found.device_ids == ["cuda:0", "cuda:1"]


def test_cost_is_strict() -> None:
    assert chosen(FAST, SLOW, cost_max=2) == "slow"
    assert chosen(FAST, NEW, cost_max=2) is None  # what it costs is not told
