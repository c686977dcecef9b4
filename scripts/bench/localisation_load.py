"""Many clients of the localisation model, each with a connection of its own and one request in flight."""

import time

import numpy as np
import zmq

from protocol.codec import pack, unpack_header
from protocol.ids import new_id
from protocol.sockets import make_socket
from scripts.localisation.simulator import simulate

SAMPLES = 256  # requests that differ; cached answers would cost nothing


def many_clients(endpoint: str, count: int, requests: int) -> tuple[list[float], int]:
    """Latencies in seconds of `requests` requests of each of `count` clients, and how many failed."""
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 16)
    iq = simulate(np.random.default_rng(0), SAMPLES).iq.astype(np.float32)
    sockets, poller = [], zmq.Poller()
    for _ in range(count):
        socket = make_socket(context, zmq.DEALER)
        socket.connect(endpoint)
        poller.register(socket, zmq.POLLIN)
        sockets.append(socket)
    sent_at: dict[zmq.Socket[bytes], float] = {}
    left, latencies, failed, number = dict.fromkeys(sockets, requests), [], 0, 0

    def ask(socket: "zmq.Socket[bytes]") -> None:
        nonlocal number
        number += 1
        sample = iq[number % SAMPLES]
        inputs = [{"name": "iq", "dtype": "float32", "shape": [1, *sample.shape], "data": sample.tobytes()}]
        data = {"model_id": "localisation", "inputs": inputs, "cache": False}
        sent_at[socket] = time.perf_counter()
        socket.send(pack({"protocol": 1, "request_id": new_id(), "action": "inference.predict", "data": data}))

    for socket in sockets:
        ask(socket)
    while sent_at:
        for socket, _ in poller.poll(60_000):
            header = unpack_header(socket.recv_multipart()[0])
            if header.get("kind") != "response":
                continue
            latencies.append(time.perf_counter() - sent_at.pop(socket))
            answered = header["success"] and "position" in header["data"]["predictions"][0]
            failed += not answered
            left[socket] -= 1
            if left[socket]:
                ask(socket)
    context.destroy(linger=0)
    return latencies, failed
