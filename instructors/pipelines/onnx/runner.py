"""A runner: a killable process with one ONNX model in it, as its owner, the worker, sees it.

The owner's end of the socket never blocks. What the child does not take yet waits here, as views of the caller's
arrays, and goes on with every `receive`: `fileno` is readable when the child has answered and when it takes more.
A runner belongs to one thread at a time.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

from instructors.pipelines.onnx import graph
from instructors.pipelines.onnx.facts import BFLOAT16, Array, Facts, Finished, RunnerSpec
from instructors.pipelines.onnx.frames import Frame, Header, Incoming, Outgoing
from protocol.errors import (
    AtelierError,
    ModelInvalid,
    OutOfMemory,
    QueueFull,
    TimeoutRun,
    Unavailable,
)
from protocol.limits import MIB

__all__ = ["Facts", "Finished", "Runner", "RunnerSpec"]

BATCHES_MAX = 256  # in the child at a time, those that wait for it included
IN_FLIGHT_BYTES_MAX = 1024 * MIB
SOCKET_BYTES = 1 * MIB  # of the socket's own memory, as far as the system allows
HUNG_GRACE_S = 10.0  # the child ends its runs itself; this is for a child that cannot
CLOSE_GRACE_S = 2.0
NO_MEMORY = (-signal.SIGKILL, -signal.SIGABRT, 127)  # by the system, the C library, its loader (thread-local data)
LOST = "The process that runs this model ended while it computed; it is started again."


class Runner:
    """`facts`: what the loaded model is."""

    facts: Facts

    def __init__(self, spec: RunnerSpec, external: Sequence[str]) -> None:
        """Use `start`."""
        self.spec = spec
        self._sock, theirs = socket.socketpair()
        self._sock.setblocking(False)
        for end in (self._sock, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        with theirs:
            command = [sys.executable, "-m", "instructors.pipelines.onnx.child", str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self._selector = DefaultSelector()
        self._selector.register(self._sock, EVENT_READ)
        self._events = EVENT_READ
        self._incoming, self._outgoing = Incoming(), Outgoing()
        self._in_flight: dict[int, int] = {}  # batch -> bytes
        self._kept: list[Finished] = []  # found while waiting for another
        self._own_ids = count(-1, -1)
        self._heard_at = time.monotonic()
        self._bits: frozenset[str] = frozenset()
        self.alive = True
        self._put({"spec": spec.to_wire(), "external": list(external)})

    @staticmethod
    def start(spec: RunnerSpec) -> "Runner":
        """Start the process and wait until the model is loaded.

        Raises ModelInvalid, Forbidden (files outside the model's folder), OutOfMemory, TimeoutRun or Unavailable.
        """
        facts = graph.inspect(spec.path, spec.path.parent)
        try:
            runner = Runner(spec, facts.external)
        except OSError:
            raise Unavailable("No process can be started for the model at present.") from None
        try:
            runner._await_facts()
        except BaseException:
            runner.kill()
            runner._selector.close()
            raise
        return runner

    def _await_facts(self) -> None:
        until = time.monotonic() + self.spec.load_timeout_s
        while (frame := self._next_frame()) is None:
            if not self._wait(until):
                raise TimeoutRun(f"The model was not loaded within {self.spec.load_timeout_s:g} s.")
        header, _ = frame
        if "error" in header:
            raise AtelierError.from_wire(header["error"])
        self.facts = Facts.from_wire(header["facts"])
        self._bits = frozenset(info.name for info in self.facts.inputs if info.dtype == BFLOAT16)

    def _next_frame(self) -> Frame | None:
        """While loading: the child's end is the model's fault."""
        try:
            self._flush()
            return self._incoming.next(self._sock)
        except EOFError:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_GRACE_S)
            if self._process.returncode in NO_MEMORY:
                raise OutOfMemory(
                    "The process that loaded the model ended; it seems to have had no memory left."
                ) from None
            raise ModelInvalid("Loading the model crashed the process that did it.") from None

    def fileno(self) -> int:
        """Readable when `receive` has something to do, to its very end."""
        return self._selector.fileno()

    @property
    def pid(self) -> int:
        """Of the child, for logs and tests."""
        return self._process.pid

    @property
    def in_flight(self) -> int:
        """Batches that were sent and have not ended."""
        return len(self._in_flight)

    def send(self, batch_id: int, tensors: Mapping[str, Array], outputs: Sequence[str] | None = None) -> None:
        """Begin a batch; never waits. The arrays must not change until it has ended.

        `outputs`: names; None: all. Raises QueueFull, PayloadTooLarge, or Unavailable for a dead runner.
        """
        if not self.alive:
            raise Unavailable(LOST)
        nbytes = sum(array.nbytes for array in tensors.values())
        waiting = sum(self._in_flight.values())
        if len(self._in_flight) >= BATCHES_MAX or (waiting and waiting + nbytes > IN_FLIGHT_BYTES_MAX):
            raise QueueFull("Too much waits for this model already.", retry_after_ms=1000)
        if batch_id in self._in_flight:
            raise ValueError(f"batch {batch_id} is in flight")
        if not self._in_flight:
            self._heard_at = time.monotonic()
        self._put({"id": batch_id, "outputs": None if outputs is None else list(outputs)}, tensors)
        self._in_flight[batch_id] = nbytes

    def _put(self, header: Header, tensors: Mapping[str, Array] | None = None) -> None:
        self._outgoing.put(header, tensors, self._bits)
        self._flush()

    def _flush(self) -> None:
        with suppress(OSError):  # nobody reads: the socket's end says so, too, and after the answers that came before
            self._outgoing.flush(self._sock)
        events = EVENT_READ | EVENT_WRITE if self._outgoing else EVENT_READ
        if events != self._events:
            self._selector.modify(self._sock, events)
            self._events = events

    def receive(self) -> list[Finished]:
        """The batches that ended since; never waits. Their arrays are what was read from the socket, not copies.

        A batch whose process died ends with Unavailable, which may be tried again; one that took too long with
        TimeoutRun. To be called at times even if `fileno` is quiet: a child that was stopped is noticed here.
        """
        finished, self._kept = self._kept, []
        if not self.alive:
            return finished
        try:
            self._flush()
            while (frame := self._incoming.next(self._sock)) is not None:
                finished.append(self._finish(*frame))
                if frame[0].get("last"):  # it ends by itself
                    raise EOFError
        except (EOFError, OSError, AtelierError, LookupError, TypeError, ValueError):  # it is gone, or out of its mind
            return finished + self._lose(Unavailable(LOST))
        if self._in_flight and time.monotonic() > self._heard_at + self.spec.run_timeout_s + HUNG_GRACE_S:
            return finished + self._lose(TimeoutRun("The process that runs this model does not answer."))
        return finished

    def _finish(self, header: Header, tensors: dict[str, Array]) -> Finished:
        self._heard_at = time.monotonic()
        batch_id = header["id"]
        del self._in_flight[batch_id]
        if "error" in header:
            return Finished(batch_id, error=AtelierError.from_wire(header["error"]))
        return Finished(batch_id, tensors, run_ms=header["run_ms"])

    def _lose(self, error: AtelierError) -> list[Finished]:
        lost = [Finished(batch_id, error=error) for batch_id in self._in_flight]
        self.kill()
        return lost

    def run(self, tensors: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs; waits for them. Raises what the batch ended with, and as `send` does.

        Batches that end meanwhile are kept for the next `receive`, of which `fileno` then does not tell.
        """
        batch_id = next(self._own_ids)
        self.send(batch_id, tensors, outputs)
        others: list[Finished] = []
        while True:
            self._wait(time.monotonic() + 1)
            finished = {one.batch_id: one for one in self.receive()}
            ours = finished.pop(batch_id, None)
            others += finished.values()
            if ours is not None:
                self._kept = others
                if ours.tensors is None:
                    raise ours.error or Unavailable(LOST)
                return ours.tensors

    def _wait(self, until: float) -> bool:
        """Until there is something to do; False: until the time is over."""
        return bool(self._selector.select(max(until - time.monotonic(), 0)))

    def close(self) -> None:
        """End the process: it leaves when its socket closes, or is killed. Batches in flight are forgotten."""
        self._leave()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_GRACE_S)
        self.kill()
        self._selector.close()

    def kill(self) -> None:
        """End the process at once."""
        self._leave()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process within a driver's call; it is collected later
            self._process.wait(CLOSE_GRACE_S)

    def _leave(self) -> None:
        self.alive = False
        self._in_flight.clear()
        if self._sock.fileno() >= 0:
            self._selector.unregister(self._sock)
            self._sock.close()
