"""A server as users run it: an orchestrator and workers as processes, on ipc in a folder of their own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import zmq

from orchestrator.client import Client
from protocol.codec import attachment_list, pack, unpack_header
from protocol.sockets import HIGH_WATER_MARK, make_socket

ROOT = Path(__file__).parents[2]
SPANS = {  # much shorter than the defaults, and long enough for two busy cores
    "heartbeat_ms": 200,
    "lease_ms": 1500,
    "adoption_ms": 3000,
    "reconnect_grace_ms": 1000,
    "assign_grace_ms": 1000,
    "retry_backoff_ms": 100,
    "alive_ms": 200,
}
START_S = 30.0
LOG_SHOWN_BYTES = 6000

open_houses: list["House"] = []  # for the report of a failed test


class Process:
    """One process, its log in a file. It ends with `close`, whatever state it is in; those that watch their standard
    input end with the test run, too, however that ends."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str], cwd: Path = ROOT) -> None:
        self.log_file = log
        with log.open("ab") as stream:
            self.popen = subprocess.Popen(
                command, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """As `kill -9` does."""
        self.popen.kill()
        self.wait()

    def wait(self, timeout_s: float = 20.0) -> int:
        """The exit code."""
        code = self.popen.wait(timeout_s)
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        return code

    def close(self) -> None:
        if self.alive:
            self.popen.kill()
        self.wait()


class Worker(Process):
    """`python -m worker`: a parent that watches, and a child that works."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        super().__init__(command, log, environment)
        self.name = name

    @property
    def child(self) -> psutil.Process:
        """The process that works; waits for it to be there."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = psutil.Process(self.pid).children()
            return bool(found)

        eventually(there, 5)
        return found[0]

    def runners(self) -> list[psutil.Process]:
        """The processes in which its ONNX models live."""
        return [child for child in self.child.children() if "onnx.child" in " ".join(child.cmdline())]

    def kill_all(self) -> None:
        """Parent and child, as a machine that loses its power."""
        child = self.child
        self.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()

    def freeze(self) -> None:
        """Stop the parent first, so that it does not take its child's silence for a hang."""
        child = self.child
        self.signal(signal.SIGSTOP)
        child.suspend()

    def thaw(self) -> None:
        self.child.resume()
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children():
                process.kill()
        super().close()


class House:
    """Everything that one server keeps lies in `folder`. Use it in a `with`."""

    def __init__(self, **settings: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="atl"))  # ipc paths are short; pytest's folders are not
        self.endpoint = f"ipc://{self.folder}/run/client"
        self.worker_endpoint = f"ipc://{self.folder}/run/workers"
        self.data_dir = self.folder / "data"
        self.settings = {
            **SPANS,
            "runtime_dir": self.folder / "run",
            "data_dir": self.data_dir,
            "models_dir": self.folder,
            "client_endpoints": self.endpoint,
            "worker_endpoints": self.worker_endpoint,
            **settings,
        }
        self.orchestrator: Process | None = None
        self.workers: list[Worker] = []
        self._others: list[Process] = []
        self._clients: list[Any] = []

    def __enter__(self) -> "House":
        open_houses.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        open_houses.remove(self)
        for client in self._clients:
            client.close()
        for process in [*self.workers, *self._others, *([self.orchestrator] if self.orchestrator else [])]:
            process.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- processes --------------------------------------------------------------------------------------------

    def environment(self, **settings: Any) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
        named = {f"ATELIER_{name.upper()}": str(value) for name, value in {**self.settings, **settings}.items()}
        return {**inherited, **named, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}

    def run(self, arguments: Sequence[str], log: str, **settings: Any) -> Process:
        """Any other Python process with this server's settings."""
        process = Process([sys.executable, *arguments], self.folder / log, self.environment(**settings))
        self._others.append(process)
        return process

    def start_orchestrator(self, *, ready: bool = True, **settings: Any) -> Process:
        """Start it (again); with `ready`, wait until it answers."""
        environment = self.environment(**settings)
        command = [sys.executable, "-m", "orchestrator", "--exit-with-stdin"]
        self.orchestrator = Process(command, self.folder / "orchestrator.log", environment)
        if ready:
            with Client(self.endpoint, connect_timeout_s=START_S) as client:
                client.ping(timeout_s=START_S)
        return self.orchestrator

    def start_worker(self, name: str, *arguments: str) -> Worker:
        """With one slot unless `arguments` say otherwise: jobs wait in the queue, where most tests want them."""
        command = [sys.executable, "-m", "worker", "--connect", self.worker_endpoint, "--device", "cpu"]
        command += ["--name", name, "--slots", "1", "--instructors", "tests.e2e.actions", "--death-pipe", *arguments]
        worker = Worker(name, command, self.folder / f"{name}.log", self.environment())
        self.workers.append(worker)
        return worker

    def client(self, **options: Any) -> Client:
        client = Client(self.endpoint, **{"timeout_s": 30, **options})
        self._clients.append(client)
        return client

    def raw(self, **options: Any) -> "Raw":
        raw = Raw(self.endpoint, **options)
        self._clients.append(raw)
        return raw

    # --- looking ----------------------------------------------------------------------------------------------

    def wait_for_workers(self, *names: str, gone: Sequence[str] = (), timeout_s: float = START_S) -> float:
        """Until these workers are connected, and the `gone` not any more; how long it took, in seconds."""

        def there() -> bool:
            connected = {worker.worker_id for worker in client.workers(timeout_s=10)}
            return connected.issuperset(names) and connected.isdisjoint(gone)

        with Client(self.endpoint, connect_timeout_s=START_S) as client:
            return eventually(there, timeout_s)

    def file(self, name: str) -> Path:
        """For executions to be counted in, see `actions.py`."""
        return self.folder / name

    def logs(self) -> str:
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            parts.append(f"--- {log.name}\n{log.read_bytes()[-LOG_SHOWN_BYTES:].decode(errors='replace')}")
        return "\n".join(parts)


