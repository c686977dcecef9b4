"""What the step engine costs and gains, beside the stock pipelines of diffusers.

    python -m scripts.bench.engine                             the CPU: CPU-seconds, for others may use the machine
    python -m scripts.bench.engine --device cuda [--model sd15] [--model sdxl]      a GPU: seconds

On the CPU: 8 mixed requests in the engine against the same ones one after another through stock, on the demo model; and
one request alone, on the demo model and at Stable Diffusion 1.5's width (random weights, small pictures). The engine
is the worker's own, without process and wire. Both take turns, and each turn has prompts of its own, so that no turn
lives on texts encoded before; the figure is the median of the pairs' ratios, with their spread. PNG is excluded.

On a GPU: see scripts/bench/engine_load.py. `--device cpu --load` runs that on the CPU with the demo model: a check that
it runs, no measurement. Run it with: make bench-engine
"""

import argparse
import logging
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that share a busy core wait for each other

import structlog

from instructors import inference, registry
from instructors.models import ModelFolder
from instructors.task import Blob, Padding
from protocol.messages import Assign, WorkerEvent, WorkerResult
from worker import hardware
from worker.engine.engine import Engine
from worker.engine.workplace import Workplace
from worker.jobs import Job
from worker.pulse import Pulse
from worker.residency import Residency

DEMO = Path(__file__).parents[2] / "models" / "demo"
COLORS = ["red", "green", "blue", "yellow"]
SHAPES = ["circle", "square", "triangle", "star"]
SCHEDULERS = ["ddim", "euler", "dpm++_2m", "euler_a", "unipc", "heun", "dpm++_2m_karras", "lms"]
GOAL_ALONE = 1.05

Request = dict[str, Any]


class Sink:
    """In place of the way to the orchestrator: keeps when each job was answered."""

    def __init__(self) -> None:
        self.answered: dict[str, float] = {}
        self.changed = threading.Condition()

    def send(self, job: Job, message: WorkerEvent | WorkerResult, blobs: Sequence[Blob]) -> None:
        if isinstance(message, WorkerResult):
            assert message.success, message.error
            with self.changed:
                self.answered[message.job_id] = time.perf_counter()
                self.changed.notify_all()


class Atelier:
    """A worker's device thread, run by this one or (`start`) by its own."""

    def __init__(self, root: Path, device: str, rows_max: int = 16) -> None:
        found = hardware.find(device)
        self.sink = Sink()
        place = Workplace(
            registry=registry.load([]),
            device=found,
            models=ModelFolder(root),
            residency=Residency(found.default_budget, found.free_cached),
            delivery=self.sink,  # type: ignore[arg-type]
            pulse=Pulse.create(),
            padding=Padding(rows_max),
            quantum_s=1.0,
        )
        self.engine = Engine(place, lambda _: inference.warm_up())
        self._count = 0

    def assign(self, request: Request, priority: int = 4) -> str:
        self._count += 1
        job_id = f"j{self._count}"
        assign = Assign(
            job_id=job_id,
            attempt=1,
            action="inference.text2img",
            data=request,
            tenant="t",
            request_id="r",
            fingerprint=bytes(32),
            priority=priority,
        )
        self.engine.assign(Job(assign, []))
        return job_id

    def run(self, requests: Sequence[Request]) -> None:
        """All of them, on this thread."""
        jobs = {self.assign(request) for request in requests}
        while not jobs <= self.sink.answered.keys():
            self.engine.turn()

    def wait(self, jobs: Sequence[str]) -> list[float]:
        """When each was answered, by the clock; while the engine runs on its own thread."""
        with self.sink.changed:
            self.sink.changed.wait_for(lambda: self.sink.answered.keys() >= set(jobs))
        return [self.sink.answered[job] for job in jobs]


