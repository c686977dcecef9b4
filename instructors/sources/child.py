"""The process that fetches a model, checks it and puts it in place: it may be killed wherever a place hangs.

Its first line of input says what is wanted, as JSON; files that were sent with the request follow. It tells its
progress and, last, how it ended, a line each. It never outlives its parent, whose end of the pipe it watches.
"""

import errno
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from instructors.catalogue.settings import read_settings
from instructors.sources import Source
from instructors.sources.bring import bring
from instructors.sources.folder import FolderSource
from instructors.sources.upload import UploadSource
from protocol.errors import AtelierError, InternalError, Unavailable

HUB_SCHEME = "hub://"
TELL_S = 0.25  # between two lines of progress
FULL = (errno.ENOSPC, errno.EDQUOT)


class Teller:
    """Says how far it is; ends the process with an error when nothing moves for too long, or its parent is gone."""

    def __init__(self, stall_s: float, output: IO[str]) -> None:
        self._stall_s = stall_s
        self._output = output
        self._lock = threading.Lock()
        self._moved_at = time.monotonic()
        self._told_at = 0.0
        self._done, self._total = -1, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def progress(self, done: int, total: int) -> None:
        """Called after each piece: so many of so many bytes."""
        now = time.monotonic()
        if done != self._done:
            self._done, self._total, self._moved_at = done, total, now
        if now - self._told_at >= TELL_S or done == total:
            self._told_at = now
            self.say({"done": done, "total": total})

    def say(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._output.write(json.dumps(line) + "\n")
            self._output.flush()

    def _watch(self) -> None:
        while self._done < self._total or not self._total:  # then it is checked here, which may take as long as it does
            time.sleep(self._stall_s / 20)
            if time.monotonic() - self._moved_at > self._stall_s:
                late = Unavailable(f"The place where the model lies has not answered for {self._stall_s:g} s.")
                self.say({"error": late.to_wire()})
                os._exit(1)


def main() -> int:
    pipe, output = sys.stdin.buffer, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print would be taken for us
    wanted = json.loads(pipe.readline())
    teller = Teller(wanted["stall_s"], output)
    try:
        teller.say({"result": _fetch(wanted, pipe, teller)})
    except AtelierError as error:
        teller.say({"error": error.to_wire()})
    except OSError as error:
        traceback.print_exc()
        problem = "is full" if error.errno in FULL else "cannot be written to or read"
        teller.say({"error": Unavailable(f"The worker's disk {problem}; nothing was registered.").to_wire()})
    except Exception:
        traceback.print_exc()
        teller.say({"error": InternalError().to_wire()})
    return 0


def _fetch(wanted: dict[str, Any], pipe: IO[bytes], teller: Teller) -> dict[str, Any]:
    root = Path(wanted["root"])
    source = _open(wanted["source"], root, pipe)
    if not isinstance(source, UploadSource):  # else the pipe brings files, and its end is noticed there
        _die_with_parent(pipe)
    return bring(source, root, Path(wanted["staging"]), wanted["name"], wanted["version"], teller.progress)


def _open(source: dict[str, Any], root: Path, pipe: IO[bytes]) -> Source:
    if "files" in source:
        return UploadSource([(path, nbytes) for path, nbytes in source["files"]], pipe)
    if "folder" in source:
        return FolderSource(source["folder"], root, whole=False)
    from instructors.sources.mlflow import MlflowSource
    from instructors.sources.remote import open_url

    settings = read_settings(root)
    allowed = settings.sources
    if source.get("url", "").startswith(HUB_SCHEME):
        from instructors.sources.hub import HubSource

        return HubSource(source["url"], settings.hub)
    if "url" in source:
        return open_url(source["url"], allowed.urls)
    return MlflowSource(source["mlflow"], allowed.mlflow, lambda url: open_url(url, allowed.urls))


def _die_with_parent(pipe: IO[bytes]) -> None:
    """The parent holds the other end and writes no more: its end is the parent's end."""

    def wait() -> None:
        pipe.read(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    code = main()
    os._exit(code)  # without waiting for threads of libraries
