"""Whatever a peer sends: the right code, no word about the machine, and nobody else notices."""

import json
import math
import os
import re
import socket as sockets
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq

from orchestrator.client import Client
from protocol.codec import pack
from protocol.limits import MIB
from protocol.messages import Capabilities, DeviceFacts, Hello
from tests.e2e.house import House, Raw, eventually, lines, told

answers: list[dict[str, Any]] = []  # all error responses of this module
LIMITS = {"attachment_bytes_max": 4 * MIB, "frame_bytes_max": 3 * MIB, "header_bytes_max": MIB}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """A server with lower limits of size, and two workers without a model."""
    with House(**LIMITS) as started:
        started.start_worker("busy")
        started.start_worker("w1")
        started.start_orchestrator()
        started.wait_for_workers("busy", "w1")
        yield started


def processes(house: House) -> list[int]:
    assert house.orchestrator is not None
    return [house.orchestrator.pid, *(pid for worker in house.workers for pid in (worker.pid, worker.child.pid))]


@pytest.fixture(scope="module", autouse=True)
def neighbour(house: House) -> Iterator[None]:
    """Somebody else's job, which runs from the first test to the last. And all processes stay the same."""
    client, file, before = house.client(), house.file("neighbour"), processes(house)
    data = {"echo": told(append=file), "sleep_ms": 3_600_000}
    job = client.submit("system.noop", data, worker_id="busy", events=["state"])
    eventually(lambda: lines(file) == 1)
    epoch = client.info().epoch
    yield
    assert processes(house) == before
    assert client.info().epoch == epoch
    assert job.job_id is not None
    info = client.jobs.get(job.job_id)
    assert (info.status, info.attempt, lines(file)) == ("processing", 1, 1)
    job.cancel()


@pytest.fixture
def raw(house: House) -> Iterator[Raw]:
    raw = Raw(house.endpoint)
    yield raw
    assert raw.ask("after", "system.ping")["success"]  # the connection serves on
    raw.close()


def refused(raw: Raw, code: str, request_id: str | None = None) -> dict[str, Any]:
    """The next answer, which must be this error."""
    answer = raw.answer()
    error = answer["error"]
    assert error is not None, answer
    assert (error["code"], answer["success"], answer["request_id"]) == (code, False, request_id), error
    assert answer["data"] == {}
    assert answer["status"] in (None, "failed")
    answers.append(answer)
    return error  # type: ignore[no-any-return]


def header(**fields: Any) -> dict[str, Any]:
    return {"protocol": 1, "request_id": "r", "action": "system.noop", "data": {}, **fields}


def nested(depth: int) -> bytes:
    """A request whose `echo` is so many arrays deep."""
    return pack(header(data={"echo": None}))[:-1] + b"\x91" * depth + b"\xc0"


