"""Which models this worker offers: looked up at the start, and again when the model folder has changed.

Looking costs a `stat` of each file; only what has changed is read.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import structlog

from instructors.digests import Digests
from instructors.models import SHELVES, ModelFolder
from protocol.errors import AtelierError
from worker.residency import Residency

LOOK_S = 1.0  # between two looks at the folder
PAUSE = 25  # times as long as a look takes: of ten thousand files, a tenth of a second
FILES_MAX = 100_000  # of a folder that are looked at

Entries = list[dict[str, Any]]

log = structlog.get_logger("worker.offer")


class Offer(threading.Thread):
    """`entries`: for the capabilities. The thread ends with the process."""

    def __init__(self, models: ModelFolder, device: str, residency: Residency, digests: Digests) -> None:
        """Raises ModelInvalid where `models.toml` is wrong."""
        super().__init__(name="model folder", daemon=True)
        self._models, self._device, self._residency, self._digests = models, device, residency, digests
        digests.restore()
        self._seen = b""
        with suppress(OSError):  # it changes at this moment, and will be looked at again
            self._seen = fingerprint(models.root)
        self.entries = self._look()

    def watch(self, changed: Callable[[Entries, list[str]], None]) -> None:
        """From now on call this, on a thread of its own, with new entries and the ids of models that are gone."""
        self._changed = changed
        self.start()

    def _look(self) -> Entries:
        found, kept = self._models.entries(self._device), self._residency.kept
        self._digests.save()
        return [{**entry, "kept": entry["model_id"] in kept} for entry in found]

    def run(self) -> None:
        pause, settled, took_s = threading.Event(), True, 0.0
        while not pause.wait(max(LOOK_S, PAUSE * took_s)):
            try:
                begun = time.monotonic()
                seen = fingerprint(self._models.root)
                took_s = time.monotonic() - begun
                if seen != self._seen:
                    self._seen, settled = seen, False  # perhaps it is still being copied
                elif not settled or self._kept_changed():
                    settled = True
                    self._tell(self._look())
            except AtelierError as error:
                log.error("the models stay as they were", problem=error.message)
            except OSError as error:  # it changed under our eyes
                log.info("the model folder could not be read", problem=error.strerror)
                settled = False

    def _kept_changed(self) -> bool:
        offered = {entry["model_id"] for entry in self.entries}
        return {entry["model_id"] for entry in self.entries if entry["kept"]} != self._residency.kept & offered

    def _tell(self, entries: Entries) -> None:
        if entries == self.entries:
            return
        now = {entry["model_id"] for entry in entries}
        gone = [entry["model_id"] for entry in self.entries if entry["model_id"] not in now]
        self.entries = entries
        log.info("other models", there=len(entries), gone=gone)
        self._changed(entries, gone)


def fingerprint(root: Path | None) -> bytes:
    """Changes when a file of a model does: a name, a size, a time. Raises OSError."""
    found = blake2b(digest_size=16)
    for number, told in enumerate(_files(root) if root is not None else ()):
        if number >= FILES_MAX:
            break
        found.update(told.encode(errors="surrogateescape"))
    return found.digest()


def _files(root: Path) -> Iterator[str]:
    """What hides behind a dot, as models on their way in do, and what holds no models is left out."""
    folders = [root] if root.is_dir() else []
    while folders:
        folder = folders.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or (folder is root and entry.name in SHELVES):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(folder / entry.name)
            else:
                status = entry.stat(follow_symlinks=False)
                yield f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}\n"
