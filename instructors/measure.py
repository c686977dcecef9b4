"""What benchmarks of all kinds of models need: peaks of memory, files that are read from the disk, percentiles."""

import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from protocol.limits import KIB

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "transformers", "numpy")
BATCH_S_MAX = 60.0  # of one batch size: then it has had its time


def figures(batch_size: int, seconds: Sequence[float], peak_nbytes: int | None) -> dict[str, Any]:
    """`BatchFigures` of runs that took so long."""
    ordered = sorted(seconds)
    return {
        "batch_size": batch_size,
        "runs": len(ordered),
        "p50_ms": round(1000 * rank(ordered, 50), 4),
        "p95_ms": round(1000 * rank(ordered, 95), 4),
        "per_s": round(batch_size * len(ordered) / max(sum(ordered), 1e-9), 3),
        "peak_nbytes": peak_nbytes,
    }


def rank(ordered: Sequence[float], percent: int) -> float:
    """The percentile by nearest rank."""
    return ordered[max(-(-percent * len(ordered) // 100), 1) - 1]


def forget_cached(path: Path) -> None:
    """Have the operating system read these files from the disk when they are read next, as far as it can."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(OSError, AttributeError):  # a courtesy of Linux
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


class Peak:
    """Of the memory of one process, since this was made; where the system cannot begin anew, since its start."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    @property
    def nbytes(self) -> int | None:
        if sys.platform != "linux":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if self._pid == os.getpid() else None
        with suppress(OSError):
            lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
            return next(int(line.split()[1]) * KIB for line in lines if line.startswith("VmHWM:"))
        return None


def versions() -> dict[str, str]:
    """Of the libraries that compute."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
