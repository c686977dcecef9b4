"""The step engine under load on one device, beside stock eager, compiled and in static batches. Seconds by the clock.

Each model has random weights (scripts/bench/random_models.py), in half precision on a GPU; the VAE is included, PNG is
not; medians of 5 after a warm-up.

- Throughput: 1, 4 and 16 like requests at a time; stock one after another (eager, then with its UNet compiled) and in
  batches of as many.
- Arrivals: requests of 15 to 50 steps come at random times, as many as keep stock busy by `LOAD`. The engine takes
  each as it comes. Static batching takes all that wait, up to 16, as one call of as many steps as the longest needs.
  Goodput: pictures a second that were ready within `PATIENCE` times what they take alone.
- Priority: requests of priority 9 come while 16 others run; the 99th percentile of their latency, beside what one takes
  alone, one quantum of the others and one decode.
"""

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from scripts.bench.engine import DEMO, Atelier, Request, Stock, alone
from scripts.bench.random_models import SIZES, build

REPEATS = 5
CONCURRENT = (1, 4, 16)
ROWS_MAX = 32  # as many as the largest static batch has: guidance takes two a picture
STEPS = 20
ARRIVALS = 64
LOAD = 2.0  # of what stock eager can do, one after another
PATIENCE = 5.0
URGENT = 100

Waiting = list[tuple[float, Request]]


def measure(model: str, device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = DEMO.parent
        if model != "demo":
            root = Path(folder)
            build(root / model, model, half=device != "cpu")
        print(f"{model}, {SIZES.get(model, 64)} pixels, {device}", flush=True)
        atelier, stock = Atelier(root, device, ROWS_MAX), Stock(root / model, device)
        atelier.run(alone(0, 1))
        atelier.engine.start()
        throughput(atelier, stock)
        arrivals(atelier, stock)
        urgent(atelier)
        atelier.engine.finish()
        atelier.engine.join()
        compiled(stock)


def like(count: int) -> list[Request]:
    """Requests that differ in prompt and seed."""
    return [alone(number, STEPS)[0] for number in range(count)]


def median_s(work: Callable[[], object]) -> float:
    """Of `REPEATS` after a warm-up."""
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def throughput(atelier: Atelier, stock: Stock) -> None:
    for count in CONCURRENT:
        requests = like(count)
        engine = median_s(lambda requests=requests: atelier.wait([atelier.assign(request) for request in requests]))
        eager = median_s(lambda requests=requests: stock.run(requests))
        static = median_s(lambda requests=requests: stock.batch(requests))
        print(
            f"  {count:2} at a time: engine {count / engine:7.2f} pictures/s, stock eager {count / eager:7.2f} "
            f"({eager / engine:.2f} x), static batch {count / static:7.2f} ({static / engine:.2f} x)",
            flush=True,
        )


def compiled(stock: Stock) -> None:
    """Last, for it changes the pipeline."""
    import torch

    stock.pipeline.unet = torch.compile(stock.pipeline.unet)
    one = median_s(lambda: stock.run(like(1)))
    print(f"  stock compiled, one after another: {1 / one:.2f} pictures/s", flush=True)


def arrivals(atelier: Atelier, stock: Stock) -> None:
    draw = random.Random(0)
    steps_s = median_s(lambda: stock.run(like(1))) / STEPS
    mean_s = steps_s * 32.5
    at, plan = 0.0, []
    for number in range(ARRIVALS):
        at += draw.expovariate(LOAD / mean_s)
        plan.append((at, alone(number, draw.randint(15, 50))[0]))
    for name, serve in (("engine", serve_engine(atelier)), ("static batching", serve_static(stock))):
        begun = time.perf_counter()
        ended = serve(begun, plan)
        good = sum(
            end - begun - at <= PATIENCE * steps_s * request["steps"]
            for end, (at, request) in zip(ended, plan, strict=True)
        )
        span = max(ended) - begun
        print(
            f"  arrivals at {LOAD} x, {name}: {good} of {ARRIVALS} in time, goodput {good / span:.2f} pictures/s, "
            f"throughput {ARRIVALS / span:.2f}",
            flush=True,
        )


def serve_engine(atelier: Atelier) -> Callable[[float, Waiting], list[float]]:
    def serve(begun: float, plan: Waiting) -> list[float]:
        jobs = []
        for at, request in plan:
            time.sleep(max(begun + at - time.perf_counter(), 0))
            jobs.append(atelier.assign(request))
        return atelier.wait(jobs)

    return serve


def serve_static(stock: Stock) -> Callable[[float, Waiting], list[float]]:
    def serve(begun: float, plan: Waiting) -> list[float]:
        ended: list[float] = []
        while len(ended) < len(plan):
            now = time.perf_counter() - begun
            waiting = [request for at, request in plan[len(ended) : len(ended) + 16] if at <= now]
            if not waiting:
                time.sleep(max(plan[len(ended)][0] - now, 0))
                continue
            stock.batch(waiting, max(request["steps"] for request in waiting))
            ended += [time.perf_counter()] * len(waiting)
        return ended

    return serve


def urgent(atelier: Atelier) -> None:
    draw = random.Random(1)
    own = like(1)[0]

    def latency_s(priority: int) -> float:
        begun = time.perf_counter()
        return atelier.wait([atelier.assign(own, priority)])[0] - begun

    single = statistics.median(latency_s(9) for _ in range(REPEATS))
    stop = threading.Event()

    def others() -> None:
        """16 at a time, as long as it takes."""
        while not stop.is_set():
            atelier.wait([atelier.assign(request) for request in like(16)])

    background = threading.Thread(target=others)
    background.start()
    latencies = []
    for _ in range(URGENT):
        time.sleep(draw.random() * single)
        latencies.append(latency_s(9))
    stop.set()
    background.join()
    p50, p99 = statistics.median(latencies), statistics.quantiles(latencies, n=100)[98]
    print(f"  priority 9: alone {single:.3f} s; among 16 others p50 {p50:.3f} s, p99 {p99:.3f} s", flush=True)
