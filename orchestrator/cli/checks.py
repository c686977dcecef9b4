"""What `atelier doctor` looks at. Every check yields findings; none needs more than the base install."""

import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import zmq

from orchestrator.cli.common import in_units
from orchestrator.cli.doctor import Check, Finding, Level
from orchestrator.client import Client, ServerUnreachable
from orchestrator.client.errors import WORKER_EXTRA
from orchestrator.settings import Settings
from protocol.errors import AtelierError
from protocol.sockets import make_socket

PYTHONS = ((3, 11), (3, 13))
DISK_BYTES_MIN = 1024**3
ANSWER_S = 1.0
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # the same module; only one may be installed


def installed() -> Iterator[Finding]:
    """Versions, the parts of the worker extra, and packages that break others."""
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        yield Finding("ok", "python", f"{version} on {platform.platform()}")
    else:
        yield Finding("problem", "python", f"{version} is not supported", "Use Python 3.11, 3.12 or 3.13.")
    base, extra = _requirements()
    yield Finding("ok", "atelier", f"{metadata.version('atelier')}, libzmq {zmq.zmq_version()}")
    yield from _packages("base install", base, "problem", "pip install atelier")
    yield from _packages("worker extra", extra, "note", f"To run workers here: {WORKER_EXTRA}")
    yield from torchvision()
    yield from onnxruntimes()


def torchvision() -> Iterator[Finding]:
    """Whether it breaks diffusers by its mere presence."""
    try:
        from worker.hardware import torchvision_conflict
    except ImportError:  # no worker can run here, as was said
        return
    conflict = torchvision_conflict()
    if conflict is not None:
        yield Finding("problem", "torchvision", conflict, "pip uninstall torchvision (Atelier does not need it)")


def onnxruntimes() -> Iterator[Finding]:
    """Two packages that are one module: whichever was installed last has overwritten files of the other."""
    found = [name for name in ONNXRUNTIMES if _version(name) is not None]
    if len(found) > 1:
        fix = f"pip uninstall {' '.join(found)}, and then: {WORKER_EXTRA}"
        yield Finding("problem", "onnxruntime", f"{' and '.join(found)} are both installed", fix)


def devices(_: Settings) -> Iterator[Finding]:
    """Memory, cores and GPUs."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, {in_units(total)} of memory{_available(page)}")
    gpus = _gpus()
    torch = _version("torch")
    for gpu in gpus:
        yield Finding("ok", "gpu", gpu)
    if gpus and torch is not None and torch.endswith("+cpu"):
        fix = "Install a torch built for CUDA: see https://pytorch.org/get-started/locally"
        yield Finding("note", "gpu", f"torch {torch} is built for the CPU and will not use the GPU", fix)
    if not gpus:
        yield Finding("ok", "gpu", "none found: workers use the CPU")


def endpoints(settings: Settings) -> Iterator[Finding]:
    """Whether each endpoint is free, ours, or somebody else's."""
    servers = {endpoint: _server_at(endpoint) for endpoint in settings.client_endpoints}
    for endpoint, server in servers.items():
        ours = Finding("ok", "endpoint", f"{endpoint} is used by a running Atelier {server}")
        yield ours if server else _free(endpoint)
    for endpoint in settings.worker_endpoints:
        ours = Finding("ok", "endpoint", f"{endpoint} is used by the running Atelier")
        yield ours if all(servers.values()) else _free(endpoint)


def folders(settings: Settings) -> Iterator[Finding]:
    """Permissions of the folders, and room on the disk."""
    for name, folder in (("runtime_dir", settings.runtime_dir), ("data_dir", settings.data_dir)):
        if folder.exists():
            status = folder.stat()
            private = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
            if not private:
                yield Finding("problem", name, f"{folder} may be entered by others", f"chmod 700 {folder}")
                continue
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            yield Finding("problem", name, f"{parent} cannot be written", f"Change its owner, or set {name}.")
            continue
        free = shutil.disk_usage(parent).free
        if free >= DISK_BYTES_MIN:
            yield Finding("ok", name, f"{folder}, {in_units(free)} free")
        else:
            yield Finding("note", name, f"{folder}, only {in_units(free)} free", "Make room on the disk.")


def models(settings: Settings) -> Iterator[Finding]:
    """The models that workers here would serve."""
    from instructors.models import ModelFolder

    folder = ModelFolder(settings.models_dir)
    names = folder.names()
    if not names:
        fix = "Put a model there (a folder in diffusers layout), or set models_dir."
        yield Finding("note", "models", f"none in {settings.models_dir}", fix)
    for name in names:
        try:
            model = folder.find(name)
        except AtelierError as error:
            yield Finding("problem", "model", f"{name}: {error.code.value}: {error.message}", "Replace or remove it.")
        else:
            nbytes = model.nbytes("cpu", folder.settings(name))
            size = "" if nbytes is None else f", {in_units(nbytes)} on a CPU"
            yield Finding("ok", "model", f"{name}: {model.family}{size}")


OF_SETTINGS: tuple[Check, ...] = (devices, endpoints, folders, models)


def _requirements() -> tuple[list[str], list[str]]:
    """Names of the packages of the base install and of the worker extra."""
    base, extra = [], []
    for line in metadata.requires("atelier") or []:
        name = re.split(r"[ ;<>=!~\[]", line, maxsplit=1)[0]
        if "extra ==" not in line:
            base.append(name)
        elif re.search(r"extra == ['\"]worker['\"]", line):
            extra.append(name)
    others = ONNXRUNTIMES[1:] if _version(ONNXRUNTIMES[0]) else ONNXRUNTIMES[:1]
    return base, [name for name in extra if name not in others]


def _packages(subject: str, names: list[str], level: Level, fix: str) -> Iterator[Finding]:
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        yield Finding(level, subject, f"not installed: {', '.join(missing)}", fix)
    there = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if there:
        yield Finding("ok", subject, there)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _available(page: int) -> str:
    try:
        return f", {in_units(page * os.sysconf('SC_AVPHYS_PAGES'))} free"
    except ValueError:  # not told by this system
        return ""


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    facts = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [f"{name}, {free} of {total} free, driver {driver}" for name, total, free, driver in facts]


def _server_at(endpoint: str) -> str | None:
    """The version of the server that answers there."""
    with Client(endpoint, connect_timeout_s=ANSWER_S, timeout_s=2 * ANSWER_S) as client:
        try:
            return client.info().version
        except (ServerUnreachable, TimeoutError, AtelierError):
            return None


def _free(endpoint: str) -> Finding:
    """Try to bind; an ipc path is only looked at, for to bind would take it from a server that hangs."""
    if endpoint.startswith("ipc://"):
        path = Path(endpoint.removeprefix("ipc://"))
        if not path.exists():
            return Finding("ok", "endpoint", f"{endpoint} is free")
        return Finding("ok", "endpoint", f"{endpoint} is left over or not answering; a new server takes it")
    context = zmq.Context()
    try:
        make_socket(context, zmq.ROUTER).bind(endpoint)
    except zmq.ZMQError as error:
        fix = "End the program that uses it, or set client_endpoints (worker_endpoints) to another."
        return Finding(
            "problem", "endpoint", f"{endpoint}: {zmq.strerror(error.errno or 0)}, and no Atelier answers there", fix
        )
    finally:
        context.destroy(linger=0)
    return Finding("ok", "endpoint", f"{endpoint} is free")
