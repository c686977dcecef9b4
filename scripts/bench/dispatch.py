"""What the orchestrator costs: jobs through it beside the same messages through ZeroMQ's own C proxy.

Client, orchestrator (or proxy) and worker are processes of their own on ipc sockets. Each measurement is one of a
pair, raw and Atelier, run one after the other; the figure is the median of the pairs' ratios, with their spread,
so that a noisy machine tells on both sides. Two rates stand beside a bare Python loop as well: it reads and writes
each header and does nothing else, so it is the limit of any orchestrator whose sockets are in Python's hands.
Run it with: make bench-dispatch
"""

import argparse
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import zmq

from protocol.codec import pack, unpack_header
from protocol.ids import new_id
from protocol.sockets import make_socket
from scripts.bench.store import bare

MIB = 1024 * 1024
GOALS = {
    "jobs/s at 64 in flight": (">=", 0.25),
    "median latency at 1 in flight": ("<=", 2.0),
    "MB/s of 1 MiB replies at 8 in flight": (">=", 0.8),
    "accepted jobs/s at 64 in flight": (">=", 0.3),
}
CPU_GOAL_US = 100


def raw_proxy(front: str, back: str) -> None:
    """The limit: frames from one socket to the other, in C."""
    context = zmq.Context()
    frontend, backend = make_socket(context, zmq.ROUTER), make_socket(context, zmq.DEALER)
    frontend.bind(front)
    backend.bind(back)
    zmq.proxy(frontend, backend)


