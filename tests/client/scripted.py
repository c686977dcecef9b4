"""A server whose every message a test writes: for what the real one cannot be made to do on demand."""

import tempfile
import time
from pathlib import Path
from typing import Any

import zmq

from protocol.codec import attachment_list, pack, unpack_header
from protocol.messages import Event, Request, Response
from protocol.sockets import make_socket

PATIENCE_MS = 10_000


class ScriptedServer:
    """A ROUTER on an ipc endpoint. `receive` what the client sent, then say anything to it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="atl")
        self.endpoint = f"ipc://{Path(self._folder.name)}/s"
        self._context = zmq.Context()
        self.start()

    def start(self) -> None:
        self.socket = make_socket(self._context, zmq.ROUTER)
        self.socket.bind(self.endpoint)

    def stop(self) -> None:
        """Vanish, and break every connection."""
        self.socket.close(linger=0)

    def restart(self) -> None:
        self.stop()
        for attempt in range(100):  # the address is free once libzmq has closed its end
            try:
                self.start()
                return
            except zmq.ZMQError:
                self.socket.close(linger=0)
                time.sleep(0.01 * (attempt > 0))
        raise AssertionError("the endpoint stayed in use")

    def close(self) -> None:
        self._context.destroy(linger=0)
        self._folder.cleanup()

    def __enter__(self) -> "ScriptedServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self) -> "Received":
        assert self.socket.poll(PATIENCE_MS), "the client sent nothing"
        identity, header, *blobs = self.socket.recv_multipart()
        return Received(self, identity, Request.model_validate(unpack_header(header)), blobs)

    def silent(self, ms: int = 150) -> bool:
        """Whether the client sends nothing for a while."""
        return not self.socket.poll(ms)

    def send_raw(self, identity: bytes, *frames: bytes) -> None:
        self.socket.send_multipart([identity, *frames])


class Received:
    """A request, and ways to answer it."""

    def __init__(self, server: ScriptedServer, identity: bytes, request: Request, blobs: list[bytes]) -> None:
        self.server, self.identity, self.request, self.blobs = server, identity, request, blobs

    @property
    def action(self) -> str:
        return self.request.action

    @property
    def id(self) -> str:
        return self.request.request_id

    def respond(self, data: dict[str, Any] | None = None, blobs: list[bytes] | None = None, **fields: Any) -> None:
        attachments = attachment_list(blobs or [], ["image/png"] * len(blobs or []))
        response = Response.model_validate(
            {"request_id": self.id, "success": "error" not in fields, "data": data or {}, "attachments": attachments}
            | fields
        )
        self.server.send_raw(self.identity, pack(response.to_wire()), *(blobs or []))

    def fail(self, code: str, **fields: Any) -> None:
        self.respond(error={"code": code, "message": f"scripted {code}", "details": {}} | fields, status="failed")

    def accept(self, job_id: str = "job-1") -> None:
        data = {
            "job_id": job_id,
            "estimated_start_ms": 10,
            "estimated_completion_ms": 1234,
            "estimate_measured": True,
        }
        self.respond(data, job_id=job_id, status="pending")

    def event(
        self,
        seq: int,
        kind: str,
        data: dict[str, Any] | None = None,
        blobs: list[bytes] | None = None,
        job: str = "job-1",
    ) -> None:
        attachments = attachment_list(blobs or [], ["image/png"] * len(blobs or []))
        event = Event.model_validate(
            {"request_id": self.id, "job_id": job, "seq": seq, "event": kind, "data": data or {}}
            | {"attachments": attachments}
        )
        self.server.send_raw(self.identity, pack(event.to_wire()), *(blobs or []))

    def state(self, seq: int, status: str, job: str = "job-1") -> None:
        self.event(seq, "state", {"status": status}, job=job)
