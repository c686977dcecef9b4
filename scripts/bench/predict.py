"""Predictions through Atelier beside the same model in other servers, and in onnxruntime alone.

A small network (128-512-512-10, float32) on the CPU with one thread, batches of up to 32 requests everywhere. Two
client processes ask each server in turn, so that a noisy machine tells on all; figures are medians of rounds, ratios of
the same round. The other servers live in a virtual environment of their own. Run it with: make bench-predict
"""

import argparse
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnxruntime

from orchestrator.client import Client
from scripts.bench.localisation_load import many_clients
from scripts.bench.predict_load import WIDTH, Clients, HttpClient, OurClient, Run, numbers
from scripts.bench.random_models import mlp

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
CLIENTS = 2
START_S = 60
MANIFEST = "[batching]\nmax_batch_size = {}\n[onnx]\nintra_op_threads = 1\n[cache]\nenabled = false\n"
SINGLE, MANY = Run(2000, 32), Run(300, 8, items=32)  # of each client process
OPEN_LOOP = Run(1500, 0, per_s=500)
GOALS = {"single": 0.8, "32 items": 1.0}
OVERHEAD_GOAL_MS, LOCALISATION_LIMIT_MS, LOCALISATION_GOAL_MS = 5.0, 500.0, 50.0


@contextmanager
def atelier(folder: Path) -> Iterator[str]:
    """Orchestrator and worker with the network and the shipped localisation model; the clients' endpoint."""
    models, endpoint = folder / "models", f"ipc://{folder}/run/client"
    (models / "mlp").mkdir(parents=True)
    mlp(models / "mlp/model.onnx")
    (models / "mlp/model.toml").write_text(MANIFEST.format(32 * MANY.items))
    shutil.copytree(ROOT / "models/localisation", models / "localisation")
    environment = os.environ | {
        "ATELIER_RUNTIME_DIR": f"{folder}/run",
        "ATELIER_DATA_DIR": f"{folder}/data",
        "ATELIER_CLIENT_ENDPOINTS": endpoint,
        "ATELIER_LOG_LEVEL": "warning",
    }
    worker = [sys.executable, "-m", "worker", "--connect", f"ipc://{folder}/run/workers", "--device", "cpu"]
    worker += ["--models", str(models), "--log-level", "warning"]
    processes = [
        subprocess.Popen([sys.executable, "-m", "orchestrator"], env=environment),
        subprocess.Popen(worker),
    ]
    try:
        with Client(endpoint, connect_timeout_s=START_S, timeout_s=START_S) as client:
            client.predict("mlp", {"x": np.zeros((1, WIDTH), np.float32)})
        yield endpoint
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def peer(name: str, python: Path, model: Path, port: int) -> Iterator[int]:
    """Another server with the network; its port."""
    environment = os.environ | {
        "BENCH_MODEL": str(model),
        "BENCH_PORT": str(port),
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_PORT": str(port),
        "MOSEC_LOG_LEVEL": "error",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(python), f"{name}_server.py"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=PEERS, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        _wait_for(port, process)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            HttpClient(port, as_json="litserve" in str(process.args)).run(Run(1, 1))
            return
        except (OSError, RuntimeError, EOFError):
            time.sleep(0.2)
    raise RuntimeError("another server did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alone(model: Path, batch: int, seconds: float = 1.0) -> float:
    """Items a second of onnxruntime in this process: what nothing around it can exceed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    x = np.frombuffer(numbers(batch), np.float32).reshape(batch, WIDTH)
    begun, runs = time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        session.run(None, {"x": x})
        runs += 1
    return runs * batch / (time.perf_counter() - begun)


def compare(clients: dict[str, Clients], rounds: int) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """For each kind of request, items a second of each server, round by round."""
    for name, run in (("single", SINGLE), ("32 items", MANY)):
        rates: dict[str, list[float]] = {server: [] for server in clients}
        for _ in range(rounds):
            for server, asking in clients.items():
                rates[server].append(asking.run(run)[0] * run.items)
        yield name, rates


def report(name: str, rates: dict[str, list[float]]) -> None:
    ours = rates["atelier"]
    for server, theirs in rates.items():
        told = f"| {name} | {server} | {statistics.median(theirs):,.0f}"
        if server == "atelier":
            print(f"{told} | | |", flush=True)
            continue
        ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
        ratio = statistics.median(ratios)
        verdict = "for comparison"
        if server == "mosec":
            verdict = f">= {GOALS[name]}: {'met' if ratio >= GOALS[name] else 'NOT met'}"
        print(f"{told} | {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {verdict} |", flush=True)


def report_overhead(clients: Clients) -> None:
    """What is added to computing where requests come at times of their own."""
    _, answers = clients.run(OPEN_LOOP)
    added = [1000 * (whole - part) for whole, part in zip(answers.latencies, answers.computing, strict=True)]
    p95 = float(np.percentile(added, 95))
    verdict = "met" if p95 <= OVERHEAD_GOAL_MS else "NOT met"
    rate = CLIENTS * (OPEN_LOOP.per_s or 0)
    print(f"overhead at an open loop of {rate:,.0f}/s: median {np.median(added):.2f} ms, p95 {p95:.2f} ms", end="")
    print(f" (goal <= {OVERHEAD_GOAL_MS:g} ms: {verdict}); mean batch {np.mean(answers.batches):.1f}")


def report_localisation(endpoint: str) -> None:
    for count, requests in ((100, 30), (1000, 5)):
        latencies, failed = many_clients(endpoint, count, requests)
        p95 = 1000 * float(np.percentile(latencies, 95))
        print(
            f"localisation, {count:,} clients with a request in flight each: p95 {p95:.0f} ms, {failed} failed", end=""
        )
        print(f" (limit {LOCALISATION_LIMIT_MS:g} ms, goal {LOCALISATION_GOAL_MS:g} ms)" if count == 100 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each server, in turn")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="Python of the others")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()},")
    print(f"onnxruntime {onnxruntime.__version__}; {time.strftime('%Y-%m-%d')}; {options.rounds} rounds\n")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        model = mlp(folder / "mlp.onnx")
        for batch in (1, 32):
            print(f"onnxruntime alone, batch {batch}: {alone(model, batch):,.0f} items/s")
        endpoint = stack.enter_context(atelier(folder))
        clients = {"atelier": Clients(CLIENTS, OurClient, endpoint)}
        for name in ("mosec", "litserve") if options.peers.exists() else ():
            port = stack.enter_context(peer(name, options.peers, model, _free_port()))
            clients[name] = Clients(CLIENTS, HttpClient, port, name == "litserve")
        for asking in clients.values():
            stack.callback(asking.close)
            asking.run(Run(200, 8))
        print("\n| requests | server | items/s | Atelier / it (spread) | goal |\n|---|---|---|---|---|")
        for name, rates in compare(clients, options.rounds):
            report(name, rates)
        print()
        report_overhead(clients["atelier"])
        report_localisation(endpoint)


if __name__ == "__main__":
    main()
