"""Figures of many workers, from their heartbeats to what `model.info` and `system.stats` tell."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructors.statistics import Statistics
from orchestrator import modelstats
from orchestrator.core import events as e
from orchestrator.core.core import Core
from orchestrator.modelstats import ModelStats
from protocol.limits import INT_MAX
from protocol.messages import ModelFigures
from protocol.schemas.model_figures import DeviceFigures, RunFigures


class Room:
    """Model figures beside a real fleet."""

    def __init__(self) -> None:
        self.core = Core()
        self.stats = ModelStats(self.core.fleet)

    def hello(self, name: str, instance_id: str = "i", **about: Any) -> None:
        if name in self.core.fleet.by_id:
            self.core.handle(0, e.WorkerGoodbye(name))
        fields = {
            "peer": name, "worker_id": name, "instance_id": instance_id, "device_id": "cuda:0", "device_kind": "gpu",
            "memory_total": 100, "memory_free": 50, "actions": frozenset(("make",)), "models": None, "slots": 1,
            "resident": frozenset(),
        }  # fmt: skip
        self.core.handle(0, e.WorkerHello(**{**fields, **about}))

    def beat(self, name: str, *figures: ModelFigures) -> None:
        self.stats.take(self.core.fleet.by_id[name], figures)

    def counts(self, model_id: str = "m") -> tuple[dict[str, int], int]:
        """By connected worker, and in all."""
        info = self.stats.info(model_id)
        shown = {entry["worker_id"]: entry["inference_count"] for entry in info["per_device"]}
        return shown, info["totals"]["inference_count"]


def figures(count: int, since_ms: int = 1, model_id: str = "m", **about: Any) -> ModelFigures:
    times = [[100, count]] if count else []
    return ModelFigures(
        model_id=model_id, since_ms=since_ms, inference_count=count, times=times, total_us=2200 * count, **about
    )


def test_the_latest_figures_of_each_worker_count() -> None:
    room = Room()
    room.hello("a")
    room.hello("b", device_id="cuda:1")
    room.beat("a", figures(3))
    room.beat("b", figures(4))
    room.beat("a", figures(5))
    room.beat("a", figures(5))  # said twice
    assert room.counts() == ({"a": 5, "b": 4}, 9)
    assert room.stats.totals()["inference_count"] == 9
    assert [entry["device_id"] for entry in room.stats.info("m")["per_device"]] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(("instance_id", "since_ms"), [("i2", 2), ("i", 2), ("i2", 1)])
def test_what_a_process_counted_that_ended_is_kept(instance_id: str, since_ms: int) -> None:
    """Another process: of another start of the worker, or of the same one, which keeps its instance_id."""
    room = Room()
    room.hello("a")
    room.beat("a", figures(7))
    room.hello("a", instance_id)
    room.beat("a", figures(2, since_ms))
    assert room.counts() == ({"a": 2}, 9)
    room.beat("a", figures(4, since_ms))
    assert room.counts() == ({"a": 4}, 11)
    assert room.stats.totals()["inference_count"] == 11


def test_a_worker_that_is_away_is_not_shown_but_counted() -> None:
    room = Room()
    room.hello("a")
    room.beat("a", figures(7))
    room.core.handle(0, e.WorkerUnreachable("a"))
    assert room.counts() == ({}, 7)
    room.hello("a")
    room.beat("a", figures(8))
    assert room.counts() == ({"a": 8}, 8)


def test_models_are_told_apart() -> None:
    room = Room()
    room.hello("a")
    room.beat("a", figures(1, model_id="m:1"), figures(2, model_id="m:2"))
    assert (room.counts("m:1")[1], room.counts("m:2")[1], room.counts("m")[1]) == (1, 2, 0)
    assert room.stats.totals()["inference_count"] == 3


def test_all_figures_are_told_as_the_schema_says() -> None:
    room = Room()
    room.hello("a", resident=frozenset(("m",)))
    counted: dict[str, Any] = {
        "failures": 1,
        "items": 8,
        "batches": 2,
        "batched_items": 8,
        "cache_hits": 1,
        "cache_misses": 3,
    }
    when: dict[str, Any] = {"loaded_at_ms": 1_700_000_000_000, "reloaded_at_ms": 1_700_000_060_000}
    room.beat("a", figures(4, loads=2, load_ms=180, nbytes=700, **counted, **when))
    info = room.stats.info("m")
    device = DeviceFigures(**info["per_device"][0])
    assert set(info["per_device"][0]) == set(DeviceFigures.model_fields)
    assert set(info["totals"]) == set(RunFigures.model_fields) == set(room.stats.totals())
    assert (device.mean_batch_size, device.cache_hit_rate, device.avg_ms) == (4.0, 0.25, 2.2)
    assert (device.resident, device.nbytes, device.load_ms, device.loads) == (True, 700, 180, 2)
    assert (device.last_loaded_at, device.last_reloaded_at) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:14:20.000Z")


def test_of_an_unknown_model_nothing_is_told() -> None:
    info = Room().stats.info("m")
    assert info["per_device"] == []
    assert RunFigures(**info["totals"]) == RunFigures()


def test_figures_of_any_size_can_be_told() -> None:
    room = Room()
    for name in ("a", "b"):
        room.hello(name)
        room.beat(name, ModelFigures(model_id="m", since_ms=1, inference_count=INT_MAX, times=[[400, INT_MAX]]))
    assert room.stats.totals()["inference_count"] == INT_MAX


def test_workers_and_models_are_bounded_and_nothing_is_lost_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelstats, "ENTRIES_MAX", 3)
    monkeypatch.setattr(modelstats, "MODELS_MAX", 2)
    room = Room()
    for number in range(8):
        room.hello(f"w{number}")
        room.beat(f"w{number}", figures(1, model_id=f"m{number % 2}"))
    assert len(room.stats._latest) == 3
    assert (room.counts("m0")[1], room.counts("m1")[1]) == (4, 4)
    for number in range(10, 16):
        room.beat("w0", figures(1, model_id=f"m{number}"))
    assert len(room.stats._ended) == 2
    assert room.stats.totals()["inference_count"] == 14


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(("run", "beat", "crash", "start")), st.integers(1, 90)))
)
def test_the_sum_is_what_was_run_however_workers_come_and_go(steps: list[tuple[str, str, int]]) -> None:
    """Real counters on two workers; what a process counted and never told is lost with it, and nothing else."""
    room, now_ms = Room(), 0
    counters: dict[str, Statistics] = {}
    told, untold = 0, {"a": 0, "b": 0}

    def begin(name: str, instance_id: str) -> None:
        nonlocal now_ms
        now_ms += 1
        counters[name] = Statistics(lambda: now_ms / 1000)
        untold[name] = 0
        room.hello(name, instance_id)

    def beat(name: str) -> None:
        models, _ = counters[name].news(0)
        room.beat(name, *(ModelFigures(**entry) for entry in models))

    for name in "ab":
        begin(name, "i0")
    for name, what, ms in steps:
        now_ms += 1
        if what == "run":
            counters[name].ran("m", ms / 1000)
            untold[name] += 1
        elif what == "beat":
            beat(name)
            told, untold[name] = told + untold[name], 0
        else:
            begin(name, "i0" if what == "crash" else f"i{now_ms}")
        assert room.stats.totals()["inference_count"] == room.counts()[1] == told
