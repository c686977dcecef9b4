"""Run the scheduler core under a virtual clock with faults, many seeds, and report what broke.

    python scripts/simulate.py --seeds 10000            seeds 0 to 9999, on all cores
    python scripts/simulate.py --seed 17 --trace        one seed, every event and command printed

Ends with 1 and the line that replays it if a seed fails.
"""

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.world import Report, simulate

CHUNK = 20


def replay_line(seed: int) -> str:
    return f"python scripts/simulate.py --seed {seed} --trace"


def run_one(seed: int) -> Report | tuple[int, str]:
    """The seed's report, or how it failed."""
    try:
        return simulate(seed)
    except Exception:
        return seed, traceback.format_exc(limit=-3)


def run_many(first: int, seeds: int, jobs: int) -> int:
    """Exit code: 0 if all passed."""
    counts: Counter[str] = Counter()
    failed: list[int] = []
    events = virtual_ms = 0
    started = time.perf_counter()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with multiprocessing.Pool(jobs) as pool, Progress(*columns) as progress:
        task = progress.add_task("simulating", total=seeds)
        chunk = min(CHUNK, 1 + seeds // jobs)
        for result in pool.imap_unordered(run_one, range(first, first + seeds), chunksize=chunk):
            progress.advance(task)
            if isinstance(result, Report):
                counts.update(result.counts)
                events += result.events
                virtual_ms += result.virtual_ms
                continue
            seed, problem = result
            failed.append(seed)
            progress.console.print(problem, f"seed {seed} failed, replay it:\n    {replay_line(seed)}", markup=False)
    elapsed_s = time.perf_counter() - started
    print(f"{seeds} seeds, {len(failed)} failed, in {elapsed_s:.1f} s on {jobs} cores")
    print(f"{seeds / elapsed_s:.1f} seeds/s, {events / elapsed_s:,.0f} events/s, {virtual_ms / 3.6e6:,.1f} h simulated")
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--trace", action="store_true", help="print every event and command; with --seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    if options.seed is not None:
        print(simulate(options.seed, options.trace))
        return 0
    return run_many(options.first, options.seeds, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
