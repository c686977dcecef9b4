"""Optimised graphs, kept on disk: making one anew is most of what loading a model takes.

A kept graph is named `<key>-<digest>.onnx`. The key holds all it depends on: the model's bytes, onnxruntime, the
providers, the options and the processor. The digest is of its own bytes, so a damaged one is noticed. A forged one
would not be: a folder that others can write to is not used.
"""

import hashlib
import os
import platform
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from protocol.limits import MIB

CACHE_BYTES_MAX = 8 * 1024 * MIB  # of a folder; those not used for longest go
S = TypeVar("S")


class KeptGraph:
    """The place of one optimised graph. `parts`: what it depends on, `files`: whose bytes, too."""

    def __init__(self, folder: Path, files: Iterable[Path], parts: Iterable[Any]) -> None:
        """Raises OSError where a file cannot be read."""
        state = hashlib.sha256(repr((tuple(parts), _processor())).encode())
        for file in files:
            state.update(_digest(file))
        self._folder, self._key = folder, state.hexdigest()[:40]

    def find(self) -> Path | None:
        """The file of an earlier time, if it is whole. One that is not is removed."""
        if not _is_private(self._folder):
            return None
        for path in self._folder.glob(f"{self._key}-*.onnx"):
            if path.stem == f"{self._key}-{_digest(path).hex()}":
                os.utime(path)
                return path
            path.unlink(missing_ok=True)
        return None

    def make(self, build: Callable[[Path], S]) -> S | None:
        """What `build` gives, which writes the graph where it is told. None: it could not write there, or failed."""
        part = self._folder / f".{self._key}-{os.getpid()}.onnx"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_private(self._folder):
                return None
            made = build(part)
            part.replace(self._folder / f"{self._key}-{_digest(part).hex()}.onnx")
            _remove_oldest(self._folder)
        except Exception:  # onnxruntime's own, for a full disk as for a bad model: without the cache it will tell which
            return None
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return made


def _is_private(folder: Path) -> bool:
    """Whether it is this user's, and no other may write there."""
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _processor() -> str:
    """Layouts in an optimised graph are chosen by what the processor can do."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return f"{platform.machine()} {line.partition(':')[2]}"
    return f"{platform.machine()} {platform.processor()}"


def _remove_oldest(folder: Path) -> None:
    kept = sorted(
        ((file.stat().st_mtime_ns, file.stat().st_size, file) for file in folder.glob("*.onnx")), reverse=True
    )
    total = 0
    for _, nbytes, file in kept:
        total += nbytes
        if total > CACHE_BYTES_MAX:
            file.unlink(missing_ok=True)
