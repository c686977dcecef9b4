"""`model.fetch`: bring the files of a model's version into the model folder, from wherever they are."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import structlog

from instructors.models import SHELVES
from instructors.registry import Registry
from instructors.sources.staging import Staging
from instructors.task import Context, Lane, Result, SharedTask
from protocol.codec import Buffer
from protocol.enums import EventName
from protocol.errors import AtelierError, InvalidRequest, Unavailable
from protocol.limits import MIB
from protocol.schemas import ACTIONS
from protocol.schemas.model import FetchData, ModelSource
from protocol.schemas.values import AttachmentRef

STALL_S = 60.0  # without a byte: then a place counts as away
READ_BYTES = 64 * 1024
LINE_BYTES_MAX = 1 * MIB  # of what the child says
FEED_BYTES = 1 * MIB

log = structlog.get_logger("instructors.fetch")


class Fetcher:
    """The one unit of the task: away while its process is at work."""

    def __init__(self, data: FetchData, context: Context) -> None:
        root = context.models.root
        if root is None:
            raise Unavailable("This worker has no model folder.")
        if data.name in SHELVES:
            raise InvalidRequest(f"{data.name} is the name of a folder for other things; choose another name.")
        self._context = context
        self._source, self._parts = _wanted(data.source, context)
        self._staging = Staging(root)
        self._order = {
            "root": str(root.resolve()),
            "staging": str(self._staging.path.resolve()),
            "name": data.name,
            "version": data.version,
            "source": self._source,
            "stall_s": STALL_S,
        }
        self.lane: Lane | None = None
        self.away = self.done = self._closed = False
        self.rows = 1
        self.error: BaseException | None = None
        self.result: dict[str, Any] = {}
        self._said = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0.0

    def step(self) -> None:
        """Start the process; the rest is done when it says something."""
        command = [sys.executable, "-m", "instructors.sources.child"]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError:
            self._end(Unavailable("The worker could not start the process that fetches models."))
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._feeder = threading.Thread(target=self._feed, args=[self._process], name="feed", daemon=True)
        self._feeder.start()
        self._begun = time.monotonic()
        self.away = True
        self._context.watch(self, self._hear)

    def fileno(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _feed(self, process: "subprocess.Popen[bytes]") -> None:
        """In a thread of its own: the process takes what was sent as fast as its disk does."""
        assert process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended, or was closed: what it said tells why
            _write(process.stdin.fileno(), json.dumps(self._order).encode() + b"\n")
            for part in self._parts:
                _write(process.stdin.fileno(), part)

    def _hear(self) -> None:
        try:
            raw = os.read(self.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        *lines, self._said = (self._said + raw).split(b"\n")
        for line in lines:
            if not self.done:
                self._take(json.loads(line))
        if not self.done and (not raw or len(self._said) > LINE_BYTES_MAX):
            self._end(Unavailable("The process that fetched the model ended; nothing was registered."))

    def _take(self, line: dict[str, Any]) -> None:
        if "result" in line:
            self.result = line["result"]
            self._end(None)
        elif "error" in line:
            self._end(AtelierError.from_wire(line["error"]))
        else:
            done, total = line["done"], line["total"]
            spent_s = time.monotonic() - self._begun
            eta_ms = round(spent_s * 1000 * (total - done) / done) if done else None
            progress = {"progress": done / max(total, 1), "eta_ms": eta_ms, "nbytes": done, "nbytes_total": total}
            self._context.emit(EventName.PROGRESS, progress)

    def _end(self, error: BaseException | None) -> None:
        self.error, self.done, self.away = error, True, False
        self.close()

    def close(self) -> None:
        """End the process, and remove what it left. Called once more where the task is over."""
        if self._closed:
            return
        self._closed = True
        self.away, self._parts = False, []
        if self._process is None:
            self._staging.close()
            return
        self._context.unwatch(self)
        self._process.kill()
        threading.Thread(target=self._tidy, args=[self._process], name="tidy", daemon=True).start()

    def _tidy(self, process: "subprocess.Popen[bytes]") -> None:
        """Off the device thread: a disk may take long to remove large files."""
        process.wait()
        self._feeder.join()  # it ends where nobody reads
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._staging.close()


class Fetch(SharedTask):
    """Its work is done by a process of its own, so the device has time for others."""

    def __init__(self, data: FetchData, context: Context) -> None:
        self._fetcher = Fetcher(data, context)
        self.units = [self._fetcher]

    def result(self) -> Result:
        return Result(self._fetcher.result)


def _wanted(source: ModelSource, context: Context) -> tuple[dict[str, Any], list[Buffer]]:
    """What the process is told of the source, and the bytes that it is sent."""
    if source.files is None:
        return source.model_dump(exclude_none=True), []
    parts: list[Buffer] = []
    files = []
    for file in source.files:
        refs = [part for part in file.parts if isinstance(part, AttachmentRef)]  # artifacts came as attachments
        if len(refs) < len(file.parts):
            raise InvalidRequest("The files of a model are sent as attachments or artifacts.")
        own = [context.blobs[ref.attachment].data for ref in refs]
        views: list[Buffer] = [data for data in own if not callable(data)]
        files.append([file.path, sum(memoryview(view).nbytes for view in views)])
        parts += views
    return {"files": files}, parts


def _write(descriptor: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view[:FEED_BYTES]) :]


def register(registry: Registry) -> None:
    registry.add(ACTIONS["model.fetch"], Fetch, shares=True)
