"""Runs `model.fetch` as a worker does, without one."""

import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instructors.fetch import Fetch
from instructors.sources.staging import FOLDER
from instructors.task import Blob, Source
from protocol.schemas.base import validate
from protocol.schemas.model import FetchData
from tests.instructors.conftest import Desk
from tests.instructors.onnx_models import affine


class FetchDesk(Desk):
    """A desk that hears what arrives at watched sources, while a test waits."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._selector = selectors.DefaultSelector()
        self._begun: list[Fetch] = []

    def watch(self, source: Source, arrived: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, arrived)

    def unwatch(self, source: Source) -> None:
        self._selector.unregister(source)

    def hear(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def begin(
        self, source: dict[str, Any], name: str = "found", version: str = "1", blobs: Sequence[bytes] = ()
    ) -> Fetch:
        """The task, its process started."""
        self.blobs = [Blob("application/octet-stream", data) for data in blobs]
        data = validate(FetchData, {"name": name, "version": version, "source": source})
        assert isinstance(data, FetchData)
        task = Fetch(data, self)
        self._begun.append(task)
        begun = time.monotonic()
        task.step()
        assert time.monotonic() - begun < 1  # the device thread does not wait for places
        return task

    def finish(self, task: Fetch, within_s: float = 30) -> dict[str, Any]:
        """What it answers, once its folder is tidy again. Raises what it ends with."""
        (unit,) = task.units
        until = time.monotonic() + within_s
        while not unit.done:
            assert time.monotonic() < until, "it does not end"
            self.hear(0.05)
        self.wait_until_tidy()
        if unit.error is not None:
            raise unit.error
        return task.result().data

    def fetch(
        self, source: dict[str, Any], name: str = "found", version: str = "1", blobs: Sequence[bytes] = ()
    ) -> Any:
        return self.finish(self.begin(source, name, version, blobs))

    def close(self) -> None:
        """After a test, however it ended."""
        for task in self._begun:
            task.close()
        self.wait_until_tidy()
        self._selector.close()

    @property
    def staged(self) -> list[Path]:
        assert self.models.root is not None
        folder = self.models.root / FOLDER
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def wait_until_tidy(self) -> None:
        until = time.monotonic() + 10
        while self.staged:
            assert time.monotonic() < until, "something was left behind"
            time.sleep(0.01)


def onnx_bytes(folder: Path, factor: float = 2.0) -> bytes:
    """A small ONNX model's file."""
    return affine(folder / f"affine-{factor}.onnx", factor, 0.0).read_bytes()


def allow(root: Path, urls: Sequence[str] = (), mlflow: str | None = None) -> None:
    """What an operator writes to let models come from elsewhere."""
    lines = ["[sources]", f"urls = {json.dumps(list(urls))}", *([f"mlflow = {json.dumps(mlflow)}"] if mlflow else [])]
    (root / "catalogue.toml").write_text("\n".join(lines) + "\n")


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield server.getsockname()[1]
