"""The core under a virtual clock with faults: 60 seeds here, `make simulate SEEDS=10000` by hand."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core import fleet, workers
from orchestrator.core.core import Core
from orchestrator.core.fleet import Fleet, Pool
from orchestrator.core.lifecycle import Lifecycle
from orchestrator.core.placement import Placement
from orchestrator.core.queue import Queue
from orchestrator.core.states import JobState
from orchestrator.core.workers import Workers
from scripts.simulate import replay_line
from tests.simulation.world import simulate

ROOT = Path(__file__).parents[2]
SEEDS = 60
SUBMIT = Lifecycle.submit
CANDIDATE = Pool.candidate
TELL_DRAIN = Workers._tell_drain
LINES = Queue.lines


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_job_ends_whatever_breaks(seed: int) -> None:
    try:
        report = simulate(seed)
    except Exception as error:
        error.add_note(f"replay it: {replay_line(seed)}")
        raise
    assert report.jobs > 0
    assert report.events > 100


def test_a_seed_replays_in_another_process() -> None:
    """To the letter, also where sets come in another order."""
    command = [sys.executable, "scripts/simulate.py", "--seed", "1", "--trace"]
    traces = [
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": order}, capture_output=True, text=True, check=True
        ).stdout
        for order in ("1", "2")
    ]
    assert traces[0].count("\n") > 200
    assert traces[0] == traces[1]


# What the simulation is worth: each of these breaks one rule of the core, and must be noticed.


def _retire_only(self: Workers, event: Any) -> None:
    worker = self._core.fleet.by_peer.get(event.peer)
    if worker is not None:
        self._retire(worker)


def _take_twice(self: Lifecycle, event: Any) -> None:
    self._core.jobs_by_request.pop(event.job.key, None)
    SUBMIT(self, event)


def _oldest(self: Queue, lines: Any, resident: Any, now_ms: int) -> Any:
    entries = [line.best(now_ms, self._aging_ms)[1] for line in lines]
    return min(entries, key=lambda entry: entry.ticket).job if entries else None


def _tell_once(self: Workers, worker: Any) -> None:
    if not worker.draining:
        TELL_DRAIN(self, worker)


MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "no fencing": (Workers, "_holds", lambda self, worker_id, job, attempt: job.state is JobState.PROCESSING),
    "no fence for what is not wanted": (Workers, "_fence", lambda *_: None),
    "a lost assign is never missed": (workers, "MISSED_HEARTBEATS", 10**9),
    "no result is acknowledged": (Lifecycle, "finish", lambda self, job, outcome, _: self._end(job, outcome)),
    "goodbye drops what was held": (Workers, "goodbye", _retire_only),
    "a lost lease drops what was held": (Workers, "_lose", lambda self, worker: self._retire(worker)),
    "leases never end": (Workers, "_lease_due", lambda self, worker: None),
    "a late stop is published": (Workers, "_passing", lambda self, job, code: code.retryable),
    "slots are not freed": (Workers, "_vacate", lambda *_: None),
    "a failed settle is not repeated": (Lifecycle, "settle_failed", lambda *_: None),
    "told although the disk refused it": (
        Lifecycle,
        "settle_failed",
        lambda self, event: self._publish(self._core.jobs[event.job_id]),
    ),
    "the same request makes a new job": (Lifecycle, "submit", _take_twice),
    "priority is ignored": (Queue, "best", _oldest),
    "the best is left waiting": (Queue, "best", lambda *_: None),
    "exclusive jobs get company": (
        Pool,
        "candidate",
        lambda self, need: CANDIDATE(self, need._replace(exclusive=False)),
    ),
    "freed workers are not filled": (Placement, "freed", lambda *_: None),
    "a drain is told once": (Workers, "_tell_drain", _tell_once),
    "retries are forgotten": (Lifecycle, "requeue", lambda *_: None),
    "grown lines are not placed": (Placement, "_place_next", lambda self: self._grown.clear()),
    "any job takes a light slot": (fleet, "rooms", lambda _, urgent: fleet.ROOMS[: 3 if urgent else 2]),
    "light jobs wait for a slot": (Queue, "lines", lambda self, worker_id, light_only=False: LINES(self, worker_id)),
    "running time is not counted down": (Fleet, "vacate", lambda self, worker, job_id: worker.jobs.pop(job_id, None)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, broken = MUTATIONS[name]
    monkeypatch.setattr(owner, attribute, broken)
    assert _noticed(simulate), f"60 seeds pass although {name}"


def _noticed(run: Callable[[int], Any]) -> bool:
    for seed in range(SEEDS):
        try:
            run(seed)
        except Exception:
            return True
    return False


def test_dropped_answers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer in twenty is not given."""
    handle, count = Core.handle, 0

    def forgetful(self: Core, now_ms: int, event: Any) -> list[Any]:
        nonlocal count
        commands = handle(self, now_ms, event)
        kept = []
        for command in commands:
            count += type(command).__name__ == "Answer"
            if type(command).__name__ != "Answer" or count % 20:
                kept.append(command)
        return kept

    monkeypatch.setattr(Core, "handle", forgetful)
    assert _noticed(simulate)
