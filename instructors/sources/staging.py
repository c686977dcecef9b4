"""Where a model lies until it is whole and checked: a folder of its own under `.staging`, which no request sees."""

import fcntl
import os
import shutil
import time
from pathlib import Path
from uuid import uuid4

import structlog

from protocol.errors import Unavailable

FOLDER = ".staging"
OLD_S = 3600.0  # what nobody works at for so long was left by a worker that was killed

log = structlog.get_logger("instructors.sources")


class Staging:
    """`path` is this process' until `close`: a lock that ends with the process says so to others."""

    def __init__(self, root: Path) -> None:
        """Raises Unavailable where the model folder cannot be written to."""
        self.path = root / FOLDER / uuid4().hex
        try:
            self.path.mkdir(parents=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable("The worker's model folder cannot be written to.") from None

    def close(self) -> None:
        """Remove what is left there."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def clean(root: Path | None) -> None:
    """Remove what workers left behind that were killed while they fetched a model."""
    if root is None or not (root / FOLDER).is_dir():
        return
    for path in (root / FOLDER).iterdir():
        try:
            if not path.is_symlink() and path.is_dir() and time.time() - path.stat().st_mtime > OLD_S:
                _remove_if_left(path)
        except OSError:  # another worker was faster
            log.debug("already gone")


def _remove_if_left(path: Path) -> None:
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
        log.info("removed what a registration left behind")
    finally:
        os.close(lock)
