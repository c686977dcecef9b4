"""What devices this machine has. Nothing here imports torch unless it is asked about a CUDA device."""

import gc
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from protocol.messages import DeviceFacts

BUDGET_CUDA, BUDGET_CPU = 0.8, 0.5  # of the device's memory, for models kept loaded
BUDGET_ASIDE = 0.5  # of the machine's memory, for models that a GPU had to give up, over all GPUs


class NoSuchDevice(ValueError):
    """The device that was asked for is not there."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `device_id` is torch's name for it; memory in bytes."""

    device_id: str
    kind: str
    memory_total: int

    @property
    def is_cuda(self) -> bool:
        return self.device_id.startswith("cuda")

    def memory_free(self) -> int:
        """May block while the driver is busy: for the device thread."""
        if self.is_cuda:
            import torch

            return int(torch.cuda.mem_get_info(self.device_id)[0])
        return int(psutil.virtual_memory().available)

    def free_cached(self) -> None:
        """Give back what torch keeps for reuse, after dropping what only cycles hold."""
        gc.collect()
        if self.is_cuda:
            import torch

            torch.cuda.empty_cache()

    def facts(self, memory_free: int) -> DeviceFacts:
        return DeviceFacts(
            device_id=self.device_id, kind=self.kind, memory_total=self.memory_total, memory_free=memory_free
        )

    @property
    def default_budget(self) -> int:
        return int(self.memory_total * (BUDGET_CUDA if self.is_cuda else BUDGET_CPU))


def aside_budget() -> int:
    """Bytes of the machine's memory for models that one GPU had to give up."""
    return int(psutil.virtual_memory().total * BUDGET_ASIDE / max(1, count_gpus()))


def find(name: str) -> Device:
    """The device of this name; `auto` is the first GPU, else the CPU. Raises NoSuchDevice."""
    if name == "auto":
        name = "cuda:0" if count_gpus() and _cuda_count() else "cpu"
    if name == "cpu":
        return Device("cpu", "cpu", int(psutil.virtual_memory().total))
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if not match:
        raise NoSuchDevice(f"{name!r} is not a device; use auto, cpu or cuda:N")
    index, count = int(match[1] or 0), _cuda_count()
    if index >= count:
        raise NoSuchDevice(f"cuda:{index} is not there: torch sees {count} CUDA devices")
    import torch

    facts = torch.cuda.get_device_properties(index)
    return Device(f"cuda:{index}", str(facts.name), int(facts.total_memory))


def count_gpus() -> int:
    """How many NVIDIA GPUs a process of ours would see, judged without torch (for launchers)."""
    count = _nvidia_smi_count()
    if count is None:
        driver = Path("/proc/driver/nvidia/gpus")
        nodes = driver.iterdir() if driver.is_dir() else Path("/dev").glob("nvidia[0-9]*")
        count = sum(1 for _ in nodes)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    return min(count, sum(1 for name in visible.split(",") if name.strip() not in ("", "-1")))


def torchvision_conflict() -> str | None:
    """What is wrong with the installed torchvision, None if nothing: built for CUDA beside a CPU torch, its mere
    presence breaks diffusers. Judged by the versions' local parts (`+cpu`, `+cu130`), importing neither."""
    try:
        torch, torchvision = metadata.version("torch"), metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return None
    if torch.endswith("+cpu") and not torchvision.endswith("+cpu"):
        return (
            f"torchvision {torchvision} is not built for the CPU as torch {torch} is, and breaks diffusers; "
            "uninstall it, or install the CPU build"
        )
    return None


def _cuda_count() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return int(torch.cuda.device_count())


def _nvidia_smi_count() -> int | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(1 for line in done.stdout.splitlines() if line.startswith("GPU "))