UNREADABLE = {
    "garbage": os.urandom(256),
    "an empty frame alone": b"",
    "never used byte": b"\xc1",
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a bare number": b"\x07",
    "an array": b"\x90",
    "truncated map": pack(header())[:-3],
    "truncated string": b"\x81\xa8proto",
    "trailing bytes": pack(header()) + b"\xc0",
    "a map of 4 GiB": b"\xdf\xff\xff\xff\xff",
    "an array of 4 GiB": b"\x81\xa4data\xdd\xff\xff\xff\xff",
    "a string of 4 GiB": b"\x81\xa4data\xdb\xff\xff\xff\xff",
    "bin of 4 GiB": b"\x81\xa4data\xc6\xff\xff\xff\xff",
    "deep nesting": nested(40),
    "deepest nesting": nested(500_000),
    "a key twice": b"\x82" + 2 * (pack("protocol") + pack(1)),
    "a key that is no string": b"\x81\x01\x02",
    "an unhashable key": b"\x81\x80\x02",
    "invalid utf-8": b"\x81\xa8protocol\xa2\xff\xfe",
    "an extension type": pack(header())[:-1] + b"\xd4\x05\x00",
    "a timestamp": msgpack.packb(header(data=msgpack.Timestamp(1, 2))),
    "an integer beyond doubles": pack(header(data={"echo": 2**60})),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_headers(raw: Raw, name: str) -> None:
    raw.send(UNREADABLE[name]) if name != "an empty frame alone" else raw.send(b"x")
    refused(raw, "malformed_message")


def test_the_deepest_nesting_that_is_allowed(raw: Raw) -> None:
    raw.send(nested(30))  # and the two maps around it
    assert raw.answer()["success"]


def test_an_empty_message_is_a_req_socket_s_and_answered_as_such(raw: Raw) -> None:
    raw.send(b"")
    assert raw.socket.poll(5000)
    delimiter, answer = raw.socket.recv_multipart()
    assert delimiter == b""
    assert msgpack.unpackb(answer)["error"]["code"] == "malformed_message"


def test_a_header_that_is_too_large(raw: Raw) -> None:
    raw.send(pack(header(data={"echo": "x" * MIB})))
    refused(raw, "payload_too_large")


def test_another_version(raw: Raw) -> None:
    for version in (0, 2, "1", None):
        raw.send(pack(header(protocol=version)))
        assert refused(raw, "unsupported_protocol", "r")["details"] == {"supported": [1]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", 7), ("request_id", ""), ("request_id", "a/b"), ("request_id", "x" * 65), ("request_id", None),
        ("action", 1), ("action", ""), ("action", None), ("data", []), ("data", None), ("data", "x"),
        ("wait", "yes"), ("wait", 1),
        ("priority", 10), ("priority", -1), ("priority", 4.5), ("priority", True), ("events", ["tea"]),
        ("events", "state"), ("events", ["state"] * 6), ("queue_timeout_ms", 0), ("run_timeout_ms", -5),
        ("deadline_ms", 2**53 - 1), ("deadline_ms", "1"), ("session_id", 5), ("session_id", ""),
        ("worker_id", ["w1"]), ("device_id", "x" * 201),
        ("api_key", 1), ("traceparent", {}),
    ],
)  # fmt: skip
def test_wrong_types_and_ranges_of_the_request(raw: Raw, field: str, value: Any) -> None:
    raw.send(pack(header(**{field: value})))
    readable = field != "request_id" or (isinstance(value, str) and len(value) <= 64)
    request_id = (value if field == "request_id" else "r") if readable else None
    error = refused(raw, "invalid_request", request_id)
    assert error["details"]["fields"][0]["field"].split(".")[0] == field


@pytest.mark.parametrize("kind", ["response", "event", "hello", 1, None])
def test_other_kinds_of_message(raw: Raw, kind: Any) -> None:
    raw.send(pack(header(kind=kind)))
    refused(raw, "malformed_message", "r")


def test_unknown_names(raw: Raw) -> None:
    raw.request("a", "system.nop")
    assert refused(raw, "unknown_action", "a")["details"]["nearest"] == "system.noop"
    raw.request("b", "../../etc/passwd")
    assert refused(raw, "unknown_action", "b")["details"]["nearest"] is None
    raw.request("c", "system.noop", {"ekko": 1})
    assert refused(raw, "invalid_request", "c")["details"]["fields"] == [
        {"field": "ekko", "problem": "unknown field", "nearest": "echo"}
    ]
    raw.request("d", "inference.text2img", {"prompt": "", "scheduler": "eulr"})
    assert refused(raw, "invalid_request", "d")["details"]["fields"][0]["nearest"] == "euler"
    raw.request("e", "inference.text2img", {"prompt": "", "model_id": "no-such-model"})
    refused(raw, "model_not_found", "e")
    raw.request("f", "system.noop", session_id="no-such-session")
    refused(raw, "not_found", "f")
    raw.request("g", "system.noop", worker_id="no-such-worker")
    refused(raw, "no_capable_worker", "g")
    raw.request("h", "system.noop", device_id="cuda:99")
    refused(raw, "no_capable_worker", "h")
    for number, (action, field) in enumerate(
        [("job.get", "job_id"), ("job.result", "job_id"), ("job.events", "job_id"), ("job.cancel", "job_id"),
         ("session.get", "session_id"), ("session.cancel", "session_id"), ("artifact.get", "artifact_id"),
         ("worker.drain", "worker_id")]
    ):  # fmt: skip
        for name in ("../../../etc/passwd", "no-such", "'; drop table jobs; --"):
            raw.request(f"n{number}", action, {field: name})
            refused(raw, "not_found", f"n{number}")


