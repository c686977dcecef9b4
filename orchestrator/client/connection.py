"""The one thread that owns a client's socket."""

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from orchestrator.client.calls import Call, ConnectionState
from orchestrator.client.errors import ClientClosed
from protocol.errors import QueueFull
from protocol.ids import new_id
from protocol.limits import MIB
from protocol.sockets import EndpointRefused, make_socket

IN_FLIGHT_MAX = 1000  # the server refuses more than 1,024 of one connection
IN_FLIGHT_BYTES_MAX = 1024 * MIB  # kept to be sent again
SILENCE_S = 10.0
RECEIVED_PER_TURN = 256  # so that a flood of messages cannot starve sending


class Connection:
    """Takes requests from any thread, sends them, and tells their sinks what came of it.

    Sinks are called on this object's thread: they must be quick and must not wait for another answer. Raises
    EndpointRefused (a ValueError) for what is no endpoint.
    """

    def __init__(self, endpoint: str, *, connect_timeout_s: float | None, silence_s: float = SILENCE_S) -> None:
        self._state = ConnectionState(
            endpoint, new_id, self._release, connect_timeout_s, silence_s, now=time.monotonic()
        )
        self._lock = threading.Lock()  # of the four below
        self._inbox: deque[Call | Callable[[], None]] = deque()
        self.in_flight = 0
        self._in_flight_bytes = 0
        self._closing = False
        self._outbox: deque[Call] = deque()
        self._context = zmq.Context()
        self._wake_receiver = make_socket(self._context, zmq.PAIR)
        self._wake_receiver.bind("inproc://wake")
        self._wake_sender = make_socket(self._context, zmq.PAIR)
        self._wake_sender.connect("inproc://wake")
        try:
            self._open_socket(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise EndpointRefused(f"{endpoint!r} cannot be connected to: {zmq.strerror(error.errno or 0)}.") from None
        self._thread = threading.Thread(target=self._run, name="atelier-client", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def start(self, call: Call, *, internal: bool = False) -> None:
        """Send a request. Raises QueueFull when too much is in flight (not for `internal` ones), or ClientClosed."""
        with self._lock:
            if self._closing:
                raise ClientClosed
            if not internal and self.in_flight >= IN_FLIGHT_MAX:
                raise QueueFull(f"This client has {self.in_flight} requests in flight; wait for some of them.")
            if not internal and self._in_flight_bytes + call.nbytes > IN_FLIGHT_BYTES_MAX:
                raise QueueFull("This client's requests in flight hold too many bytes; wait for some of them.")
            self.in_flight += 1
            self._in_flight_bytes += call.nbytes
            self._post(call)

    def drop(self, call: Call) -> None:
        """Stop listening for this request; its sink hears ClientClosed if it was open."""
        with self._lock:
            if not self._closing:
                self._post(lambda: self._drop(call))

    def check_may_wait(self) -> None:
        """Raise RuntimeError on the thread that would have to end the wait."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("A callback must not wait for an answer: it runs on the thread that receives them.")

    def close(self) -> None:
        """Fail what is open with ClientClosed and end the thread. May be called again, and from any thread."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._wake_sender.send(b"")
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)

    def _post(self, item: Call | Callable[[], None]) -> None:
        if not self._inbox:  # otherwise the thread has been woken and not yet looked
            self._wake_sender.send(b"")
        self._inbox.append(item)

    def _release(self, call: Call) -> None:
        with self._lock:
            self.in_flight -= 1
            self._in_flight_bytes -= call.nbytes

    # --- on the connection's own thread -------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_receiver, zmq.POLLIN)
        try:
            while not self._closing:
                self._turn(poller)
        finally:
            with self._lock:
                self._closing = True
            self._take_inbox()
            self._state.give_up_all(ClientClosed)
            self._context.destroy(linger=0)

    def _turn(self, poller: zmq.Poller) -> None:
        socket, monitor = self._socket, self._monitor
        poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if self._outbox and self._state.up else 0))
        poller.register(monitor, zmq.POLLIN)
        deadline = self._state.next_deadline()
        timeout_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000) + 1)
        ready = dict(poller.poll(timeout_ms))
        if self._wake_receiver in ready:
            self._take_inbox()
        if monitor in ready:
            self._watch(monitor)
        if ready.get(socket, 0) & zmq.POLLIN:
            self._receive(socket)
        if self._state.expire(time.monotonic()):
            poller.unregister(socket)
            poller.unregister(monitor)
            self._close_socket()
            self._open_socket(self._state.endpoint)
        self._send()

    def _take_inbox(self) -> None:
        with self._lock:
            while self._wake_receiver.poll(0):
                self._wake_receiver.recv()
            items = list(self._inbox)
            self._inbox.clear()
        for item in items:
            if isinstance(item, Call):
                self._outbox.extend(self._state.open(item, time.monotonic()))
            else:
                item()

    def _drop(self, call: Call) -> None:
        if self._state.is_open(call):
            self._state.give_up(call, ClientClosed())

    def _watch(self, monitor: zmq.Socket[bytes]) -> None:
        while monitor.poll(0):
            event = recv_monitor_message(monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._outbox = deque(self._state.connected(time.monotonic()))
            elif event == zmq.EVENT_DISCONNECTED:
                self._state.disconnected(time.monotonic())

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        now = time.monotonic()
        for _ in range(RECEIVED_PER_TURN):
            try:
                frames = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._outbox.extend(self._state.received(frames, now))

    def _send(self) -> None:
        while self._outbox and self._state.up:
            if self._state.is_open(self._outbox[0]):
                try:
                    self._socket.send_multipart(self._outbox[0].frames, zmq.DONTWAIT, copy=False)
                except zmq.Again:
                    return
            self._outbox.popleft()

    def _open_socket(self, endpoint: str) -> None:
        self._socket: zmq.Socket[Any] = make_socket(self._context, zmq.DEALER)
        # Nothing is queued while the connection is down: what is open then is sent when it is back, once.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._monitor: zmq.Socket[Any] = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._socket.connect(endpoint)

    def _close_socket(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
