"""The process in which one ONNX model lives. Its end frees all that the model took, on the GPU as well.

Started by `Runner.start`, it never outlives its parent, whose socket it watches. It imports numpy, onnxruntime and
msgpack, no more.
"""

import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from typing import Any

import onnxruntime

from instructors.pipelines.onnx.facts import RunnerSpec
from instructors.pipelines.onnx.frames import Frame, Header, Incoming, Outgoing
from instructors.pipelines.onnx.session import DeviceFailed, Session
from protocol.errors import AtelierError, PayloadTooLarge, TimeoutRun, Unavailable
from protocol.frames import keep_memory

TICK_S = 0.25  # how often runs are looked at
STOP_GRACE_S = 2.0  # for a run that was told to end
ENDED, FAILED = 0, 1  # exit codes


class Running:
    """A run in progress. `options` can end it between two of the graph's nodes."""

    def __init__(self, batch_id: int, timeout_s: float) -> None:
        self.batch_id = batch_id
        self.options = onnxruntime.RunOptions()
        self.until = time.monotonic() + timeout_s


class Child:
    """Each of the spec's instances is a thread that reads a batch, computes it and answers.

    A batch that finds all of them at work waits in the socket, and behind it with the parent, which never blocks.
    """

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._incoming = Incoming()
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._running: set[Running] = set()

    def load(self) -> bool:
        """Whether it went well; the parent is told."""
        header, _ = self._next()
        self._spec = RunnerSpec.from_wire(header["spec"])
        files = [self._spec.path, *(self._spec.path.parent / name for name in header["external"])]
        try:
            _limit_memory(self._spec)
            self._session = Session(self._spec, files)
        except DeviceFailed:
            self._send({"error": Unavailable("The device failed while the model was loaded.").to_wire()})
        except AtelierError as error:
            self._send({"error": error.to_wire()})
        except OSError:
            self._send({"error": Unavailable("The model's files cannot be read at present.").to_wire()})
        else:
            self._send({"facts": self._session.facts.to_wire()})
            return True
        return False

    def run(self) -> None:
        """Until the parent is gone."""
        for number in range(self._spec.instances):
            threading.Thread(target=self._serve, name=f"instance {number}", daemon=True).start()
        poll = select.poll()
        poll.register(self._sock, 0)  # a hang-up is told unasked
        while not poll.poll(TICK_S * 1000):
            self._end_overdue()

    def _serve(self) -> None:
        try:
            while True:
                with self._reading:
                    header, tensors = self._next()
                self._answer(header, tensors)
        except (EOFError, OSError):
            return  # the parent is gone; the main thread sees it, too
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(FAILED)

    def _answer(self, header: Header, tensors: dict[str, Any]) -> None:
        running = Running(header["id"], self._spec.run_timeout_s)
        self._running.add(running)
        began = time.perf_counter()
        try:
            outputs = self._session.run(tensors, header["outputs"], running.options)
        except DeviceFailed:
            self._refuse(running, Unavailable("The device failed during the run."), last=True)
            os._exit(FAILED)
        except AtelierError as error:
            self._refuse(running, self._too_slow() if running.options.terminate else error)
            return
        run_ms = (time.perf_counter() - began) * 1000
        self._running.discard(running)
        try:
            self._send({"id": running.batch_id, "run_ms": run_ms}, outputs)
        except PayloadTooLarge as error:
            self._refuse(running, error)

    def _refuse(self, running: Running, error: AtelierError, *, last: bool = False) -> None:
        """`last`: this process ends now, and is to be sent nothing more."""
        self._running.discard(running)  # first: what is not running any more is not overdue
        self._send({"id": running.batch_id, "error": error.to_wire(), "last": last})

    def _end_overdue(self) -> None:
        """End runs that take too long: between two nodes if they can, else with this process."""
        now = time.monotonic()
        for running in tuple(self._running):
            if now > running.until + STOP_GRACE_S:
                told = self._writing.acquire(timeout=STOP_GRACE_S)
                if running in self._running:
                    if told:
                        self._write({"id": running.batch_id, "error": self._too_slow().to_wire(), "last": True}, {})
                    os._exit(FAILED)
                if told:
                    self._writing.release()
            elif now > running.until:
                running.options.terminate = True

    def _too_slow(self) -> TimeoutRun:
        return TimeoutRun(f"The model took longer than the {self._spec.run_timeout_s:g} s that one run may take.")

    def _next(self) -> Frame:
        frame = self._incoming.next(self._sock)
        assert frame is not None  # a blocking socket
        return frame

    def _send(self, header: Header, tensors: dict[str, Any] | None = None) -> None:
        with self._writing:
            self._write(header, tensors or {})

    def _write(self, header: Header, tensors: dict[str, Any]) -> None:
        outgoing = Outgoing()
        bits = self._session.bits if tensors else frozenset[str]()
        outgoing.put(header, tensors, bits)
        outgoing.flush(self._sock)


def _limit_memory(spec: RunnerSpec) -> None:
    """Beyond what the process has now. Not with a GPU: its driver maps more than the machine has."""
    if spec.memory_bytes is None or spec.device != "cpu" or sys.platform != "linux":
        return
    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + spec.memory_bytes,) * 2)


def main(argv: Sequence[str]) -> int:
    """`argv`: the number of the inherited socket."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to whole groups; the parent decides when this ends
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # onnxruntime prints; nobody reads our output, the worker's log has our errors
    keep_memory()
    child = Child(socket(fileno=int(argv[0])))
    if not child.load():
        return FAILED
    child.run()
    return ENDED


if __name__ == "__main__":
    code = FAILED
    try:
        code = main(sys.argv[1:])
    except EOFError:
        code = ENDED
    finally:
        sys.stderr.flush()
        os._exit(code)  # without waiting for a run in progress
