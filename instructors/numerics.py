"""What the last bits of a picture depend on beside its request: told in its recipe, so that a repetition elsewhere
can say why it differs."""

import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from instructors.model_settings import ModelSettings
from instructors.task import Place

LIBRARIES = ("torch", "diffusers", "transformers")
CPU_FACTS = Path("/proc/cpuinfo")


def fingerprint(dtype: str, settings: ModelSettings, place: Place) -> dict[str, Any]:
    """The recipe's `numerics`. Equal ones, with equal weights and an equal request, give equal pictures where padding
    is reproducible; where it is fast, for a picture that was alone."""
    padding = place.padding.fixed_rows
    given = settings.model_dump(exclude={"dtype", "keep", "config"}, exclude_defaults=True)
    return {
        "device": cpu_model() if place.device == "cpu" else place.device_kind,
        "threads": _threads(),
        "dtype": dtype,
        "padding": "fast" if padding is None else f"reproducible {padding}",
        "libraries": _libraries(),
        **({"settings": given} if given else {}),
    }


@cache
def cpu_model() -> str:
    """The CPU's model: kernels are chosen by what it can do."""
    try:
        lines = CPU_FACTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())[:200]


@cache
def _libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def _threads() -> int:
    """On a CPU their number decides how sums are split, and so how they round."""
    import torch

    return int(torch.get_num_threads())
