"""The one ZeroMQ socket of a worker: frames in and out, never blocking."""

import math
from collections.abc import Sequence

import zmq

from protocol.codec import Buffer
from protocol.sockets import make_socket

NOWAIT = int(zmq.DONTWAIT)
FLUSH_MS = 500  # for the goodbye


class BadEndpoint(ValueError):
    """The endpoint to connect to is not one."""


class Link:
    """A DEALER to the orchestrator's worker plane. `reset` gives it a new connection, and so a new identity."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._wake_fd: int | None = None
        self._writable = False  # whether the poller looks for that as well
        self._open()

    def watch(self, fd: int) -> None:
        """Let `wait` end when this file descriptor is readable, too."""
        self._wake_fd = fd
        self._poller.register(fd, zmq.POLLIN)

    def wait(self, timeout_ms: float, *, writable: bool) -> tuple[bool, bool]:
        """Sleep until a message, the watched descriptor, or (if asked for) a connection that takes messages.

        Returns whether there are messages and whether the watched descriptor is readable.
        """
        if writable is not self._writable:
            self._writable = writable
            self._poller.modify(self._socket, zmq.POLLIN | zmq.POLLOUT if writable else zmq.POLLIN)
        ready = dict(self._poller.poll(max(math.ceil(timeout_ms), 0)))
        return bool(ready.get(self._socket, 0) & zmq.POLLIN), self._wake_fd in ready

    def send(self, frames: Sequence[Buffer]) -> bool:
        """False: not connected, or the peer is too slow; nothing was sent."""
        try:
            if len(frames) == 1:
                self._socket.send(frames[0], NOWAIT)
            else:
                self._socket.send_multipart(frames, NOWAIT, copy=False)
        except zmq.Again:
            return False
        return True

    def receive(self) -> tuple[bytes, list[zmq.Frame]] | None:
        """The next message's header and attachments (not copied); None when there is none."""
        try:
            frame = self._socket.recv(NOWAIT, copy=False)
        except zmq.Again:
            return None
        header, attachments = frame.bytes, []
        while frame.more:
            frame = self._socket.recv(NOWAIT, copy=False)
            attachments.append(frame)
        return header, attachments

    def reset(self) -> None:
        """Drop the connection with all that is queued in it, and connect anew."""
        self._socket.close()
        self._open()
        if self._wake_fd is not None:
            self._poller.register(self._wake_fd, zmq.POLLIN)

    def close(self) -> None:
        """Let what was sent leave for a moment, then drop the rest."""
        self._socket.close(linger=FLUSH_MS)
        self._context.term()

    def _open(self) -> None:
        self._socket = make_socket(self._context, zmq.DEALER)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing while away: stale heartbeats help nobody
        try:
            self._socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            raise BadEndpoint(f"cannot connect to {self._endpoint!r}: {error}") from None
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._writable = False
