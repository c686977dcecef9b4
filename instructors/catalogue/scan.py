"""A walk through the folders of models, in slices: what lies there, and what has changed since the last one."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import structlog

from instructors import single_files
from instructors.catalogue import content
from instructors.catalogue.content import Content
from instructors.catalogue.index import Index, Seen, Signature
from instructors.catalogue.settings import HUB, MODELS

DEPTH_MAX = 8
FILES_MAX = 200_000
NAME_LENGTH_MAX = 500  # of a path within its folder
FILE_BYTES_MIN = 10  # the smallest safetensors file
REPOSITORY = "models--"
CONFIGS = f"{MODELS}/{single_files.FOLDER}"  # of checkpoints in one file: no models

log = structlog.get_logger("instructors.catalogue")


@dataclass(frozen=True, slots=True)
class Place:
    """Something to judge. `name` is what clients call it; `boundary` is the folder that its links may not leave."""

    name: str
    path: Path
    boundary: Path
    is_folder: bool
    signature: Signature


@dataclass(slots=True)
class Changes:
    """Since the scan before. `renamed`: files that moved and are the same otherwise."""

    added: int = 0
    changed: int = 0
    renamed: int = 0
    removed: int = 0


@dataclass(slots=True)
class Scan:
    """`work` does it, step by step; then `found` maps names to what they are, in the order of the names."""

    folders: Mapping[str, Path]
    index: Index
    found: dict[str, Content] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    complete: bool = True  # False: there were more files than FILES_MAX
    _seen: Seen = field(default_factory=dict)
    _count: int = 0

    def work(self) -> Iterator[None]:
        """Gives way after each folder that was listed and each file that was read."""
        known = {signature: entry for _, (signature, entry) in self.index.seen.items()}
        for place in self._places():
            if place is not None:
                self._judge(place, known)
            yield
        before = {name: entry for name, entry in self.index.seen.items() if name.partition("/")[0] in self.folders}
        self.changes = _changes(before, self._seen)
        others = {name: entry for name, entry in self.index.seen.items() if name not in before}
        if self.index.seen != {**others, **self._seen}:
            self.index.seen = {**others, **self._seen}
            self.index.save()
        self.found = {name: entry for name, (_, entry) in sorted(self._seen.items()) if entry is not None}

    def _judge(self, place: Place, known: Mapping[Signature, Content | None]) -> None:
        before = self.index.seen.get(place.name)
        if before is not None and before[0] == place.signature:
            self._seen[place.name] = before
            return
        if before is None and place.signature in known:
            self._seen[place.name] = (place.signature, known[place.signature])  # it moved, or is another link to it
            return
        try:
            found = content.of_folder(place.path, place.boundary) if place.is_folder else content.of_file(place.path)
        except OSError:  # it may not be read, or went away just now
            log.warning("cannot be read", name=place.name)
            return
        self._seen[place.name] = (place.signature, found)

    def _places(self) -> Iterator[Place | None]:
        for label, folder in self.folders.items():
            if not folder.is_dir():
                log.warning("a folder that is to be scanned is not there", label=label)
            elif label == HUB:
                yield from self._repositories(folder)
            else:
                yield from self._walk(folder, label, folder.resolve(), 0)

    def _repositories(self, cache: Path) -> Iterator[Place | None]:
        """Each snapshot in the hub's cache: `org/name` for that of the main branch, `org/name@revision` for others."""
        for repository in sorted(cache.glob(f"{REPOSITORY}*")):
            if repository.is_symlink() or not repository.is_dir():
                continue
            main = main_revision(repository)
            name = "/".join((HUB, *repository.name.removeprefix(REPOSITORY).split("--", 1)))
            for snapshot in sorted((repository / "snapshots").glob("*")):
                label = name if snapshot.name == main else f"{name}@{snapshot.name[:12]}"
                yield from self._walk(snapshot, label, repository.resolve(), 1)

    def _walk(self, folder: Path, name: str, boundary: Path, depth: int) -> Iterator[Place | None]:
        """The folder's files and folders, by name; links to folders are not followed. None: there is more to do."""
        yield None
        try:
            with os.scandir(folder) as listed:
                entries = sorted((entry for entry in listed if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            return
        names = {entry.name for entry in entries}
        if depth > 0 and content.is_model_folder(names, folder):
            yield from self._place(name, folder, boundary, True, _folder_signature(folder))
            return
        holds_onnx = any(other.endswith(".onnx") for other in names)
        for entry in entries:
            below = f"{name}/{entry.name}"
            if below == CONFIGS:
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < DEPTH_MAX:
                    yield from self._walk(folder / entry.name, below, boundary, depth + 1)
            elif not (holds_onnx and PurePosixPath(entry.name).suffix in (".bin", ".data")):  # tensors of the ONNX file
                yield from self._file(entry, below, boundary)

    def _file(self, entry: "os.DirEntry[str]", name: str, boundary: Path) -> Iterator[Place | None]:
        try:
            status = entry.stat()
            regular = stat.S_ISREG(status.st_mode) and status.st_size >= FILE_BYTES_MIN
            if regular and entry.is_symlink():
                regular = Path(entry.path).resolve().is_relative_to(boundary)
        except OSError:  # a link to nowhere
            return
        if regular:
            signature = (status.st_size, status.st_mtime_ns, status.st_ino)
            yield from self._place(name, Path(entry.path), boundary, False, signature)

    def _place(
        self, name: str, path: Path, boundary: Path, is_folder: bool, signature: Signature
    ) -> Iterator[Place | None]:
        self._count += 1
        if self._count > FILES_MAX:
            self.complete = False
        elif len(name) <= NAME_LENGTH_MAX and name.isprintable():  # others have no name that could be told
            yield Place(name, path, boundary, is_folder, signature)


def main_revision(repository: Path) -> str | None:
    """That of the main branch, in a repository of the hub's cache."""
    try:
        return (repository / "refs" / "main").read_text(encoding="ascii").strip()[:100]
    except (OSError, ValueError):
        return None


def _changes(before: Seen, now: Seen) -> Changes:
    """Of what is a model's."""
    old = {name: signature for name, (signature, found) in before.items() if found is not None}
    new = {name: signature for name, (signature, found) in now.items() if found is not None}
    gone = [old[name] for name in old.keys() - new.keys()]
    come = [new[name] for name in new.keys() - old.keys()]
    renamed = len(set(gone) & set(come))
    changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
    return Changes(len(come) - renamed, changed, renamed, len(gone) - renamed)


def _folder_signature(folder: Path) -> str:
    """Changes where any file below changes, comes or goes."""
    whole = hashlib.sha256()
    for directory, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = os.path.join(directory, file)
            try:
                status = os.stat(path)
            except OSError:
                continue
            told = (os.path.relpath(path, folder), status.st_size, status.st_mtime_ns, status.st_ino)
            whole.update(repr(told).encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