IMAGE = "inference.text2img"
BAD_DATA = [
    *[(IMAGE, {"prompt": "x", "width": width}, "width") for width in (0, 1, 7, 100_000, -8, 8.5, "64", True)],
    *[(IMAGE, {"prompt": "x", "steps": steps}, "steps") for steps in (0, 10_000, -1, "20", 2**53 - 1)],
    *[
        (IMAGE, {"prompt": "x", "guidance_scale": value}, "guidance_scale")
        for value in (math.nan, math.inf, -1, 101, "7")
    ],
    *[(IMAGE, {"prompt": "x", "num_images": count}, "num_images") for count in (0, 17, None)],
    *[(IMAGE, {"prompt": "x", "seed": seed}, "seed") for seed in (-2, 1.5, "x", str(2**64), "9" * 21, "٣")],
    (IMAGE, {"prompt": "x" * 10_001}, "prompt"),
    (IMAGE, {"prompt": "x" * 1_000_000}, "prompt"),
    (IMAGE, {"prompt": b"bytes"}, "prompt"),
    (IMAGE, {}, "prompt"),
    (IMAGE, {"prompt": "x", "output": {"format": "bmp"}}, "output.format"),
    (IMAGE, {"prompt": "x", "output": {"quality": 0}}, "output.quality"),
    (IMAGE, {"prompt": "x", "preview": {"every_steps": 0}}, "preview.every_steps"),
    (IMAGE, {"prompt": "x", "model_id": ""}, "model_id"),
    ("system.noop", {"sleep_ms": math.nan}, "sleep_ms"),
    ("system.noop", {"sleep_ms": -1}, "sleep_ms"),
    ("system.ping", {"x": 1}, "x"),
    ("session.create", {"priority": 11}, "priority"),
    ("session.create", {"defaults": {"stepz": 1}}, "defaults.stepz"),
    ("job.list", {"limit": 0}, "limit"),
    ("job.list", {"status": "lost"}, "status"),
    ("job.result", {"job_id": "x" * 65}, "job_id"),
    ("job.events", {"job_id": "x", "after_seq": -1}, "after_seq"),
]


def test_bad_data(raw: Raw) -> None:
    for number, (action, data, field) in enumerate(BAD_DATA):
        raw.request(f"d{number}", action, data)
        error = refused(raw, "invalid_request", f"d{number}")
        assert field in [entry["field"] for entry in error["details"]["fields"]], (data, error)
        assert len(json.dumps(error)) < 3000  # the value is not repeated


def test_attachments_that_are_not_as_described(raw: Raw) -> None:
    entry, frame = {"media_type": "image/png", "nbytes": 5}, b"12345"
    differ: list[tuple[list[Any], list[bytes]]] = [
        ([], [frame]), ([entry], []), ([entry, entry], [frame]), ([entry], [frame, frame]), ([entry], [b"1234"]),
        ([entry], [b""]), ([{**entry, "nbytes": 2**53 - 1}], [frame]),
    ]  # fmt: skip
    for described, frames in differ:
        raw.send(pack(header(attachments=described)), *frames)
        refused(raw, "malformed_message", "r")
    wrong: list[Any] = [
        None, "x", 5, {"0": entry}, [5], [{"nbytes": 5}], [{"media_type": "image/png"}], [{**entry, "nbytes": "5"}],
        [{**entry, "nbytes": True}], [{**entry, "nbytes": -5}], [{**entry, "media_type": ""}],
    ]  # fmt: skip
    for described in wrong:
        raw.send(pack(header(attachments=described)), frame)
        refused(raw, "invalid_request", "r")


def test_too_many_or_too_large_attachments(raw: Raw) -> None:
    raw.request("many", "system.noop", attachments=[b"x"] * 65)
    refused(raw, "payload_too_large", "many")
    raw.request("most", "system.noop", attachments=[b"x"] * 64)
    assert raw.answer()["success"]
    raw.request("large", "system.noop", attachments=[bytes(2 * MIB)] * 2 + [b"x"])
    refused(raw, "payload_too_large", "large")
    raw.request("largest", "system.noop", attachments=[bytes(2 * MIB)] * 2)
    assert raw.answer()["success"]


def test_a_frame_beyond_the_limit_costs_its_sender_the_connection_only(house: House) -> None:
    with Raw(house.endpoint) as raw, Raw(house.endpoint) as other:
        raw.request("before", "system.noop", {"sleep_ms": 300})
        other.request("other", "system.noop", {"sleep_ms": 600})
        raw.request("frame", "system.noop", attachments=[bytes(3 * MIB + 1)])
        assert other.answer()["success"]
        assert raw.receive(0.5) is None
        again = raw.ask("again", "system.ping")  # libzmq has connected anew
        assert again["success"]


