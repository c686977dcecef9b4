"""What was judged before, so that a file that stays the same is not read again: one JSON file in the worker's cache."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from instructors.catalogue.content import Content
from protocol.limits import MIB

FORM = 1  # of the file; another one is not read
FILE_BYTES_MAX = 256 * MIB

Signature = tuple[int, int, int] | str  # a file's size, time in ns and inode; a folder's hash of those of its files
Seen = dict[str, tuple[Signature, Content | None]]  # name -> (signature, what it is; None: nothing of a model's)


@dataclass(slots=True)
class Index:
    path: Path | None  # None: nothing is kept
    seen: Seen = field(default_factory=dict)

    @staticmethod
    def load(path: Path | None) -> "Index":
        """Empty where the file is not there, or is damaged: then all is read again."""
        index = Index(path)
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            if path is not None and path.stat().st_size <= FILE_BYTES_MAX:
                stored = json.loads(path.read_bytes())
                if stored["form"] == FORM:
                    index.seen = dict(_entries(stored["seen"]))
        return index

    def save(self) -> None:
        """As a whole or not at all. A folder that cannot be written to costs only the time to read all again."""
        if self.path is None:
            return
        seen = {name: [signature, content and content.to_plain()] for name, (signature, content) in self.seen.items()}
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as stream:
                stream.write(json.dumps({"form": FORM, "seen": seen}, separators=(",", ":")))
            os.replace(stream.name, self.path)


def _entries(stored: dict[str, Any]) -> Iterator[tuple[str, tuple[Signature, Content | None]]]:
    for name, (signature, plain) in stored.items():
        key: Signature = signature if type(signature) is str else tuple(signature)
        yield name, (key, None if plain is None else Content.from_plain(plain))


def path_in(cache_dir: Path | None, root: Path | None) -> Path | None:
    """Where the index of a model folder lies, and of all that its settings name."""
    if cache_dir is None or root is None:
        return None
    return cache_dir / f"catalogue-{hashlib.sha256(bytes(root.resolve())).hexdigest()[:16]}.json"
