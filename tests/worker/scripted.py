"""The other sides of a worker, for tests: an orchestrator's socket under a test's control, and the worker's process."""

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
from typing import Any

import psutil
import zmq

from protocol.codec import attachment_list, pack, unpack_header
from protocol.sockets import make_socket

ROOT = Path(__file__).parents[2]
PLUGIN = ["--instructors", "tests.worker.plugin"]


class ScriptedOrchestrator:
    """A ROUTER that says what a test tells it to. Heartbeats are acknowledged while `acknowledge` is true."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="atelier"))  # ipc paths are short; pytest's folders are not
        self.endpoint = f"ipc://{self._folder}/workers"
        self.epoch = "epoch-1"
        self.acknowledge = True
        self.lease_ms, self.heartbeat_ms = 15_000, 100
        self.seen: list[dict[str, Any]] = []
        self.identity = b""  # of the peer last heard from
        self._context = zmq.Context()
        self.bind()

    def bind(self) -> None:
        self._router = make_socket(self._context, zmq.ROUTER)
        self._router.bind(self.endpoint)

    def vanish(self) -> None:
        """As if killed: connections end without a word."""
        self._router.close()

    def close(self) -> None:
        self._router.close()
        self._context.term()
        shutil.rmtree(self._folder)

    def send(self, kind: str, attachments: Sequence[bytes] = (), **fields: Any) -> None:
        header = {"kind": kind, "attachments": attachment_list(attachments, ["image/png"] * len(attachments)), **fields}
        self.send_raw(pack(header), *attachments)

    def send_raw(self, *frames: bytes) -> None:
        self._router.send_multipart([self.identity, *frames])

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, its attachments under "frames"; None when none came in time."""
        if not self._router.poll(1000 * max(timeout_s, 0)):
            return None
        self.identity, header, *frames = self._router.recv_multipart()
        message = {**unpack_header(header), "frames": frames, "identity": self.identity}
        self.seen.append(message)
        if message["kind"] == "heartbeat" and self.acknowledge:
            self.send("heartbeat_ack", orchestrator_epoch=self.epoch, models_upto=message["models_upto"])
        return message

    def expect(self, kind: str, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        """The next message of this kind with these fields; others are passed over (and stay in `seen`)."""
        until = time.monotonic() + timeout_s
        while (message := self.receive(until - time.monotonic())) is not None:
            if message["kind"] == kind and all(message.get(name) == value for name, value in fields.items()):
                return message
        raise AssertionError(f"no {kind} {fields} within {timeout_s} s; seen: {[m['kind'] for m in self.seen[-10:]]}")

    def expect_none(self, kind: str, during_s: float) -> None:
        with contextlib.suppress(AssertionError):
            message = self.expect(kind, during_s)
            raise RuntimeError(f"an unexpected {kind}: {message}")

    def welcome(self, timeout_s: float = 15.0) -> dict[str, Any]:
        """Wait for a hello and answer it."""
        hello = self.expect("hello", timeout_s)
        self.send_welcome(hello["worker_id"])
        return hello

    def send_welcome(self, worker_id: str) -> None:
        self.send(
            "welcome",
            protocol=1,
            worker_id=worker_id,
            orchestrator_epoch=self.epoch,
            heartbeat_ms=self.heartbeat_ms,
            lease_ms=self.lease_ms,
        )

    def assign(
        self,
        job_id: str,
        action: str,
        data: dict[str, Any],
        attempt: int = 1,
        attachments: Sequence[bytes] = (),
        priority: int = 4,
    ) -> None:
        self.send(
            "assign",
            attachments,
            job_id=job_id,
            attempt=attempt,
            action=action,
            data=data,
            tenant="default",
            request_id=f"request-{job_id}",
            fingerprint=b"f" * 32,
            priority=priority,
        )

    def acknowledge_result(self, result: dict[str, Any]) -> None:
        self.send("result_ack", results=[{"job_id": result["job_id"], "attempt": result["attempt"]}])

    def run(self, job_id: str, action: str, data: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Assign, wait for the result, acknowledge it."""
        self.assign(job_id, action, data, **more)
        result = self.expect("result", 30, job_id=job_id)
        self.acknowledge_result(result)
        return result

    def held(self) -> dict[str, str]:
        """job_id -> state, as the next but one heartbeat has it (the next may be on its way already)."""
        self.expect("heartbeat")
        return {job["job_id"]: job["state"] for job in self.expect("heartbeat")["held"]}

    def wait_for(self, true: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Answer the worker until something holds."""
        until = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < until, "did not come about in time"
            self.receive(0.05)


class WorkerProcess:
    """`python -m worker` in a process of its own."""

    def __init__(self, connect: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> None:
        command = [sys.executable, "-m", "worker", "--connect", connect, "--device", "cpu", "--name", "w1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdin=stdin, stderr=self._log, env=environment, start_new_session=True
        )

    @property
    def child(self) -> psutil.Process:
        """The process that works; waits for it to be there."""
        for _ in range(100):
            children = psutil.Process(self.process.pid).children()
            if children:
                return children[0]
            time.sleep(0.05)
        raise AssertionError("the parent has no child")

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        return self.process.wait(timeout_s)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()