def python_loop(front: str, back: str) -> None:
    """The same in Python at its barest: headers are read and written, nothing is checked or remembered."""
    context, poller, nowait = zmq.Context(), zmq.Poller(), int(zmq.DONTWAIT)
    frontend, backend = make_socket(context, zmq.ROUTER), make_socket(context, zmq.DEALER)
    frontend.bind(front)
    backend.bind(back)
    other = {frontend: backend, backend: frontend}
    for socket in other:
        poller.register(socket, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            with suppress(zmq.Again):
                while True:
                    identity, header = socket.recv_multipart(nowait)
                    other[socket].send_multipart([identity, pack(unpack_header(header))], nowait)


def raw_worker(back: str) -> None:
    """Echoes every message; one with an empty frame at its end gets a large reply."""
    socket = make_socket(zmq.Context(), zmq.DEALER)
    socket.connect(back)
    while True:
        frames = socket.recv_multipart(copy=False)
        if len(frames[-1]) == 0:
            frames[-1] = bytes(MIB)
        socket.send_multipart(frames, copy=False)


class Raw:
    """The load through a proxy."""

    def __init__(self, folder: Path, proxy: Callable[[str, str], None]) -> None:
        front, back = f"ipc://{folder}/{proxy.__name__}-front", f"ipc://{folder}/{proxy.__name__}-back"
        spawn = multiprocessing.get_context("spawn")
        self._processes = [
            spawn.Process(target=proxy, args=(front, back), daemon=True),
            spawn.Process(target=raw_worker, args=(back,), daemon=True),
        ]
        for process in self._processes:
            process.start()
        self.endpoint = front

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


class Atelier:
    """The load through an orchestrator and a worker that only runs `system.noop`."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/run/client"
        environment = os.environ | {
            "ATELIER_RUNTIME_DIR": f"{folder}/run",
            "ATELIER_DATA_DIR": f"{folder}/data",
            "ATELIER_CLIENT_ENDPOINTS": self.endpoint,
            "ATELIER_LOG_LEVEL": "warning",
        }
        (folder / "models").mkdir()
        orchestrator = [sys.executable, "-m", "orchestrator"]
        worker = [sys.executable, "-m", "worker", "--connect", f"ipc://{folder}/run/workers", "--device", "cpu"]
        worker += ["--slots", "64", "--models", f"{folder}/models", "--log-level", "warning"]
        self._processes = [subprocess.Popen(orchestrator, env=environment), subprocess.Popen(worker)]

    def cpu_s(self) -> float:
        times = psutil.Process(self._processes[0].pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def request_header(reply_nbytes: int, wait: bool) -> tuple[str, bytes]:
    """A request's id and its header."""
    request_id = new_id()
    data = {"echo": 1, "reply_nbytes": reply_nbytes}
    return request_id, pack(
        {"protocol": 1, "request_id": request_id, "action": "system.noop", "data": data, "wait": wait}
    )


class Load:
    """One client connection that keeps a number of requests in flight."""

    def __init__(self, endpoint: str, raw: bool) -> None:
        self._raw = raw
        self._socket = make_socket(zmq.Context.instance(), zmq.DEALER)
        self._socket.connect(endpoint)

    def run(self, jobs: int, in_flight: int, reply_nbytes: int = 0, wait: bool = True) -> list[float]:
        """Latencies in seconds of `jobs` requests, in the order of their answers."""
        sent_at: dict[str, float] = {}
        latencies: list[float] = []
        started = 0
        while len(latencies) < jobs:
            while started < jobs and len(sent_at) < in_flight:
                self._send(sent_at, reply_nbytes, wait)
                started += 1
            frames = self._socket.recv_multipart(copy=False)
            header = unpack_header(frames[0].buffer)
            if header.get("kind") == "alive":
                continue
            if header.get("kind") == "response" and not header["success"]:
                raise RuntimeError(header["error"])
            latencies.append(time.perf_counter() - sent_at.pop(header["request_id"]))
        return latencies

    def _send(self, sent_at: dict[str, float], reply_nbytes: int, wait: bool) -> None:
        request_id, header = request_header(reply_nbytes, wait)
        sent_at[request_id] = time.perf_counter()
        self._socket.send_multipart([header, b""] if self._raw and reply_nbytes else [header])

    def rate(self, jobs: int, in_flight: int, reply_nbytes: int = 0, wait: bool = True) -> float:
        begun = time.perf_counter()
        self.run(jobs, in_flight, reply_nbytes, wait)
        return jobs / (time.perf_counter() - begun)


def wait_for_worker(load: Load) -> None:
    load.run(64, 8)  # queued until the worker is there


Pair = tuple[float, float]


def measure(pairs: int, jobs: int, folder: Path) -> Iterator[tuple[str, str, list[Pair]]]:
    """Each measurement's name, unit and (raw, Atelier) pairs."""
    raw, loop, atelier = Raw(folder, raw_proxy), Raw(folder, python_loop), Atelier(folder)
    try:
        raw_load, loop_load = Load(raw.endpoint, raw=True), Load(loop.endpoint, raw=True)
        load = Load(atelier.endpoint, raw=False)
        for target in (raw_load, loop_load, load):
            wait_for_worker(target)

        def paired(one: Callable[[Load], float]) -> list[Pair]:
            return [(one(raw_load), one(load)) for _ in range(pairs)]

        yield "jobs/s at 64 in flight", "1/s", paired(lambda target: target.rate(jobs, 64))
        beside_loop = [(loop_load.rate(jobs, 64), load.rate(jobs, 64)) for _ in range(pairs)]
        yield "the same beside a bare Python loop", "1/s", beside_loop
        cpu_s = atelier.cpu_s()
        load.run(jobs, 64)
        yield "orchestrator CPU per job", "us", [(0.0, (atelier.cpu_s() - cpu_s) / jobs * 1e6)]
        yield (
            "median latency at 1 in flight",
            "us",
            paired(lambda target: statistics.median(target.run(jobs // 10, 1)) * 1e6),
        )
        yield (
            "MB/s of 1 MiB replies at 8 in flight",
            "MB/s",
            paired(lambda target: target.rate(max(64, jobs // 40), 8, MIB) * MIB / 1e6),
        )
        accepted = [
            (bare(folder / f"{pair}.db", seconds=0.5), load.rate(jobs // 2, 64, wait=False)) for pair in range(pairs)
        ]
        yield "accepted jobs/s at 64 in flight", "1/s", accepted
        beside_loop = [(loop_load.rate(jobs // 2, 64), load.rate(jobs // 2, 64, wait=False)) for _ in range(pairs)]
        yield "the same beside a bare Python loop without a disk", "1/s", beside_loop
    finally:
        atelier.close()
        loop.close()
        raw.close()


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield Path(name)


def report(name: str, unit: str, pairs: list[Pair]) -> None:
    mine = [pair[1] for pair in pairs]
    if name == "orchestrator CPU per job":
        verdict = "met" if mine[0] <= CPU_GOAL_US else "NOT met"
        print(f"| {name} | | {mine[0]:,.0f} {unit} | | <= {CPU_GOAL_US} {unit}: {verdict} |", flush=True)
        return
    ratios = sorted(pair[1] / pair[0] for pair in pairs)
    ratio = statistics.median(ratios)
    verdict = "for comparison"
    if name in GOALS:
        sign, goal = GOALS[name]
        met = ratio >= goal if sign == ">=" else ratio <= goal
        verdict = f"{sign} {goal}: {'met' if met else 'NOT met'}"
    raw_median, median = statistics.median(pair[0] for pair in pairs), statistics.median(mine)
    print(
        f"| {name} | {raw_median:,.0f} {unit} | {median:,.0f} {unit} "
        f"| {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {verdict} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="pairs per measurement")
    parser.add_argument("--jobs", type=int, default=8000, help="jobs of one run")
    options = parser.parse_args()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, pyzmq {zmq.__version__},"
    )
    print(f"libzmq {zmq.zmq_version()}; {time.strftime('%Y-%m-%d')}; median of {options.pairs} pairs\n")
    print("| what | raw | Atelier | ratio (spread) | goal |\n|---|---|---|---|---|", flush=True)
    with scratch() as folder:
        for name, unit, pairs in measure(options.pairs, options.jobs, folder):
            report(name, unit, pairs)


if __name__ == "__main__":
    main()
