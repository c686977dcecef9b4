"""The broker's two ROUTER sockets: receiving without a copy of payloads, sending without ever waiting."""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import zmq

from protocol.codec import Buffer, pack
from protocol.limits import KIB, WireLimits
from protocol.sockets import EndpointRefused, make_socket, prepare_ipc_folder

FLUSH_MS = 1000  # at the end
NOWAIT, NOWAIT_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)  # an enum's `|` costs more than a send
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


Posted = tuple[bytes, tuple[bytes, ...], Sequence[Buffer], bool, Callable[[Sent], None] | None]


class Port:
    """One ROUTER. All methods are for the broker thread."""

    def __init__(
        self, context: zmq.Context, endpoints: Sequence[str], limits: WireLimits, outbox_bytes_max: int
    ) -> None:
        self.socket = make_socket(context, zmq.ROUTER, limits)
        self._send_frame = super(zmq.Socket, self.socket).send  # pyzmq's own, without the layer for options not used
        self._outbox_bytes_max = outbox_bytes_max
        self._outbox: dict[bytes, Outbox] = {}
        self._posted: deque[Posted] = deque()
        self._locks: list[int] = []
        for endpoint in endpoints:
            prepare_ipc_folder(endpoint)
            if endpoint.startswith("ipc://"):
                self._locks.append(_lock(endpoint))
            self.socket.bind(endpoint)

    def receive(self) -> Received | None:
        """The next message; None when there is none."""
        socket = self.socket
        try:
            identity = socket.recv(NOWAIT)
        except zmq.Again:
            return None
        frame = socket.recv(NOWAIT, copy=False)
        is_req = len(frame) == 0  # only a REQ socket sends an empty first frame
        if is_req and frame.more:
            frame = socket.recv(NOWAIT, copy=False)
        header, frames = frame.bytes, []
        while frame.more:
            frame = socket.recv(NOWAIT, copy=False)
            frames.append(frame)
        return Received(Connection(identity, is_req), header, frames)

    def post(
        self,
        connection: Connection,
        header: dict[str, Any],
        frames: Sequence[Buffer] = (),
        droppable: bool = False,
        failed: Callable[[Sent], None] | None = None,
    ) -> None:
        """Queue a message for `flush`, which tells `failed` if it could not be sent.

        Sending in bursts, after everything was read, costs a good part less than a message at a time: the
        library's own thread is woken once. A droppable message gives way first when the connection is behind.
        """
        parts = (b"", pack(header)) if connection.is_req else (pack(header),)
        self._posted.append((connection.identity, parts, frames, droppable, failed))

    def flush(self) -> None:
        """Send what was posted, without ever waiting."""
        posted = self._posted
        while posted:
            identity, parts, frames, droppable, failed = posted.popleft()
            sent = self._send(identity, parts, frames, droppable)
            if sent is not Sent.DONE and failed is not None:
                failed(sent)

    def _send(self, identity: bytes, parts: tuple[bytes, ...], frames: Sequence[Buffer], droppable: bool) -> Sent:
        outbox = self._outbox.get(identity)
        if outbox is not None and outbox.behind(self._outbox_bytes_max, droppable):
            return Sent.FULL
        try:
            self._send_frame(identity, NOWAIT_MORE)
            if frames:
                for part in parts:
                    self._send_frame(part, NOWAIT_MORE)
                self._send_frames(identity, frames)
            else:
                for part in parts[:-1]:
                    self._send_frame(part, NOWAIT_MORE)
                self._send_frame(parts[-1], NOWAIT)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._outbox.pop(identity, None)
            return Sent.GONE
        return Sent.DONE

    def _send_frames(self, identity: bytes, frames: Sequence[Buffer]) -> None:
        last = len(frames) - 1
        for index, frame in enumerate(frames):
            view = memoryview(frame)  # of a received frame too, so that libzmq tells when it has sent it
            flags = NOWAIT if index == last else NOWAIT_MORE
            if view.nbytes < TRACKED_BYTES:
                self._send_frame(view, flags)
            else:
                tracker = self._send_frame(view, flags, copy=False, track=True)
                self._outbox_of(identity).add(tracker, view.nbytes)

    def _outbox_of(self, identity: bytes) -> "Outbox":
        """A new one pushes out those that are empty: nothing tells of a client that takes its answer and goes."""
        outbox = self._outbox.get(identity)
        if outbox is None:
            self._outbox = {of: waiting for of, waiting in self._outbox.items() if not waiting.empty()}
            outbox = self._outbox[identity] = Outbox()
        return outbox

    def close(self) -> None:
        """Let what was sent leave for a moment, the last answers of a drain among it, then drop the rest."""
        self.socket.close(linger=FLUSH_MS)
        for descriptor in self._locks:
            os.close(descriptor)


def _lock(endpoint: str) -> int:
    """Keep other servers from an ipc path, which libzmq would take from a living one without a word.

    Returns the lock's file descriptor; it ends with the process. Raises EndpointRefused.
    """
    descriptor = os.open(f"{endpoint.removeprefix('ipc://')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise EndpointRefused(f"{endpoint!r} is in use by another orchestrator; stop it, or use another.") from None
    return descriptor


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
        self._drop_sent()
        return self._nbytes > (nbytes_max // 2 if droppable else nbytes_max)

    def empty(self) -> bool:
        """Has all of it been sent?"""
        self._drop_sent()
        return not self._frames

    def _drop_sent(self) -> None:
        while self._frames and self._frames[0][0].done:
            self._nbytes -= self._frames.popleft()[1]