def test_req_framing(house: House) -> None:
    with Raw(house.endpoint, zmq.REQ) as req:
        assert req.ask("1", "system.ping")["success"]
        req.request("2", "system.noop", {"echo": 2}, [b"frame"])
        received = req.receive()
        assert received is not None
        assert (received[0]["data"], received[1]) == ({"echo": 2}, [b"frame"])
        req.send(b"\xc1")
        refused(req, "malformed_message")
        req.request("3", "system.noop", {"ekko": 2})
        refused(req, "invalid_request", "3")
        req.request("4", "system.noop", wait=False, events=["state", "progress"])
        accepted = req.answer()  # and no event
        assert accepted["status"] == "pending"
        result = req.ask("5", "job.result", {"job_id": accepted["data"]["job_id"], "wait_ms": 5000})
        assert result["status"] == "completed"


def test_worker_messages_on_the_client_port(house: House, raw: Raw) -> None:
    device = DeviceFacts(device_id="cpu", kind="cpu", memory_total=1, memory_free=1)
    hello = Hello(worker_id="w1", instance_id="x", device=device, capabilities=Capabilities(actions=["system.noop"]))
    raw.send(pack(hello.to_wire()))
    refused(raw, "malformed_message")
    for kind in ("goodbye", "drain", "assign"):
        raw.send(pack({"kind": kind, "protocol": 1}))
        refused(raw, "malformed_message")
    raw.send(pack({"kind": "result", "job_id": "j", "attempt": 1, "success": True}))
    refused(raw, "unsupported_protocol")


def test_client_messages_and_garbage_on_the_worker_port(house: House, client: Client) -> None:
    with Raw(house.worker_endpoint) as peer:
        peer.request("r", "system.noop")
        peer.request("r", "system.ping")
        assert peer.receive(0.3) is None  # a kind that it does not know
        for message in (
            b"\xc1",
            pack({"kind": "hello", "protocol": 1}),
            pack({"kind": "heartbeat", "held": 5}),
            nested(40),
        ):
            peer.send(message)
            answer = peer.answer()
            assert (answer["kind"], answer["error"]["code"]) == ("refused", "malformed_message")
            answers.append(answer)
        peer.send(pack({"kind": "hello", "protocol": 2}))
        assert peer.answer()["error"]["code"] == "unsupported_protocol"
        # A stranger's messages about a job that another worker runs change nothing, see `neighbour`.
        job_id = client.jobs.list(status="processing")[0].job_id
        peer.send(pack({"kind": "result", "job_id": job_id, "attempt": 1, "success": True, "data": {"echo": "forged"}}))
        assert peer.answer()["kind"] == "rehello"
        peer.send(pack({"kind": "event", "job_id": job_id, "attempt": 1, "event": "progress", "data": {}}))
        assert peer.answer()["kind"] == "rehello"
    assert [worker.worker_id for worker in client.workers()] == ["busy", "w1"]


def test_bytes_that_are_no_zmtp(house: House, client: Client) -> None:
    """Whatever connects to the socket and says nothing sensible."""
    path = house.endpoint.removeprefix("ipc://")
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + bytes(8) + b"\x7f" + bytes(10_000)):
        with sockets.socket(sockets.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(garbage)
            time.sleep(0.02)
    assert client.ping().time


def test_a_flood_of_requests_on_one_connection(house: House, client: Client) -> None:
    with Raw(house.endpoint) as raw:
        for number in range(1100):
            raw.request(f"f{number}", "system.noop", {"sleep_ms": 20_000})
        codes = [refused(raw, "queue_full", f"f{1024 + number}")["retryable"] for number in range(76)]
        assert all(codes)
        assert client.ping().time
    eventually(lambda: client.stats().queued == 0, 15)  # the connection is gone, and so are its jobs


def test_errors_tell_nothing_about_the_machine(house: House) -> None:
    """Last: looks at every error response that the tests above got."""
    assert len(answers) > 150
    pids = {str(pid) for pid in processes(house)}
    for answer in answers:
        error = answer["error"]
        assert set(error) == {"code", "message", "details", "retryable", "retry_after_ms"}
        text = f"{error['message']} {json.dumps(error['details'])}"
        assert "Traceback" not in text
        assert "ipc:" not in text
        assert "tcp:" not in text
        assert ".py" not in text
        assert str(house.folder) not in text
        assert not re.search(r"(?<![\w.])/\w", text), text  # a path
        assert pids.isdisjoint(re.findall(r"\d+", text)), text
