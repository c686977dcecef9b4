"""The broker's two ROUTER sockets: receiving without a copy of payloads, sending without ever waiting."""

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import zmq

from protocol.codec import Buffer, pack
from protocol.limits import KIB, WireLimits
from protocol.sockets import make_socket, prepare_ipc_folder

TRACKED_BYTES = 64 * KIB  # frames from this size on are counted until libzmq has sent them


class Connection(NamedTuple):
    """A client's or worker's connection: libzmq's fresh identity, and whether it frames like a REQ socket."""

    identity: bytes
    is_req: bool = False


class Received(NamedTuple):
    connection: Connection
    header: bytes
    frames: list[zmq.Frame]


class Sent(Enum):
    DONE = "done"
    FULL = "full"  # the connection is behind; nothing was sent
    GONE = "gone"  # the connection is closed


class Port:
    """One ROUTER. All methods are for the broker thread."""

    def __init__(
        self, context: zmq.Context, endpoints: Sequence[str], limits: WireLimits, outbox_bytes_max: int
    ) -> None:
        self.socket = make_socket(context, zmq.ROUTER, limits)
        self._outbox_bytes_max = outbox_bytes_max
        self._outbox: dict[bytes, Outbox] = {}
        for endpoint in endpoints:
            prepare_ipc_folder(endpoint)
            self.socket.bind(endpoint)

    def receive(self) -> Received | None:
        """The next message; None when there is none, or when one was too short to have a header."""
        socket = self.socket
        try:
            identity = socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        parts: list[Any] = []
        while socket.getsockopt(zmq.RCVMORE):
            parts.append(socket.recv(zmq.DONTWAIT, copy=len(parts) < 1))
        if parts and parts[0] == b"":  # only a REQ socket sends an empty first frame
            header = parts[1].bytes if len(parts) > 1 else b""
            return Received(Connection(identity, True), header, parts[2:])
        return Received(Connection(identity), parts[0] if parts else b"", parts[1:])

    def send(
        self, connection: Connection, header: dict[str, Any], frames: Sequence[Buffer] = (), *, droppable: bool = False
    ) -> Sent:
        """Send if it can be sent at once. A droppable message also gives way when the connection is behind."""
        identity = connection.identity
        outbox = self._outbox.get(identity)
        if outbox is not None and outbox.behind(self._outbox_bytes_max, droppable):
            return Sent.FULL
        parts: list[Any] = [identity, b"", pack(header)] if connection.is_req else [identity, pack(header)]
        try:
            if frames:
                self._send_large(identity, parts, frames)
            else:
                self.socket.send_multipart(parts, zmq.DONTWAIT)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._outbox.pop(identity, None)
            return Sent.GONE
        return Sent.DONE

    def _send_large(self, identity: bytes, parts: list[Any], frames: Sequence[Buffer]) -> None:
        self.socket.send_multipart(parts, zmq.DONTWAIT | zmq.SNDMORE)
        last = len(frames) - 1
        for index, frame in enumerate(frames):
            view = memoryview(frame)  # of a received frame too, so that libzmq tells when it has sent it
            flags = zmq.DONTWAIT | (0 if index == last else zmq.SNDMORE)
            if view.nbytes < TRACKED_BYTES:
                self.socket.send(view, flags)
            else:
                tracker = self.socket.send(view, flags, copy=False, track=True)
                self._outbox.setdefault(identity, Outbox()).add(tracker, view.nbytes)

    def close(self) -> None:
        self.socket.close()


class Outbox:
    """The large frames on their way to one connection."""

    __slots__ = ("_frames", "_nbytes")

    def __init__(self) -> None:
        self._frames: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._nbytes = 0

    def add(self, tracker: zmq.MessageTracker, nbytes: int) -> None:
        self._frames.append((tracker, nbytes))
        self._nbytes += nbytes

    def behind(self, nbytes_max: int, droppable: bool) -> bool:
        """Is too much on its way? Previews and progress give way at half the limit, responses at all of it."""
        while self._frames and self._frames[0][0].done:
            self._nbytes -= self._frames.popleft()[1]
        return self._nbytes > (nbytes_max // 2 if droppable else nbytes_max)
