"""Clients that keep requests for predictions in flight, each in a process of its own: ours by the protocol, others' by
HTTP with one connection a request in flight. They cost alike: nothing is checked but that each answer has its size."""

import asyncio
import base64
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import zmq

from protocol.codec import pack, unpack_header
from protocol.ids import new_id
from protocol.sockets import make_socket

WIDTH, CLASSES = 128, 10
ITEMSIZE = 4


@dataclass(frozen=True)
class Run:
    """What one client does. `per_s` None: as fast as answers come; else requests a second, whatever is in flight."""

    requests: int
    in_flight: int
    items: int = 1
    per_s: float | None = None
    model_id: str = "mlp"


@dataclass
class Answers:
    """Seconds: of each request's whole way, and of that what the server says was computing (0: it does not say)."""

    latencies: list[float]
    computing: list[float]
    batches: list[int]
    elapsed: float


def numbers(items: int) -> bytes:
    """A request's float32 [items, 128]: no two alike, small and normal, so that nothing is cached or denormal."""
    import numpy

    rng = numpy.random.default_rng(int.from_bytes(os.urandom(8)))
    values: Any = rng.standard_normal((items, WIDTH), numpy.float32)
    return bytes(values.tobytes())


class OurClient:
    def __init__(self, endpoint: str) -> None:
        self._socket = make_socket(zmq.Context.instance(), zmq.DEALER)
        self._socket.connect(endpoint)

    def run(self, run: Run) -> Answers:
        body = numbers(64 * run.items)
        each = run.items * WIDTH * ITEMSIZE
        sent_at: dict[str, float] = {}
        answers = Answers([], [], [], 0.0)
        begun, started = time.perf_counter(), 0
        while len(answers.latencies) < run.requests:
            while started < run.requests and self._may_send(run, len(sent_at), started, begun):
                shift = started % (63 * run.items) * ITEMSIZE
                self._send(sent_at, run, body[shift : shift + each])
                started += 1
            if self._socket.poll(self._patience_ms(run, started, begun)):
                self._take(sent_at, answers)
        answers.elapsed = time.perf_counter() - begun
        return answers

    def _may_send(self, run: Run, waiting: int, started: int, begun: float) -> bool:
        if run.per_s is not None:
            return time.perf_counter() >= begun + started / run.per_s
        return waiting < run.in_flight

    def _patience_ms(self, run: Run, started: int, begun: float) -> float:
        if run.per_s is None or started == run.requests:
            return 10_000
        return max(0.0, begun + started / run.per_s - time.perf_counter()) * 1000

    def _send(self, sent_at: dict[str, float], run: Run, body: bytes) -> None:
        request_id = new_id()
        inputs = [{"name": "x", "dtype": "float32", "shape": [run.items, WIDTH], "data": body}]
        header = {"protocol": 1, "request_id": request_id, "action": "inference.predict"}
        header |= {"data": {"model_id": run.model_id, "inputs": inputs, "cache": False}}
        sent_at[request_id] = time.perf_counter()
        self._socket.send(pack(header))

    def _take(self, sent_at: dict[str, float], answers: Answers) -> None:
        header = unpack_header(self._socket.recv_multipart()[0])
        if header.get("kind") != "response":
            return
        if not header["success"]:
            raise RuntimeError(header["error"])
        answers.latencies.append(time.perf_counter() - sent_at.pop(header["request_id"]))
        answers.computing.append(header["data"]["inference_time_ms"] / 1000)
        answers.batches.append(header["data"]["batch_size"])


class HttpClient:
    """HTTP/1.1 by hand, which costs a fraction of what a library does: the servers are measured, not their clients."""

    def __init__(self, port: int, as_json: bool) -> None:
        self._port, self._as_json = port, as_json

    def run(self, run: Run) -> Answers:
        return asyncio.run(self._run(run))

    async def _run(self, run: Run) -> Answers:
        answers = Answers([], [], [], 0.0)
        body, each = numbers(64 * run.items), run.items * WIDTH * ITEMSIZE
        left = iter(range(run.requests))

        async def keep_asking() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            for number in left:
                shift = number % (63 * run.items) * ITEMSIZE
                message = self._message(body[shift : shift + each])
                begun = time.perf_counter()
                writer.write(message)
                await self._answer(reader, run.items)
                answers.latencies.append(time.perf_counter() - begun)
            writer.close()

        begun = time.perf_counter()
        await asyncio.gather(*(keep_asking() for _ in range(run.in_flight)))
        answers.elapsed = time.perf_counter() - begun
        return answers

    def _message(self, body: bytes) -> bytes:
        kind = "application/octet-stream"
        if self._as_json:
            kind, body = "application/json", json.dumps({"x": base64.b64encode(body).decode()}).encode()
        head = f"POST /inference HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def _answer(self, reader: asyncio.StreamReader, items: int) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200") or length != items * CLASSES * ITEMSIZE:
            raise RuntimeError(head.decode(errors="replace"))


Client = OurClient | HttpClient


class Clients:
    """Processes, each with a client of the same server."""

    def __init__(self, count: int, make: Callable[..., Client], *arguments: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, run: Run) -> tuple[float, Answers]:
        """All of them at a time; requests a second of all together, and their answers put together."""
        begun = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(run)
        parts: list[Answers] = []
        for pipe in self._pipes:
            part = pipe.recv()
            if not isinstance(part, Answers):
                raise RuntimeError(part)
            parts.append(part)
        elapsed = time.perf_counter() - begun
        whole = Answers([], [], [], max(part.elapsed for part in parts))
        for part in parts:
            whole.latencies += part.latencies
            whole.computing += part.computing
            whole.batches += part.batches
        return len(whole.latencies) / elapsed, whole

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(pipe: Connection, make: Callable[..., Client], arguments: tuple[Any, ...]) -> None:
    client = make(*arguments)
    while True:
        run = pipe.recv()
        try:
            pipe.send(client.run(run))
        except Exception as error:  # told, and raised there
            pipe.send(repr(error))
