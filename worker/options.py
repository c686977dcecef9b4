"""The worker's command line, shared by the parent and its child. Imports nothing heavy."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from protocol.limits import NAME_LENGTH_MAX

SLOTS_MAX = 4096
ROWS_MAX = 1024
EXAMPLE = "example: python -m worker --connect tcp://127.0.0.1:5556 --device auto --models models"
PADDING = (
    "fast: a picture alone equals stock diffusers bit for bit, in company it may differ by 1/255; "
    "reproducible: the same picture in any company, at some cost (default: fast)"
)
CACHE_URL = (
    "Redis for results that workers share, e.g. redis://127.0.0.1:6379/0 (default: ATELIER_CACHE_URL, where a password "
    "is better kept)"
)
EXITS = "exit codes: 0 stopped or drained, 2 wrong usage, 3 refused by the orchestrator, 1 anything else"


@dataclass(frozen=True, slots=True)
class Options:
    """Spans in ms or s as named, sizes in bytes."""

    connect: str
    device: str
    name: str | None
    slots: int
    light_slots: int
    models: Path | None
    memory_budget: int | None
    cache_dir: Path | None
    cache_mb: int
    cache_url: str | None
    padding: str
    rows_max: int
    fixed_rows: int
    quantum_ms: int
    log_level: str
    quantum_ms_max: int
    load_ms_max: int
    grace_s: float
    instructors: list[str]
    death_pipe: bool
    instance: str
    pulse_fd: int


def parser() -> argparse.ArgumentParser:
    """The options of `python -m worker`."""
    result = argparse.ArgumentParser(
        prog="python -m worker",
        description="Run jobs on one device for an Atelier orchestrator.",
        epilog=f"{EXAMPLE}\n{EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--connect", required=True, metavar="ENDPOINT", help="the orchestrator's worker plane: ipc://… or tcp://…")
    add("--device", default="auto", help="auto, cpu, or cuda:N (default: auto)")
    add("--name", type=_name, help="worker_id (default: host name and device)")
    add("--slots", type=_slots, default=16, help="jobs held at a time (default: 16)")
    add("--light-slots", type=_light_slots, default=128, help="predictions held beside them (default: 128)")
    add("--models", type=Path, metavar="DIR", help="folder of models in diffusers layout")
    add("--memory-budget", type=_at_least_one, metavar="BYTES", help="for models kept loaded (default: by device)")
    add("--cache-dir", type=Path, metavar="DIR", default=_cache_dir(), help="for optimised graphs")
    add("--cache-mb", type=_not_negative, default=256, metavar="MB", help="for results of predictions (default: 256)")
    add("--cache-url", metavar="URL", default=os.environ.get("ATELIER_CACHE_URL"), help=CACHE_URL)
    add("--padding", default="fast", choices=["fast", "reproducible"], help=PADDING)
    add("--rows-max", type=_rows, default=32, help="of a shared step; guidance takes two a picture (default: 32)")
    add("--fixed-rows", type=_rows, default=4, help="of every forward where padding is reproducible (default: 4)")
    add("--quantum-ms", type=_at_least_one, default=1000, help="a shared step is kept under it (default: 1000)")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    add("--quantum-ms-max", type=_at_least_one, default=120_000, help="a longer step counts as hung (default: 120000)")
    add("--load-ms-max", type=_at_least_one, default=600_000, help="the same while loading (default: 600000)")
    add("--grace-s", type=float, default=20.0, help="for the running job after SIGTERM (default: 20)")
    add("--instructors", action="append", default=[], metavar="MODULE", help="module that adds actions (repeatable)")
    add("--death-pipe", action="store_true", help="exit when standard input closes (for launchers)")
    add("--instance", default="", help=argparse.SUPPRESS)  # parent to child
    add("--pulse-fd", type=int, default=-1, help=argparse.SUPPRESS)  # parent to child
    return result


def parse(argv: list[str] | None) -> Options:
    """Exits with code 2 and a message when `argv` is wrong."""
    return Options(**vars(parser().parse_args(argv)))


def _name(text: str) -> str:
    if not 1 <= len(text) <= NAME_LENGTH_MAX:
        raise argparse.ArgumentTypeError(f"must have 1 to {NAME_LENGTH_MAX} characters")
    return text


def _slots(text: str) -> int:
    return _at_most(SLOTS_MAX, _at_least_one(text))


def _light_slots(text: str) -> int:
    return _at_most(SLOTS_MAX, _not_negative(text))


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atelier"


def _rows(text: str) -> int:
    return _at_most(ROWS_MAX, _at_least_one(text))


def _at_most(limit: int, number: int) -> int:
    if number > limit:
        raise argparse.ArgumentTypeError(f"must be at most {limit}")
    return number


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
