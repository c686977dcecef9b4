"""A worker under a test's control: it speaks the worker plane, and answers as the test says. It computes nothing."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import zmq

from protocol.codec import pack, unpack_header
from protocol.errors import AtelierError, Cancelled
from protocol.ids import new_id
from protocol.sockets import make_socket
from tests.e2e.house import House, eventually

BEAT_S = 0.1
Data = dict[str, Any]
Answer = Callable[[Data, list[bytes]], Data]  # from an assign's `data` and attachments to the result's `data`


def hold(data: Data, frames: list[bytes]) -> Data:
    """An answer that does not come: the job stays with the worker."""
    raise TimeoutError


class Peer:
    """`models`: model_id -> what it can be asked for. `answers`: by action; anything else is echoed."""

    def __init__(
        self,
        house: House,
        worker_id: str,
        models: dict[str, list[str]],
        answers: dict[str, Answer] | None = None,
        *,
        actions: Sequence[str] = (),
        resident: Sequence[str] = (),
        device: str = "cpu",
        slots: int = 4,
    ) -> None:
        self.worker_id = worker_id
        self.answers = answers or {}
        self.assigns: list[Data] = []  # the headers, in order
        self.cancelled: list[str] = []  # job_ids
        self.resident = list(resident)
        self.kept: list[str] = []  # of its models, those that stay loaded
        self.running_ms: dict[str, int] = {}  # what it says that jobs of a model took
        self._models = models
        self._facts = {"device_id": device, "kind": device, "memory_total": 1, "memory_free": 1}
        self._actions = actions
        self._slots = slots
        self._held: dict[str, Data] = {}
        self._replies: queue.SimpleQueue[tuple[str, Data]] = queue.SimpleQueue()
        self._instance = new_id()
        self._context = zmq.Context()
        self._socket = make_socket(self._context, zmq.DEALER)
        self._socket.connect(house.worker_endpoint)
        self._leaving = False
        self._stopped = threading.Event()
        self._again = threading.Event()
        self._welcomed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._welcomed.wait(10), "no welcome came"

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def offer(self, models: dict[str, list[str]]) -> None:
        """Its model folder changed: it says hello again."""
        self._models = models
        self._welcomed.clear()
        self._again.set()
        assert self._welcomed.wait(10)

    def asked(self, action: str) -> list[Data]:
        """The `data` of each attempt at this action that came, in order."""
        return [assign["data"] for assign in list(self.assigns) if assign["action"] == action]

    def wait_for(self, action: str, count: int = 1) -> list[Data]:
        eventually(lambda: len(self.asked(action)) >= count)
        return self.asked(action)

    def close(self) -> None:
        """Leave, with a goodbye."""
        self._leaving = True
        self.die()

    def die(self) -> None:
        """As a process that is killed; harmless when it has gone."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        self._socket.close(linger=500)
        self._context.term()

    def _run(self) -> None:
        self._hello()
        beat_at = time.monotonic()
        while not self._stopped.is_set():
            if self._again.is_set():
                self._again.clear()
                self._hello()
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + BEAT_S
                told = {"held": list(self._held.values()), "resident_models": self.resident}
                self._send({"kind": "heartbeat", "memory_free": 1, "quantum_age_ms": 0, **told})
            while not self._replies.empty():
                job_id, reply = self._replies.get()
                if self._held.pop(job_id, None) is not None:
                    self._send(reply)
            if self._socket.poll(10):
                header, *frames = self._socket.recv_multipart()
                self._take(unpack_header(header), frames)
        if self._leaving:
            self._send({"kind": "goodbye"})

    def _hello(self) -> None:
        able = {action for actions in self._models.values() for action in actions}
        actions = sorted({*self._actions, *self.answers, *able})
        models = [
            {"model_id": name, "actions": actions, "nbytes": 1, "kept": name in self.kept}
            for name, actions in self._models.items()
        ]
        self._send(
            {
                "kind": "hello",
                "protocol": 1,
                "worker_id": self.worker_id,
                "instance_id": self._instance,
                "device": self._facts,
                "capabilities": {"actions": actions, "models": models},
                "slots": self._slots,
                "resident_models": self.resident,
                "held": list(self._held.values()),
            }
        )

    def _take(self, header: Data, frames: list[bytes]) -> None:
        match header["kind"]:
            case "welcome":
                self._welcomed.set()
            case "rehello":
                self._hello()
            case "cancel":
                self.cancelled.append(header["job_id"])
                self._held.pop(header["job_id"], None)
                self._send(_result(header, error=Cancelled()))
            case "assign":
                self._assign(header, frames)

    def _assign(self, assign: Data, frames: list[bytes]) -> None:
        self.assigns.append(assign)
        names = ("job_id", "attempt", "tenant", "request_id", "fingerprint", "action", "durable")
        self._held[assign["job_id"]] = {"state": "running", **{name: assign[name] for name in names}}
        threading.Thread(target=self._answer, args=(assign, frames), daemon=True).start()

    def _answer(self, assign: Data, frames: list[bytes]) -> None:
        answer = self.answers.get(assign["action"], lambda data, frames: data)
        try:
            reply = _result(assign, data=answer(assign["data"], frames))
            reply["running_ms"] = self.running_ms.get(assign["data"].get("model_id"), 1)
        except TimeoutError:
            return
        except AtelierError as error:
            reply = _result(assign, error=error)
        self._replies.put((assign["job_id"], reply))

    def _send(self, header: Data) -> None:
        self._socket.send(pack(header))


def _result(about: Data, data: Data | None = None, error: AtelierError | None = None) -> Data:
    told = {"success": error is None, "data": data or {}, "error": None if error is None else error.to_wire()}
    return {"kind": "result", "job_id": about["job_id"], "attempt": about["attempt"], **told}
