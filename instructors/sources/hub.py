"""Models of Hugging Face's hub: `hub://org/name`, from its cache on this machine or from the hub itself.

Of a repository only what would be run here is fetched: safetensors and ONNX with their configs; no pickle, and nothing
twice. The hub's checksums are held against what came. A token is the environment's (HF_TOKEN): requests bring none.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from instructors.catalogue.settings import FILE, Hub, hub_cache
from instructors.catalogue.target import in_cache
from instructors.models import INDEX, files_of
from instructors.sources import Broken, SourceFile, Told
from protocol.errors import AtelierError, Forbidden, InvalidRequest, ModelInvalid, NotFound, Unavailable
from protocol.limits import MIB

URL = re.compile(r"hub://([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w.-]{1,100}))?((?:/[\w.-]+)*)", re.A)
SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors", ".onnx", ".onnx_data", ".data", ".md"})
WEIGHTS = (".safetensors", ".onnx")
VARIANT = re.compile(r"(.*/)?([^/.]+)\.\w+((?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?)")
ANSWER_S = 30.0
PIECE_BYTES = 4 * MIB
RESUMED, DENIED, ABSENT = 206, (401, 403), (404, 410)


@dataclass(frozen=True, slots=True)
class Key:
    """A file: at a path of this machine, or in the repository with the checksum that the hub tells."""

    path: Path | None = None
    name: str = ""
    sha256: str | None = None  # of large files
    blob_id: str | None = None  # git's, of the others


class HubSource:
    """A repository, or a folder or file in it. The hub itself is asked first, where that is allowed: what it says is
    newer; where it does not answer, the cache may still have the model."""

    resumes = True

    def __init__(self, url: str, settings: Hub) -> None:
        """Raises InvalidRequest and Forbidden."""
        match = URL.fullmatch(url)
        if match is None or ".." in url:
            raise InvalidRequest(
                "A model of the hub is called hub://org/name, hub://org/name@revision, or a file in it."
            )
        if not settings.cache and not settings.download:
            raise Forbidden(f"The operator does not allow models of the hub: see `hub` in the worker's {FILE}.")
        self._repository, self._revision, self._below = match[1], match[2], match[3].strip("/")
        self._settings = settings
        self._commit = ""
        self._digests: dict[str, tuple[Any, int]] = {}  # of what came so far: (digest, bytes)
        self.told = Told()

    def files(self) -> Sequence[SourceFile]:
        found = self._from_hub() if self._settings.download else self._from_cache()
        self.told.tags["hub"] = self._repository
        if not found:
            raise NotFound("The hub has nothing of this name that is run here: no safetensors and no ONNX.")
        return found

    def _from_hub(self) -> Sequence[SourceFile]:
        try:
            with _failures():
                info = _api().model_info(
                    self._repository, revision=self._revision, files_metadata=True, timeout=ANSWER_S
                )
        except Broken:
            if not self._settings.cache:
                raise
            try:
                found = self._from_cache()
            except AtelierError:
                raise Broken("the hub does not answer, and its cache does not hold the model") from None
            self.told.warnings.append("The hub does not answer: this is what its cache held.")
            return found
        self._commit = str(info.sha)
        self.told.tags["revision"] = self._commit
        entries = {entry.rfilename: entry for entry in info.siblings or []}
        return [
            SourceFile(path, int(entries[name].size or 0), Key(None, name, *_checksums(entries[name])))
            for path, name in self._wanted(entries)
        ]

    def _from_cache(self) -> Sequence[SourceFile]:
        if not self._settings.cache:
            raise NotFound("The hub's cache on this machine may not be looked into.")
        revision = f"@{self._revision}" if self._revision else ""
        snapshot, boundary = in_cache(hub_cache(), f"{self._repository}{revision}".split("/"))
        if snapshot is None:
            raise NotFound("The hub's cache on this machine does not hold this model, and no download is allowed.")
        self.told.tags["revision"] = snapshot.name
        files = {file.relative_to(snapshot).as_posix(): file for file in files_of(snapshot, boundary)}
        return [SourceFile(path, files[name].stat().st_size, Key(files[name])) for path, name in self._wanted(files)]

    def _wanted(self, names: Any) -> Iterator[tuple[str, str]]:
        """(path in the model's folder, name in the repository)."""
        below = f"{self._below}/" if self._below else ""
        if self._below in names:
            yield PurePosixPath(self._below).name, self._below
            return
        found = {name.removeprefix(below): name for name in names if name.startswith(below)}
        for path in chosen(found):
            yield path, found[path]

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        pieces = _pieces(file.key.path, begin) if file.key.path is not None else self._download(file, begin)
        yield from pieces

    def _download(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        digest, done = self._digests.get(file.key.name, (None, 0))
        if digest is None or done != begin:
            digest, done = _digest(file), 0
        with _failures(), _stream(self._url(file.key.name), begin) as answer:
            skip = 0 if answer.status_code == RESUMED else begin  # it does not know ranges, and sends all
            for piece in answer.iter_bytes():
                rest = piece[skip:]
                skip -= len(piece) - len(rest)
                if rest:
                    digest.update(rest)
                    done += len(rest)
                    self._digests[file.key.name] = (digest, done)
                    yield rest
        if done == file.nbytes and digest.hexdigest() != (file.key.sha256 or file.key.blob_id):
            raise ModelInvalid("A file is not what the hub says of it: its checksum is another one. Try again later.")

    def _url(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self._repository, name, revision=self._commit)


def chosen(names: Sequence[str] | dict[str, str]) -> list[str]:
    """Of a repository's files, those that a model is run from."""
    kept = {name for name in names if PurePosixPath(name).suffix in SUFFIXES and not _is_hidden(name)}
    if INDEX in kept:  # beside the folders of a pipeline lies at times the same as one file, and in ONNX
        kept = {name for name in kept if "/" in name or not name.endswith(WEIGHTS)}
        if any(name.endswith(".safetensors") for name in kept):
            kept = {name for name in kept if not name.endswith((".onnx", ".onnx_data", ".data"))}
    kept = {name for name in kept if _plain(name) not in kept - {name}}
    return sorted(kept) if any(name.endswith(WEIGHTS) for name in kept) else []


def _plain(name: str) -> str:
    """`unet/model.fp16.safetensors` -> `unet/model.safetensors`, which holds the same more precisely."""
    match = VARIANT.fullmatch(name)
    return f"{match[1] or ''}{match[2]}{match[3]}" if match else name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _checksums(entry: Any) -> tuple[str | None, str | None]:
    return (None, entry.blob_id) if entry.lfs is None else (entry.lfs.sha256, None)


def _digest(file: SourceFile) -> Any:
    """SHA-256 of large files; of the others git's own, which begins with their length."""
    return hashlib.sha256() if file.key.sha256 else hashlib.sha1(b"blob %d\0" % file.nbytes, usedforsecurity=False)


def _pieces(path: Path, begin: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(begin)
        while piece := stream.read(PIECE_BYTES):
            yield piece


def _api() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "0"  # a worker's libraries use no network; this process is there to do so
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise Unavailable("This worker lacks the library for the hub: install atelier[worker].") from None
    return HfApi()


@contextmanager
def _stream(url: str, begin: int) -> Iterator[Any]:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with get_session().stream("GET", url, headers=headers, timeout=ANSWER_S, follow_redirects=True) as answer:
        hf_raise_for_status(answer)
        yield answer


@contextmanager
def _failures() -> Iterator[None]:
    """What the library raises, in our words."""
    try:
        yield
    except AtelierError:
        raise
    except (OSError, TimeoutError) as error:
        _raise_as(error)
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        _raise_as(error)


def _raise_as(error: Exception) -> None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in DENIED:  # the hub says 401 of what does not exist, too, where no token is given
        raise Forbidden("The hub has no such model, or does not give it to this worker: it may want a token.") from None
    if status in ABSENT:
        raise NotFound("The hub has no such model, or no such revision of it.") from None
    raise Broken(type(error).__name__) from error
