"""The servers that models are fetched from: a real MLflow server, and an S3 API server, each a process of its own."""

import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / ".venv-servers" / "bin"
needs_servers = pytest.mark.skipif(
    not (BIN.parent / ".ready").exists(),
    reason="the servers that models are fetched from are not installed: make .venv-servers/.ready",
)
START_S = 200  # a busy machine takes a minute to import MLflow
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(command: list[str], url: str, folder: Path) -> Iterator[None]:
    """The server, from when it answers at `url`; ended by its process id."""
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**os.environ, **QUIET}, start_new_session=True
        )
    try:
        until = time.monotonic() + START_S
        while not answers(url):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        yield
    finally:
        os.killpg(server.pid, 9)  # its own session: with the workers that it started
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with running([str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], address, folder):
        yield address


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Its address. It hands out the files of models itself."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    stores = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores]
    with running(command, f"{address}/health", folder):
        yield address


def put(address: str, path: str, data: bytes = b"") -> None:
    """Make a bucket (`/name`) or an object (`/bucket/key`) of an S3 server."""
    somebody = "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Content-Type": "application/octet-stream", "Authorization": somebody}
    request = urllib.request.Request(f"{address}{path}", data, headers, method="PUT")
    with urllib.request.urlopen(request, timeout=30):
        pass


class Cutter:
    """Stands before a server, and cuts each of the first connections after so many bytes of what the server says.
    `then` is called before each cut."""

    def __init__(self, address: str, cuts: int, after_bytes: int, then: Callable[[], None] = lambda: None) -> None:
        self._then = then
        self._port = int(address.rpartition(":")[2])
        self._cuts, self._after_bytes = cuts, after_bytes
        self.cut = self.passed_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        said = 0
        with suppress(OSError), client, server:
            while data := server.recv(65536):
                said += len(data)
                with self._lock:
                    self.passed_bytes += len(data)
                    over = said > self._after_bytes and self.cut < self._cuts
                    self.cut += over
                if over:
                    self._then()
                    break
                client.sendall(data)
            for end in (client, server):  # a close alone would say nothing while the other thread reads
                end.shutdown(socket.SHUT_RDWR)