class Raw:
    """A socket under a test's control: what no client of ours would send."""

    def __init__(self, endpoint: str, kind: int = zmq.DEALER, *, high_water_mark: int = HIGH_WATER_MARK) -> None:
        self._context = zmq.Context()
        self.socket = make_socket(self._context, kind, high_water_mark=high_water_mark)
        self.socket.connect(endpoint)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def request(
        self, request_id: str, action: str, data: Any = None, attachments: Sequence[bytes] = (), **fields: Any
    ) -> None:
        """A request of version 1, with any fields on top of it or in place of its own."""
        header = {"protocol": 1, "request_id": request_id, "action": action, "data": {} if data is None else data}
        header["attachments"] = attachment_list(attachments, ["application/octet-stream"] * len(attachments))
        self.send(pack({**header, **fields}), *attachments)

    def receive(self, timeout_s: float = 10.0) -> tuple[dict[str, Any], list[bytes]] | None:
        """The next message but `alive`; None when none came in time."""
        until = time.monotonic() + timeout_s
        while self.socket.poll(max(0, int(1000 * (until - time.monotonic())))):
            header, *frames = self.socket.recv_multipart()
            message = unpack_header(header)
            if message.get("kind") != "alive":
                return message, frames
        return None

    def answer(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """The header of the next response."""
        received = self.receive(timeout_s)
        assert received is not None, "no answer came"
        return received[0]

    def ask(self, request_id: str, action: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        self.request(request_id, action, data, **fields)
        answer = self.answer()
        assert answer["request_id"] == request_id
        return answer

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.term()


def eventually(true: Callable[[], bool], timeout_s: float = 10.0) -> float:
    """Wait until something holds; how long it took, in seconds."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < timeout_s, f"did not come about within {timeout_s} s"
        time.sleep(0.02)
    return time.monotonic() - begun


def lines(file: Path) -> int:
    """How often a job that appends to this file was begun."""
    return len(file.read_text().splitlines()) if file.exists() else 0


def told(**instructions: Any) -> dict[str, Any]:
    """The `echo` that `actions.py` obeys."""
    return {"test": {name: str(value) if isinstance(value, Path) else value for name, value in instructions.items()}}
