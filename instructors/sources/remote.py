"""Files of a model behind a URL that the operator allowed: S3 and whatever else fsspec speaks.

Credentials and endpoints are the environment's (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and their like): requests bring
none.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from posixpath import basename
from typing import Any
from urllib.parse import unquote, urlsplit

from instructors.sources import Broken, Source, SourceFile, Told
from instructors.sources.folder import FolderSource
from protocol.errors import Forbidden, InvalidRequest, ModelInvalid, NotFound, Unavailable
from protocol.limits import MIB

PIECE_BYTES = 8 * MIB  # one request of a range
CONNECT_S, ANSWER_S = 10, 30
S3_OPTIONS = {
    "config_kwargs": {"connect_timeout": CONNECT_S, "read_timeout": ANSWER_S, "retries": {"max_attempts": 1}},
    "skip_instance_cache": True,
}
HTTP_OPTIONS = {"allow_redirects": False, "skip_instance_cache": True}  # they could lead anywhere
OPTIONS: dict[str, dict[str, Any]] = {"s3": S3_OPTIONS, "s3a": S3_OPTIONS, "http": HTTP_OPTIONS, "https": HTTP_OPTIONS}
PLAIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s?#*\[\]\\]+")


def open_url(url: str, allowed: Sequence[str]) -> Source:
    """The source behind a URL that begins with one of `allowed`. Raises InvalidRequest, Forbidden and Unavailable (its
    library is not installed)."""
    if not PLAIN.fullmatch(url) or "::" in url or ".." in unquote(url).split("/"):
        raise InvalidRequest("A URL is like s3://bucket/folder: no query, no wildcards, and no '..'.")
    prefix = next((prefix for prefix in allowed if f"{url}/".startswith(f"{prefix.rstrip('/')}/")), None)
    if prefix is None:
        raise Forbidden("The operator does not allow models from there: see `sources` in the worker's catalogue.toml.")
    if urlsplit(url).scheme == "file":
        root, path = (Path(unquote(urlsplit(text).path)) for text in (prefix, url))
        return FolderSource(str(path.relative_to(root)), root, whole=True)
    return RemoteSource(url)


class RemoteSource:
    """A folder or a single file."""

    resumes = True

    def __init__(self, url: str) -> None:
        """Raises Unavailable."""
        self.told = Told()
        scheme = urlsplit(url).scheme
        try:
            import fsspec

            self._filesystem, self._path = fsspec.url_to_fs(url, **OPTIONS.get(scheme, {}))
        except ImportError:
            extra = "atelier[s3]" if scheme == "s3" else f"what fsspec needs for {scheme}"
            raise Unavailable(f"This worker lacks the library for {scheme}:// URLs: install {extra}.") from None
        except ValueError:
            raise InvalidRequest("This worker does not know URLs of this kind.") from None

    def files(self) -> Sequence[SourceFile]:
        with _failures():
            found = self._filesystem.find(self._path, detail=True)
            found = {
                key: entry or self._filesystem.info(key) for key, entry in found.items()
            }  # of http, files have none
        prefix = self._path.rstrip("/") + "/"
        files = []
        for key, entry in found.items():
            if entry["type"] != "file" or key.endswith("/"):  # some tools mark a folder by an empty object
                continue
            if entry.get("size") is None:
                raise Unavailable("The place does not say how long its files are.")
            path = key.removeprefix(prefix) if key.startswith(prefix) else basename(key)
            files.append(SourceFile(path, int(entry["size"]), key))
        if not files:
            raise NotFound("There are no files behind this URL.")
        return files

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        """Where the file changes meanwhile, the next range is refused: s3fs asks for the version that it opened."""
        with _failures(), self._filesystem.open(file.key, "rb", block_size=PIECE_BYTES, cache_type="none") as stream:
            stream.seek(begin)
            while True:
                piece = stream.read(PIECE_BYTES)
                if not piece:
                    return
                yield piece


@contextmanager
def _failures() -> Iterator[None]:
    """What fsspec's file systems raise, in our words: theirs may hold URLs and keys."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound("There is nothing behind this URL.") from None
    except PermissionError:
        raise Forbidden("The place refuses the worker's credentials.") from None
    except (OSError, TimeoutError) as error:
        if type(error).__name__ == "FileExpired":  # of s3fs
            raise ModelInvalid("A file changed while it was fetched; try again.") from None
        raise Broken(type(error).__name__) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec"):
            if "Credentials" in type(error).__name__:
                raise Forbidden("The worker has no credentials for this place.") from None
            raise Broken(type(error).__name__) from error
        raise