class Stock:
    """The library's own pipeline, from the same folder."""

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from diffusers import AutoPipelineForText2Image

        from instructors.pipelines.schedulers import SchedulerBank

        dtype = torch.float32 if device == "cpu" else torch.float16
        self.pipeline = AutoPipelineForText2Image.from_pretrained(folder, dtype=dtype).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self._schedulers = SchedulerBank(self.pipeline.scheduler)

    def run(self, requests: Sequence[Request]) -> None:
        """One after another."""
        for request in requests:
            self.batch([request])

    def batch(self, requests: Sequence[Request], steps: int | None = None) -> None:
        """All in one call; of the first's scheduler, guidance and size, and with one number of steps."""
        import torch

        first = requests[0]
        _, self.pipeline.scheduler = self._schedulers.get(first.get("scheduler"), first["steps"], 0)
        self.pipeline(
            [request["prompt"] for request in requests],
            num_inference_steps=steps or first["steps"],
            guidance_scale=first["guidance_scale"],
            generator=[torch.Generator("cpu").manual_seed(request["seed"]) for request in requests],
            **{name: first[name] for name in ("width", "height") if name in first},
        )


def mixed(turn: int, count: int = 8) -> list[Request]:
    """Requests with nothing in common but their size."""
    return [
        {
            "prompt": f"a {COLORS[(turn + number) % 4]} {SHAPES[number % 4]}, number {turn} {number}",
            "steps": 12 + 2 * number,
            "scheduler": SCHEDULERS[number % len(SCHEDULERS)],
            "guidance_scale": 3.0 + number,
            "seed": 100 * turn + number,
        }
        for number in range(count)
    ]


def alone(turn: int, steps: int, **more: Any) -> list[Request]:
    prompt = f"a {COLORS[turn % 4]} {SHAPES[turn // 4 % 4]}, number {turn}"
    return [{"prompt": prompt, "steps": steps, "guidance_scale": 5.0, "seed": turn, **more}]


def pairs(atelier: Atelier, stock: Stock, requests: Callable[[int], list[Request]], turns: int) -> list[list[float]]:
    """[stock's, the engine's] CPU-seconds of each turn but the first, which warms both up."""
    found = []
    for turn in range(turns + 1):
        asked = requests(turn)
        sides = [stock.run, atelier.run]
        times = {side: cpu_s(side, asked) for side in (sides if turn % 2 else reversed(sides))}
        found.append([times[side] for side in sides])
    return found[1:]


def cpu_s(side: Callable[[list[Request]], None], requests: list[Request]) -> float:
    begun = time.process_time()
    side(requests)
    return time.process_time() - begun


def tell(what: str, found: list[list[float]], goal: str = "") -> None:
    ratios = [engine / stock for stock, engine in found]
    stock, engine = (statistics.median(side) for side in zip(*found, strict=True))
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(
        f"{what:<52} stock {stock:7.3f} s  engine {engine:7.3f} s  ratio {middle:.3f} ({low:.3f} to {high:.3f}){goal}",
        flush=True,
    )


def on_the_cpu(turns: int, wide: bool) -> None:
    atelier, stock = Atelier(DEMO.parent, "cpu"), Stock(DEMO, "cpu")
    tell("8 mixed requests, demo model", pairs(atelier, stock, mixed, turns))
    tell("1 request of 20 steps, demo model", pairs(atelier, stock, lambda turn: alone(turn, 20), turns))
    if not wide:
        return
    from scripts.bench.random_models import build

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build(root / "sd15", "sd15", half=False)
        atelier, stock = Atelier(root, "cpu"), Stock(root / "sd15", "cpu")
        found = pairs(atelier, stock, lambda turn: alone(turn, 4, width=64, height=64), turns)
        tell("1 request of 4 steps, SD1.5's width, 64 x 64", found, f"; goal <= {GOAL_ALONE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=7, help="pairs a figure is the median of (CPU)")
    parser.add_argument("--no-wide", action="store_true", help="leave out SD1.5's width, which takes 7 GB of memory")
    parser.add_argument("--load", action="store_true", help="the GPU's measurements on any device")
    parser.add_argument("--model", action="append", choices=["demo", "sd15", "sdxl"], help="for the GPU (repeatable)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.environ['OMP_NUM_THREADS']} thread(s)")
    if options.device == "cpu" and not options.load:
        on_the_cpu(options.turns, not options.no_wide)
        return
    from scripts.bench import engine_load

    for model in options.model or (["demo"] if options.device == "cpu" else ["sd15", "sdxl"]):
        engine_load.measure(model, options.device)


if __name__ == "__main__":
    main()
