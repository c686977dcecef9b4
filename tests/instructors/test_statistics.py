"""What a worker counts of each model, and which of it a heartbeat tells."""

import threading

import pytest

from instructors.statistics import MODELS_MAX, Statistics
from protocol.errors import Cancelled
from protocol.histogram import Histogram, summary
from protocol.limits import HEARTBEAT_MODELS_MAX
from protocol.messages import Heartbeat


def told(statistics: Statistics, known: int = 0) -> dict[str, dict[str, object]]:
    return {str(figures["model_id"]): figures for figures in statistics.news(known)[0]}


def test_everything_is_counted_by_model() -> None:
    statistics = Statistics()
    statistics.loaded("loc:1", 0.25, 700)
    for items in (1, 3):
        statistics.ran("loc:1", 0.010, items)
    statistics.batch("loc:1", 4)
    statistics.failed("loc:1")
    for hit in (True, False, False):
        statistics.cache("loc:1", hit=hit)
    statistics.ran("demo", 1.5)
    figures = told(statistics)["loc:1"]
    assert {name: figures[name] for name in ("inference_count", "failures", "items", "batches", "batched_items")} == {
        "inference_count": 2, "failures": 1, "items": 4, "batches": 1, "batched_items": 4,
    }  # fmt: skip
    assert (figures["cache_hits"], figures["cache_misses"]) == (1, 2)
    assert (figures["loads"], figures["load_ms"], figures["nbytes"]) == (1, 250, 700)
    assert figures["total_us"] == 20_000
    assert told(statistics)["demo"]["inference_count"] == 1


def test_what_is_told_is_a_valid_heartbeat_and_yields_percentiles() -> None:
    statistics = Statistics()
    for number in range(100):
        statistics.ran("loc:1", 0.001 * (number + 1))
    models, upto = statistics.news(0)
    beat = {"memory_free": 1, "quantum_age_ms": 1, "models": models, "models_upto": upto}
    figures = Heartbeat.model_validate(beat).models[0]
    times = summary(Histogram(figures.times, figures.total_us))
    assert times["avg_ms"] == 50.5
    for name, exact_ms in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99)):
        assert times[name] == pytest.approx(exact_ms, rel=0.04)


def test_only_what_changed_is_told_again() -> None:
    statistics = Statistics()
    for model_id in ("a", "b", "c"):
        statistics.ran(model_id, 0.01)
    assert list(told(statistics)) == ["a", "b", "c"]
    _, known = statistics.news(0)
    assert statistics.news(known) == ([], known)
    statistics.failed("b")
    assert list(told(statistics, known)) == ["b"]
    assert told(statistics, known)["b"]["inference_count"] == 1  # all of it, not the change


def test_many_models_are_told_in_turns_and_none_is_left_out() -> None:
    statistics = Statistics()
    names = [f"m{number}" for number in range(3 * HEARTBEAT_MODELS_MAX // 2)]
    for name in names:
        statistics.ran(name, 0.01)
    known, seen = 0, set()
    for _ in range(4):
        for busy in names[: HEARTBEAT_MODELS_MAX // 2]:
            statistics.ran(busy, 0.01)  # some change all the time
        models, known = statistics.news(known)
        assert len(models) <= HEARTBEAT_MODELS_MAX
        seen |= {figures["model_id"] for figures in models}
    assert seen == set(names)


def test_a_reload_is_told_apart_from_a_load() -> None:
    now = 1000.0
    statistics = Statistics(lambda: now)
    statistics.loaded("a", 0.5, 10)
    assert told(statistics)["a"]["reloaded_at_ms"] is None
    now = 2000.0
    statistics.reloaded("a", 20)
    figures = told(statistics)["a"]
    assert (figures["loaded_at_ms"], figures["reloaded_at_ms"]) == (2_000_000, 2_000_000)
    assert (figures["loads"], figures["load_ms"], figures["nbytes"]) == (2, 500, 20)
    assert figures["since_ms"] == 1_000_000


def test_a_failure_is_the_models_own() -> None:
    statistics = Statistics()
    with statistics.timed("a"):
        pass
    with pytest.raises(ZeroDivisionError), statistics.timed("a"):
        raise ZeroDivisionError
    with pytest.raises(Cancelled), statistics.timed("a"):
        raise Cancelled
    assert (told(statistics)["a"]["inference_count"], told(statistics)["a"]["failures"]) == (1, 1)


def test_models_are_bounded() -> None:
    statistics = Statistics()
    for number in range(MODELS_MAX + 5):
        statistics.ran(f"m{number}", 0.01)
    assert len(statistics._models) == MODELS_MAX
    assert "m4" not in statistics._models


def test_one_thread_counts_while_another_tells() -> None:
    statistics = Statistics()

    def count() -> None:
        for _ in range(20_000):
            statistics.ran("a", 0.001)
            statistics.batch("a", 2)

    device = threading.Thread(target=count)
    device.start()
    counts = []
    while device.is_alive():
        for figures in told(statistics).values():
            times = Histogram(figures["times"], 0)  # type: ignore[arg-type]
            assert times.count == figures["inference_count"]
            counts.append(figures["inference_count"])
    device.join()
    assert counts == sorted(counts)
    assert told(statistics)["a"]["batched_items"] == 40_000
