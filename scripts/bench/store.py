"""How fast the store accepts jobs, beside bare sqlite3 on the same disk, and what its thread costs the broker's.

    python -m scripts.bench.store [--pairs 15] [--seconds 0.4] [--folder .]

Accepting: 64 jobs in flight, each submitted again when its row is on disk; bare: one transaction of 64 such rows
after another, same table, same pragmas. Both in turn, `--pairs` times.
Cost: a thread that only counts runs beside the writer; the time it loses to the GIL is divided by the jobs written,
each with all its rows (accepted, assigned, completed: 3 job statements, 3 events). It means something only on a
machine that is otherwise quiet.
"""

import argparse
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from itertools import count
from pathlib import Path

from orchestrator.store import EventRow, JobRow, JobUpdate, Outcome, Store, writer
from orchestrator.store.statements import Statements

IN_FLIGHT = 64
CALIBRATION_TURNS = 5000
NUMBERS = count()


def job_row() -> JobRow:
    job_id = f"{next(NUMBERS):012x}-{uuid.uuid4()}"
    return JobRow(
        job_id=job_id, tenant="default", request_id=job_id, fingerprint=b"f" * 32, action="inference.text2img",
        session_id=None, priority=4, durable=True, status="pending", attempt=0, losses=0, created_ms=1_760_000_000_000,
        queue_timeout_ms=None, run_timeout_ms=None, deadline_ms=None, worker_pin=None, device_pin=None, worker_id=None,
        traceparent=None, data=b"d" * 200, attachments=b"\x90",
    )  # fmt: skip


def whole_life(row: JobRow) -> list[list]:
    """The three writes of a job."""
    job_id, at = row.job_id, row.created_ms
    events = [EventRow("default", job_id, seq, at, "state", b"e" * 24) for seq in (1, 2, 3)]
    return [
        [row, events[0]],
        [JobUpdate(job_id, "default", "processing", 1, 0, "worker-1"), events[1]],
        [Outcome(job_id, "default", "completed", 1, at, "worker-1", b"r" * 300, b"\x90"), events[2]],
    ]


def bare(path: Path, seconds: float) -> float:
    """Jobs per second of bare sqlite3."""
    store = Store(f"sqlite:///{path}", lambda: None)
    text = Statements(store._engine.dialect).new_job.text
    store.close(5)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        rows = [job_row() for _ in range(IN_FLIGHT)]
        connection.execute("BEGIN")
        connection.executemany(text, rows)
        connection.execute("COMMIT")
        done += len(rows)
    rate = done / (time.perf_counter() - start)
    connection.close()
    return rate


def accepting(path: Path, seconds: float) -> float:
    """Jobs per second through the store, from this thread."""
    woken = threading.Event()
    store = Store(f"sqlite:///{path}", woken.set)
    for number in range(IN_FLIGHT):
        store.write([job_row()], number)
    store.flush()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        woken.wait()
        woken.clear()
        while store.completions:
            completion = store.completions.popleft()
            assert completion.error is None
            done += 1
            store.write([job_row()], completion.token)
        store.flush()
    rate = done / (time.perf_counter() - start)
    store.close(5)
    return rate


def cost_per_job(path: Path, jobs: int) -> tuple[float, float, float]:
    """(us of GIL, us of CPU in the writer thread, jobs per second), while this thread counts and wants the GIL.

    The CPU includes SQLite's own work, done without the GIL: it is an upper bound that other load does not blur.
    """
    lives = [whole_life(job_row()) for _ in range(jobs)]
    store = Store(f"sqlite:///{path}", lambda: None)
    thread = store._writer._thread.ident
    assert thread is not None
    cpu_clock = time.pthread_getcpuclockid(thread)
    writer.GROUP_WRITES_MAX = IN_FLIGHT
    before_s = _count(lambda turns: turns < CALIBRATION_TURNS)[2]
    cpu_s = time.clock_gettime(cpu_clock)
    for stage in range(3):
        for life in lives:
            store.write(life[stage])
    turns, wall_s, unpreempted_s = _count(lambda turns: store.queued_writes > 0)
    cpu_s = time.clock_gettime(cpu_clock) - cpu_s
    after_s = _count(lambda turns: turns < CALIBRATION_TURNS)[2]
    writer.GROUP_WRITES_MAX = 2048
    store.close(5)
    lost_s = unpreempted_s - turns * (before_s + after_s) / 2 / CALIBRATION_TURNS
    return lost_s / jobs * 1e6, cpu_s / jobs * 1e6, jobs / wall_s


def _count(going: Callable[[int], bool]) -> tuple[int, float, float]:
    """Count while `going`: (turns, seconds, seconds less those spent waiting for a CPU, which Linux tells)."""
    turns, wall, preempted_ns = 0, time.perf_counter(), _preempted_ns()
    while going(turns):
        turns += 1
        for _ in range(2000):
            pass
    wall = time.perf_counter() - wall
    return turns, wall, wall - (_preempted_ns() - preempted_ns) / 1e9


def _preempted_ns() -> int:
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as the orchestrator does
    ratios = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for pair in range(options.pairs):
            limit = bare(Path(folder, f"bare{pair}.db"), options.seconds)
            rate = accepting(Path(folder, f"store{pair}.db"), options.seconds)
            ratios.append(rate / limit)
            print(f"bare {limit:8.0f}/s   store {rate:8.0f}/s   ratio {rate / limit:.2f}")
        print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
        for turn in range(3):
            gil_us, cpu_us, rate = cost_per_job(Path(folder, f"cost{turn}.db"), 10_000)
            print(f"beside a busy thread: {gil_us:.1f} us of GIL, {cpu_us:.1f} us of CPU a job, {rate:.0f} jobs/s")


if __name__ == "__main__":
    main()
