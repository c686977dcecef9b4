"""What one event costs the scheduler core, against the length of the queue and the number of workers.

    python scripts/bench/core_scale.py            prints a table and a verdict; exit code 1 if a cost grows too fast
    python scripts/bench/core_scale.py --quick    up to 100,000 jobs

Three events: `submit` (a job joins the queue), `result` (a worker ends a job and gets the next one), `heartbeat`.
The queue mixes 100 tenants, 10 priorities and up to 50 models, of which each worker has 3 loaded. The last table
shows what is not logarithmic: a worker that looks for work compares the heads of all lines, one per action and model.
"""

import argparse
import gc
import random
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.core import Core
from orchestrator.core.model import Cost, Job, Outcome, Requirement
from orchestrator.core.settings import CoreSettings
from protocol.enums import HeldState, Status

TENANTS, PRIORITIES = 100, 10
SAMPLES = 2_000
GROWTH_MAX = 3.0  # a hundredfold size: log2 grows 1.5-fold, a scan 100-fold; the rest is cache misses
Row = dict[str, float]


class Load:
    """A core with busy workers and a queue behind them. `light_slots` of each worker; with some, every other job is
    light."""

    def __init__(self, jobs: int, workers: int, models: int, light_slots: int = 0) -> None:
        self._random = random.Random(1)
        self._models = [f"model-{number}" for number in range(models)]
        self._light_slots = light_slots
        self._serial = 0
        self._running: list[tuple[str, str, int]] = []  # peer, job_id, attempt
        self.now_ms = 1_000_000
        self.core = Core(CoreSettings(queue_jobs_max=10**9, connection_requests_max=10**9))
        for number in range(workers):
            self.feed(self._hello(f"w{number}"))
        for _ in range(workers * (1 + 2 * light_slots) + jobs):
            self.feed(self.submit())

    def feed(self, event: e.Event) -> None:
        for command in self.core.handle(self.now_ms, event):
            if isinstance(command, c.Assign):
                self._running.append((str(command.peer), command.job.job_id, command.attempt))

    def _hello(self, name: str) -> e.WorkerHello:
        models = frozenset(self._models) or None
        resident = frozenset(self._random.sample(self._models, 3)) if self._models else frozenset()
        actions = frozenset(("make",))
        return e.WorkerHello(
            f"p-{name}", name, name, "cuda:0", "gpu", 10**10, 10**9, actions, models, 1, resident,
            light_slots=self._light_slots,
        )  # fmt: skip

    def submit(self) -> e.Submit:
        self._serial += 1
        name, light = f"{self._serial:012d}", self._light_slots > 0 and self._serial % 2 == 0
        job = Job(
            job_id=f"j{name}",
            tenant=f"t{self._random.randrange(TENANTS)}",
            request_id=f"r{name}",
            fingerprint=name.encode(),
            requirement=Requirement("make", self._random.choice(self._models) if self._models else None, light=light),
            cost=Cost("make", 20.0),
            priority=self._random.randrange(PRIORITIES),
            durable=False,
            payload=name,
            payload_nbytes=100,
        )
        return e.Submit(job, f"c{self._serial % 1000}")

    def result(self) -> e.WorkerResult:
        place = self._random.randrange(len(self._running))
        self._running[place], self._running[-1] = self._running[-1], self._running[place]
        peer, job_id, attempt = self._running.pop()
        return e.WorkerResult(peer, job_id, attempt, Outcome(Status.COMPLETED), running_ms=5_000)

    def heartbeat(self) -> e.WorkerHeartbeat:
        peer, _, _ = self._random.choice(self._running)
        worker = self.core.fleet.by_peer[peer]
        jobs = [(self.core.jobs[job_id], slot.attempt) for job_id, slot in worker.jobs.items()]
        held = [
            e.Held(job.job_id, attempt, HeldState.RUNNING, job.tenant, job.request_id, job.fingerprint, "make")
            for job, attempt in jobs
        ]
        return e.WorkerHeartbeat(peer, held, 10**9, worker.profile.resident, 10)

    def measure(self) -> Row:
        """Median microseconds per event, one of each kind in turn, so that the queue keeps its length."""
        makers = {"submit": self.submit, "result": self.result, "heartbeat": self.heartbeat}
        spent: dict[str, list[int]] = {name: [] for name in makers}
        for _ in range(SAMPLES):
            self.now_ms += 1
            for name, make in makers.items():
                event = make()
                begun = time.perf_counter_ns()
                self.feed(event)
                spent[name].append(time.perf_counter_ns() - begun)
        row = {name: statistics.median(times) / 1000 for name, times in spent.items()}
        row["worst"] = max(max(times) for times in spent.values()) / 1000
        return row


def show(title: str, size_name: str, rows: dict[int, Row], small: int, large: int) -> bool:
    """Print a table with its verdict; False if a cost grows too fast from `small` to `large`."""
    print(f"\n{title}\n{size_name:>10}  submit  result  heartbeat   worst (µs, medians of {SAMPLES})")
    for size, row in rows.items():
        print(f"{size:>10,}  {row['submit']:6.1f}  {row['result']:6.1f}  {row['heartbeat']:9.1f}  {row['worst']:6.0f}")
    ratios = {name: rows[large][name] / rows[small][name] for name in ("submit", "result", "heartbeat")}
    passed = all(ratio <= GROWTH_MAX for ratio in ratios.values())
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"{large:,} against {small:,}: {told}; {'ok' if passed else 'GROWS TOO FAST'} (limit {GROWTH_MAX})")
    return passed


def memory_per_job(jobs: int = 20_000) -> float:
    """Bytes of the core per queued job, its event and index entries among them, the payload not."""
    load = Load(0, 1, 0)
    events = [load.submit() for _ in range(jobs)]
    gc.collect()
    tracemalloc.start()
    for event in events:
        load.feed(event)
    del events, event
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / jobs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 100,000 jobs")
    longest = 100_000 if parser.parse_args().quick else 1_000_000
    gc.disable()  # as the orchestrator does after its start, so that the figures are the core's own
    lengths = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= longest]
    workers = (20, 200, 2_000)
    ok = []
    for models in (0, 50):
        rows = {size: Load(size, 20, models).measure() for size in lengths}
        ok.append(show(f"20 workers, {models or 'no'} models", "queued", rows, longest // 100, longest))
    rows = {size: Load(10_000, size, 50).measure() for size in workers}
    ok.append(show("10,000 queued jobs, 50 models", "workers", rows, workers[0], workers[-1]))
    rows = {size: Load(10_000, size, 50, light_slots=3).measure() for size in workers}
    ok.append(show("10,000 queued jobs, half of them light, 50 models", "workers", rows, workers[0], workers[-1]))
    rows = {size: Load(-size // 2, size, 50).measure() for size in workers}
    ok.append(show("half the fleet idle, nothing waits, 50 models", "workers", rows, workers[0], workers[-1]))
    rows = {size: Load(10_000, 20, size).measure() for size in (5, 50, 500)}
    show("20 workers, 10,000 queued jobs; a worker looks at each model's line", "models", rows, 5, 50)
    print(f"\nmemory per queued job: {memory_per_job():,.0f} bytes")
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
