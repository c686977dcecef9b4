"""Hashes of models' files that outlive the worker, so that a start need not read gigabytes to say what is there.

A file counts as the same while its size, times and inode do; a copy with the times of the original has a later ctime.
"""

import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgpack
import structlog

from instructors.models import ModelFolder
from protocol.limits import MIB

WORTH_BYTES = 1 * MIB  # smaller files are read quicker than they are looked up
FILE_BYTES_MAX = 64 * MIB

log = structlog.get_logger("instructors.digests")


class Digests:
    """Of one model folder, in a file of the cache folder; without one, nothing is kept."""

    def __init__(self, models: ModelFolder, cache_dir: Path | None) -> None:
        self._models = models
        self._file: Path | None = None
        if models.root is not None and cache_dir is not None:
            name = blake2b(os.fsencode(models.root.resolve()), digest_size=16).hexdigest()
            self._file = cache_dir / "digests" / f"{name}.msgpack"
        self._saved: set[Path] = set()

    def restore(self) -> None:
        """Let the model folder know what was known. What cannot be read is as if it had not been there."""
        if self._file is None:
            return
        with suppress(OSError, ValueError, TypeError, msgpack.UnpackException):
            if self._file.stat().st_size <= FILE_BYTES_MAX:
                for path, version, digest, elements in msgpack.unpackb(self._file.read_bytes(), use_list=False):
                    self._models.digests[Path(path)] = version, bytes(digest), int(elements)

    def save(self) -> None:
        """Write down what is known now of files that are there."""
        known = {path: entry for path, entry in list(self._models.digests.items()) if entry[0][0] >= WORTH_BYTES}
        entries = [(str(path), *entry) for path, entry in known.items() if path.exists()]
        if self._file is None or known.keys() == self._saved:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_suffix(f".{os.getpid()}")
            part.write_bytes(msgpack.packb(entries))
            os.replace(part, self._file)
            self._saved = set(known)
        except (OSError, UnicodeEncodeError) as error:
            log.warning("hashes of models cannot be kept", problem=repr(error))
