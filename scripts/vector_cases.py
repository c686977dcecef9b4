"""The cases of the golden vectors. Each function returns the vectors of one file; `make_vectors.py` writes them.

A frame is a hex string, or a list of [hex, times] pieces to be joined where spelling it out would take megabytes.
"""

import hashlib
import struct
from typing import Any

from protocol.codec import canonical_request, pack
from protocol.limits import DEFAULT_LIMITS, INT_MAX, MIB

Vector = dict[str, Any]
Frame = str | list[list[Any]]

PNG = bytes.fromhex("89504e470d0a1a0a")  # stands for a picture; no codec looks inside
JOB = "01934b2e-7c00-7000-8000-000000000001"
PRINT = bytes(range(32))
TEXT2IMG = {"prompt": "a red circle on a white background", "width": 64, "height": 64, "steps": 20, "seed": 7}


def vector(
    name: str, description: str, header: Any, attachments: list[bytes] | None = None, *, plane: str = "client",
    direction: str = "to_orchestrator", **outcome: Any,
) -> Vector:  # fmt: skip
    """A vector of a header that our encoder writes."""
    raw = [pack(header).hex(), *(attachment.hex() for attachment in attachments or [])]
    outcome = outcome or {"valid": True}
    return {"name": name, "description": description, "plane": plane, "direction": direction, "frames": raw,
            "header": header, "reencodes": True, **outcome}  # fmt: skip


def raw_vector(name: str, description: str, frames: list[Frame], header: Any = None, **outcome: Any) -> Vector:
    """A vector of bytes that our encoder would not write: `header` is what they decode to, null if it is not told."""
    return {"name": name, "description": description, "plane": "client", "direction": "to_orchestrator",
            "frames": frames, "header": header, "reencodes": False, **outcome}  # fmt: skip


def request(action: str = "system.noop", data: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"protocol": 1, "request_id": "r-1", "action": action, "data": {} if data is None else data, **fields}


def described(*attachments: tuple[str, bytes]) -> list[dict[str, Any]]:
    return [{"media_type": media_type, "nbytes": len(raw)} for media_type, raw in attachments]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def echoed_zeros(count: int) -> Frame:
    until_echo = pack(request(data={"echo": None}))[:-1]
    return [[(until_echo + b"\xdc" + count.to_bytes(2, "big")).hex(), 1], ["00", count]]


def requests() -> list[Vector]:
    every_field = request(
        "inference.text2img",
        {**TEXT2IMG, "guidance_scale": 7.5, "num_images": 2, "scheduler": "euler", "preview": {"every_steps": 5}},
        session_id="01934b2e-7c00-7000-8000-0000000000aa",
        priority=9,
        wait=False,
        events=["state", "progress", "preview", "item", "log"],
        queue_timeout_ms=60_000,
        run_timeout_ms=120_000,
        deadline_ms=300_000,
        device_id="cuda:0",
        worker_id="worker-0",
        api_key="key",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        attachments=[],
    )
    many = [bytes([index]) for index in range(DEFAULT_LIMITS.attachments_max)]
    return [
        vector("ping", "The smallest request.", request("system.ping")),
        vector("no_data", "data may be left out.", {"protocol": 1, "request_id": "r", "action": "system.ping"}),
        vector("text2img", "Ask for a picture and its progress.",
               request("inference.text2img", TEXT2IMG, events=["state", "progress"])),
        vector("every_field", "Every field of a request.", every_field),
        vector("nulls", "An optional field may be null.",
               request("system.ping", session_id=None, priority=None, queue_timeout_ms=None, api_key=None)),
        vector("unknown_header_field", "An unknown field of the header is ignored.", request(colour="red")),
        vector("kind_request", "A request may say that it is one.", request(kind="request")),
        vector("request_id_longest", "64 characters, all that are allowed.",
               {**request(), "request_id": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_."}),
        vector("priorities_lowest", "Priority 0.", request(priority=0)),
        vector("integers", "The largest integers of each sign.",
               request(data={"echo": [INT_MAX, -INT_MAX, 0, -1, 127, 128, 65536]})),
        vector("floats", "Numbers, infinities too, where a field takes any value.",
               request(data={"echo": [0.5, -0.0, 1e300, float("inf"), float("-inf")]})),
        vector("integral_floats", "7.0 where an integer is meant: some languages have one kind of number only.",
               request("inference.text2img", {"prompt": "x", "steps": 20.0, "width": 64.0, "seed": 7.0},
                       priority=4.0, deadline_ms=1000.0)),
        vector("integer_for_number", "An integer where a number is meant.",
               request("inference.text2img", {"prompt": "x", "guidance_scale": 7})),
        vector("seed_as_text", "A seed above 2^53 - 1 travels as a decimal string.",
               request("inference.text2img", {"prompt": "x", "seed": str(2**64 - 1)})),
        vector("seed_random", "-1 asks for a random seed.", request("inference.text2img", {"prompt": "x", "seed": -1})),
        vector("bin_in_data", "Bytes inside data, empty and not.", request(data={"echo": [b"", b"\x00\xff"]})),
        vector("unicode", "Text in several scripts, an emoji, a NUL, an empty string.",
               request("inference.text2img", {"prompt": "ein Kreis, круг, 円, دائرة, 🟠\x00", "negative_prompt": ""})),
        vector("nesting_deepest", "32 containers: the header, data, and 30 lists.", request(data={"echo": nested(30)})),
        raw_vector("array_longest", "16,384 entries.", [echoed_zeros(DEFAULT_LIMITS.entries_max)], valid=True),
        vector("attachment", "One attachment, named by its index from data.",
               request(data={"echo": {"attachment": 0}}, attachments=described(("image/png", PNG))), [PNG]),
        vector("attachment_empty", "An attachment may be empty.",
               request(attachments=described(("text/plain", b""))), [b""]),
        vector("attachment_nbytes_float", "nbytes as 8.0.",
               request(attachments=[{"media_type": "image/png", "nbytes": 8.0}]), [PNG]),
        vector("attachments_64", "As many attachments as are allowed.",
               request(attachments=described(*(("application/octet-stream", raw) for raw in many))), many),
        vector("session_create", "Open a session with defaults for its jobs.",
               request("session.create", {"name": "batch 1", "defaults": {"steps": 30}, "priority": 6})),
        vector("job_events", "Replay a job's events from after seq 12.",
               request("job.events", {"job_id": JOB, "after_seq": 12})),
        vector("job_result", "Wait for a job's result, from a REQ socket too.",
               request("job.result", {"job_id": JOB, "wait_ms": 30_000})),
        vector("job_cancel", "Cancel a job.", request("job.cancel", {"job_id": JOB})),
        vector("artifact_put", "Store an attachment.",
               request("artifact.put", attachments=described(("image/png", PNG))), [PNG]),
    ]  # fmt: skip


def from_orchestrator(name: str, description: str, header: Any, attachments: list[bytes] | None = None) -> Vector:
    return vector(name, description, header, attachments, direction="from_orchestrator")


def response(**fields: Any) -> dict[str, Any]:
    header = {"protocol": 1, "kind": "response", "request_id": "r-1", "job_id": JOB, "session_id": None,
              "success": True, "status": "completed", "data": {}, "error": None, "timing": None,
              "worker_id": None, "device_id": None, "attempt": None, "attachments": []}  # fmt: skip
    return {**header, **fields}


def event(seq: int, name: str, data: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"protocol": 1, "kind": "event", "request_id": "r-1", "job_id": JOB, "seq": seq, "event": name,
            "data": data, "attachments": [], **fields}  # fmt: skip


def error(code: str, message: str, *, retryable: bool = False, **fields: Any) -> dict[str, Any]:
    return {"code": code, "message": message, "details": {}, "retryable": retryable, "retry_after_ms": None, **fields}


SESSION_TOLD = {
    "session_id": "01934b2e-7c00-7000-8000-0000000000aa", "name": "batch 1", "status": "active",
    "defaults": {"steps": 30}, "priority": 6, "idle_timeout_ms": 86_400_000, "created_at": "2026-01-31T12:00:00.000Z",
    "jobs": {"pending": 1, "processing": 0, "completed": 2, "failed": 1, "cancelled": 0}, "progress": 0.75,
    "analytics": {
        "images": 8, "steps": 240, "queue_ms": {"p50": 12, "p95": 1800}, "run_ms": {"p50": 900, "p95": 2100},
        "devices": [{"worker_id": "worker-0", "device_id": "cuda:0", "jobs": 3}], "retries": 1, "losses": 1,
        "failures": {"out_of_memory": 1},
    },
}  # fmt: skip


def responses_and_events() -> list[Vector]:
    image = {"attachment": 0, "media_type": "image/png", "width": 64, "height": 64, "seed": 7,
             "recipe": {"prompt": "a red circle on a white background", "steps": 20}}  # fmt: skip
    ran = {"worker_id": "worker-0", "device_id": "cpu", "attempt": 1,
           "timing": {"queued_ms": 2, "running_ms": 812, "total_ms": 815}}  # fmt: skip
    say = from_orchestrator
    return [
        say("image", "A picture.",
            response(data={"images": [image]}, attachments=described(("image/png", PNG)), **ran), [PNG]),
        say("accepted", "The answer to wait: false, sent when the job is on disk.",
            response(status="pending", data={"job_id": JOB, "estimated_start_ms": 0,
                                             "estimated_completion_ms": 900, "estimate_measured": True})),
        say("no_job", "The answer of the orchestrator itself: no job.",
            response(job_id=None, status=None, data={"time": "2026-01-31T12:00:00.000Z"})),
        say("session", "A session, with what its jobs come to.",
            response(job_id=None, status=None, data=SESSION_TOLD)),
        say("failed", "A job that failed.",
            response(success=False, status="failed",
                     error=error("out_of_memory", "The request does not fit the device, even alone."), **ran)),
        say("cancelled", "A job that was cancelled.",
            response(success=False, status="cancelled", error=error("cancelled", "The job was cancelled."))),
        say("queue_full", "Refused for now: retry after a while.",
            response(job_id=None, success=False, status=None,
                     error=error("queue_full", "A queue is at its limit; wait retry_after_ms.", retryable=True,
                                 retry_after_ms=1000))),
        say("invalid_request", "Which fields were wrong, and what was probably meant.",
            response(job_id=None, success=False, status=None,
                     error=error("invalid_request", "promt: unknown field (did you mean prompt?).",
                                 details={"fields": [{"field": "promt", "problem": "unknown field",
                                                      "nearest": "prompt"}]}))),
        say("unreadable_request", "The request could not be read, so request_id is null.",
            response(request_id=None, job_id=None, success=False, status=None,
                     error=error("malformed_message", "The header is not valid msgpack (ValueError)."))),
        say("event_state", "The job's status changed.",
            event(1, "state", {"status": "processing", "attempt": 1, "worker_id": "worker-0"})),
        say("event_progress", "A step was done.",
            event(2, "progress", {"step": 5, "steps": 20, "image": 0, "images": 2, "eta_ms": 640})),
        say("event_preview", "A small picture of the unfinished latents.",
            event(3, "preview", {"step": 5, "steps": 20, "image": 0, "images": 2},
                  attachments=described(("image/jpeg", PNG))), [PNG]),
        say("event_item", "One of several pictures is done.",
            event(4, "item", {"index": 0, "seed": 7, "media_type": "image/png", "width": 64, "height": 64,
                              "attachment": 0}, attachments=described(("image/png", PNG))), [PNG]),
        say("event_log", "A line for people.", event(5, "log", {"level": "info", "message": "loading the model"})),
        say("event_end", "The terminal state event, above a stored high-water mark.",
            event(257, "state", {"status": "failed", "attempt": 3, "worker_id": None,
                                 "error": error("poisoned", "The job took down three workers.")})),
        vector("alive", "Sent every 2 s while a wait: true request is open. A kind a peer does not know is ignored.",
               {"protocol": 1, "kind": "alive"}, direction="from_orchestrator", ignored=True),
    ]  # fmt: skip


def worker_plane() -> list[Vector]:
    held = {"job_id": JOB, "attempt": 1, "state": "running", "tenant": "default", "request_id": "r-1",
            "fingerprint": PRINT, "action": "system.noop", "durable": False}  # fmt: skip
    hello = {"kind": "hello", "protocol": 1, "worker_id": "worker-0", "instance_id": "01934b2e-7c00-7000",
             "device": {"device_id": "cuda:0", "kind": "NVIDIA H200", "memory_total": 150_754_820_096,
                        "memory_free": 149_000_000_000},
             "capabilities": {"actions": ["inference.text2img", "system.noop"],
                              "models": [{"model_id": "demo", "family": "latent", "actions": ["inference.text2img"],
                                          "content_hash": "00ff"}], "schedulers": ["euler"]},
             "slots": 4, "light_slots": 128, "resident_models": ["demo"], "held": [], "draining": False}  # fmt: skip
    about = {"job_id": JOB, "attempt": 1}
    assign = {"kind": "assign", **about, "action": "inference.text2img", "data": TEXT2IMG, "tenant": "default",
              "request_id": "r-1", "fingerprint": PRINT, "exclusive": False, "durable": True, "priority": 4,
              "traceparent": None, "attachments": []}  # fmt: skip
    bad_hello = {**hello, "slots": 0}
    beat = {"kind": "heartbeat", "held": [], "memory_free": 149_000_000_000, "resident_models": ["loc:1"],
            "quantum_age_ms": 0, "models_upto": 7}  # fmt: skip
    figures = {"model_id": "loc:1", "since_ms": 1_795_000_000_000, "inference_count": 3, "failures": 1, "items": 3,
               "batches": 2, "batched_items": 3, "cache_hits": 1, "cache_misses": 3, "loads": 1, "load_ms": 180,
               "loaded_at_ms": 1_795_000_000_180, "reloaded_at_ms": None, "nbytes": 700_000, "total_us": 4100,
               "times": [[90, 2], [97, 1]]}  # fmt: skip
    cases: list[tuple[str, str, str, dict[str, Any], list[bytes]]] = [
        ("hello", "A worker's first message.", "to", hello, []),
        ("hello_held", "After a lost connection: the jobs it still holds.", "to",
         {**hello, "held": [held, {**held, "state": "done"}]}, []),
        ("hello_any_model", "models null: it judges a model's name itself.", "to",
         {**hello, "capabilities": {"actions": ["system.noop"], "models": None, "schedulers": []}}, []),
        ("welcome", "The worker is in.", "from",
         {"kind": "welcome", "protocol": 1, "worker_id": "worker-0", "orchestrator_epoch": "01934b2e",
          "heartbeat_ms": 2000, "lease_ms": 15_000}, []),
        ("refused", "It is not: its name is taken by a living instance.", "from",
         {"kind": "refused", "error": error("unavailable", "A worker of this name is connected.", retryable=True)}, []),
        ("heartbeat", "The worker lives.", "to",
         {"kind": "heartbeat", "held": [held], "memory_free": 149_000_000_000, "resident_models": ["demo"],
          "quantum_age_ms": 12, "models": [], "models_upto": 0}, []),
        ("heartbeat_models", "What was run of a model since the worker's start.", "to",
         {**beat, "models": [figures]}, []),
        ("heartbeat_ack", "The orchestrator lives.", "from",
         {"kind": "heartbeat_ack", "orchestrator_epoch": "01934b2e", "models_upto": 7}, []),
        ("rehello", "The orchestrator does not know this peer: say hello again.", "from",
         {"kind": "rehello", "orchestrator_epoch": "01934b2f"}, []),
        ("assign", "Run this attempt.", "from", assign, []),
        ("assign_exclusive", "The third attempt, alone on the worker, with the client's attachment.", "from",
         {**assign, "attempt": 3, "exclusive": True, "priority": 9,
          "attachments": described(("image/png", PNG))}, [PNG]),
        ("event", "Progress of an attempt, not numbered yet.", "to",
         {"kind": "event", **about, "event": "progress",
          "data": {"step": 5, "steps": 20, "image": 0, "images": 1, "eta_ms": 640}, "attachments": []}, []),
        ("result", "An attempt ended well.", "to",
         {"kind": "result", **about, "success": True,
          "data": {"images": [{"attachment": 0, "media_type": "image/png", "width": 64, "height": 64, "seed": 7,
                               "recipe": {}}]}, "error": None, "load_ms": 0, "running_ms": 812,
          "attachments": described(("image/png", PNG))}, [PNG]),
        ("result_failed", "An attempt failed.", "to",
         {"kind": "result", **about, "success": False, "data": {}, "error": error("model_invalid", "It is damaged."),
          "load_ms": 3, "running_ms": 3, "attachments": []}, []),
        ("result_ack", "The result is safe: forget it.", "from", {"kind": "result_ack", "results": [about]}, []),
        ("cancel", "Stop this attempt.", "from", {"kind": "cancel", **about}, []),
        ("drain", "Finish what you hold, then leave.", "from", {"kind": "drain"}, []),
        ("goodbye", "The worker leaves on purpose.", "to", {"kind": "goodbye"}, []),
    ]  # fmt: skip
    to: dict[str, Any] = {"plane": "worker", "direction": "to_orchestrator"}
    refused: dict[str, Any] = {**to, "refuse": "malformed_message"}
    return [
        *(vector(name, text, header, raw, plane="worker", direction=f"{way}_orchestrator")
          for name, text, way, header, raw in cases),
        vector("unknown_kind", "A kind a peer does not know is ignored.", {"kind": "sing"}, ignored=True, **to),
        vector("slots_zero", "A worker without slots.", bad_hello, **refused),
        vector("light_slots_too_many", "It takes at most 4096 light jobs.", {**hello, "light_slots": 4097}, **refused),
        vector("times_falling", "The buckets of inference times rise.",
               {**beat, "models": [{**figures, "times": [[97, 1], [90, 2]]}]}, **refused),
        vector("held_state_unknown", "A held job in no known state.",
               {**hello, "held": [{**held, "state": "asleep"}]}, **refused),
        vector("fingerprint_short", "A fingerprint has 32 bytes.",
               {**hello, "held": [{**held, "fingerprint": b"short"}]}, **refused),
        vector("result_without_attempt", "Every message about a job says its attempt.",
               {"kind": "result", "job_id": JOB, "success": True}, **refused),
        vector("attempt_negative", "Counts are not negative.",
               {"kind": "result", "job_id": JOB, "attempt": -1, "success": True}, **refused),
    ]  # fmt: skip


def encodings() -> list[Vector]:
    """Other ways to write what we write: all decode to the same header. Only decoding is compared."""
    head = b"\x84\xa8protocol\x01\xaarequest_id\xa3r-1\xa6action\xabsystem.noop\xa4data\x81\xa4echo"

    def echo(name: str, description: str, raw: bytes, value: Any) -> Vector:
        return raw_vector(name, description, [(head + raw).hex()], request(data={"echo": value}), valid=True)

    return [
        echo("uint64_small", "7 in nine bytes.", b"\xcf" + (7).to_bytes(8, "big"), 7),
        echo("int64_small", "-7 in nine bytes.", b"\xd3" + (-7).to_bytes(8, "big", signed=True), -7),
        echo("float32", "0.5 as a 32-bit float.", b"\xca" + struct.pack(">f", 0.5), 0.5),
        echo("str32_short", "A short string behind a 32-bit length.", b"\xdb\x00\x00\x00\x02hi", "hi"),
        echo("str8_short", "A short string behind an 8-bit length.", b"\xd9\x02hi", "hi"),
        echo("bin32_short", "Two bytes behind a 32-bit length.", b"\xc6\x00\x00\x00\x02\x00\xff", b"\x00\xff"),
        echo("array32_short", "One entry behind a 32-bit length.", b"\xdd\x00\x00\x00\x01\xc0", [None]),
        echo("map32_short", "One entry behind a 32-bit length.", b"\xdf\x00\x00\x00\x01\xa1a\xc3", {"a": True}),
        raw_vector("order", "Fields stand in any order.",
                   [pack(dict(reversed(request(data={"echo": 1}).items()))).hex()],
                   dict(reversed(request(data={"echo": 1}).items())), valid=True) | {"reencodes": True},
    ]  # fmt: skip


def refused_framing() -> list[Vector]:
    """Bytes that are no header, or a header its attachments don't match."""
    ping = pack(request("system.ping"))
    key = b"\x81\xa1a"  # {"a": …
    malformed = {
        "empty": ("No bytes at all.", b""),
        "garbage": ("Bytes that are not msgpack.", b"\xc1\xff\x00garbage"),
        "http": ("A web browser at the door.", b"GET / HTTP/1.1\r\n\r\n"),
        "truncated": ("The last byte is missing.", ping[:-1]),
        "trailing": ("A byte too many.", ping + b"\x00"),
        "second_header": ("Two headers in one frame.", ping + ping),
        "not_a_map_int": ("A number instead of a map.", b"\x07"),
        "not_a_map_array": ("An array instead of a map.", pack([request()])),
        "not_a_map_nil": ("nil instead of a map.", b"\xc0"),
        "str32_4gib": ("A string that claims 4 GiB.", key + b"\xdb\xff\xff\xff\xff"),
        "bin32_4gib": ("Bytes that claim 4 GiB.", key + b"\xc6\xff\xff\xff\xff"),
        "array32_4gib": ("An array that claims 2^32 - 1 entries.", key + b"\xdd\xff\xff\xff\xff"),
        "map32_4gib": ("A map that claims 2^32 - 1 entries.", key + b"\xdf\xff\xff\xff\xff"),
        "ext32_4gib": ("An extension that claims 4 GiB.", key + b"\xc9\xff\xff\xff\xff\x01"),
        "header_map32_4gib": ("The header itself claims 2^32 - 1 entries.", b"\xdf\xff\xff\xff\xff"),
        "nesting_33": ("One container too deep.", pack(request(data={"echo": nested(31)}))),
        "duplicate_key": ("A key twice: which one counts?", b"\x82\xa1a\x01\xa1a\x02"),
        "duplicate_key_inside": ("A key twice, further in.", key + b"\x82\xa1b\x01\xa1b\x01"),
        "integer_key": ("A key that is an integer.", b"\x81\x01\x02"),
        "bin_key": ("A key of bytes.", b"\x81\xc4\x01a\x01"),
        "nil_key": ("A key that is nil.", b"\x81\xc0\x01"),
        "array_key": ("A key that is an array.", b"\x81\x91\x01\x01"),
        "ext": ("An extension type.", key + b"\xd4\x05\x00"),
        "timestamp_32": ("A timestamp of 32 bits.", key + b"\xd6\xff\x00\x00\x00\x01"),
        "timestamp_64": ("A timestamp of 64 bits.", key + b"\xd7\xff" + bytes(8)),
        "timestamp_96": ("A timestamp of 96 bits.", key + b"\xc7\x0c\xff" + bytes(12)),
        "timestamp_bad": ("A timestamp with 2^32 - 1 nanoseconds.", key + b"\xc7\x0c\xff\xff\xff\xff\xff" + bytes(8)),
        "integer_2_53": ("2^53.", key + b"\xcf" + (2**53).to_bytes(8, "big")),
        "integer_minus_2_53": ("-2^53.", key + b"\xd3" + (-(2**53)).to_bytes(8, "big", signed=True)),
        "integer_uint64_max": ("2^64 - 1.", key + b"\xcf" + b"\xff" * 8),
        "integer_in_list": ("2^53 inside a list.", key + b"\x91\xcf" + (2**53).to_bytes(8, "big")),
        "utf8_invalid": ("A string that is not UTF-8.", key + b"\xa2\xff\xfe"),
        "utf8_surrogate": ("A lone surrogate.", key + b"\xa3\xed\xa0\x80"),
        "utf8_invalid_key": ("A key that is not UTF-8.", b"\x81\xa1\xff\x01"),
    }  # fmt: skip
    described_as = request(attachments=described(("image/png", PNG)))
    text_1_mib = pack(request())[:-1] + b"\x81\xa4echo\xdb" + MIB.to_bytes(4, "big")
    count = DEFAULT_LIMITS.attachments_max + 1
    five = 5 * [{"media_type": "application/octet-stream", "nbytes": 64 * MIB}]
    wrong: dict[str, Any] = {"refuse": "malformed_message"}
    large: dict[str, Any] = {"refuse": "payload_too_large"}
    return [
        *(raw_vector(name, text, [raw.hex()], **wrong) for name, (text, raw) in malformed.items()),
        raw_vector("array_too_long", "16,385 entries.", [echoed_zeros(DEFAULT_LIMITS.entries_max + 1)], **wrong),
        raw_vector("nesting_100000", "100,000 arrays in each other.",
                   [[["81a161", 1], ["91", 100_000], ["c0", 1]]], **wrong),
        raw_vector("nested_claims", "200,000 arrays in each other, each claiming 1,000,000 entries.",
                   [[["81a161", 1], ["dd000f4240", 200_000]]], **wrong),
        vector("worker_message", "A worker's message on the client port.", {**request(), "kind": "hello"}, **wrong),
        vector("attachment_missing", "Described, but no frame came.", described_as, **wrong),
        vector("attachment_undescribed", "A frame came that the header does not describe.", request(), [PNG], **wrong),
        vector("attachment_shorter", "A byte less than described.", described_as, [PNG[:-1]], **wrong),
        vector("attachment_longer", "A byte more than described.", described_as, [PNG + b"\x00"], **wrong),
        raw_vector("header_too_large", "A header of more than 1 MiB.", [[[text_1_mib.hex(), 1], ["61", MIB]]], **large),
        vector("attachments_65", "An attachment too many.",
               request(attachments=described(*[("text/plain", b"")] * count)), [b""] * count, **large),
        raw_vector("attachments_too_large", "5 × 64 MiB of attachments.",
                   [pack(request(attachments=five)).hex(), *[[["00", 64 * MIB]]] * 5],
                   request(attachments=five), **large) | {"reencodes": True},
    ]  # fmt: skip


def refused_fields() -> list[Vector]:
    """Readable requests with a wrong field."""
    image, nan = "inference.text2img", float("nan")

    def wrong(name: str, description: str, header: dict[str, Any], code: str = "invalid_request") -> Vector:
        return vector(name, description, header, refuse=code)

    def data(name: str, field: str, value: Any, description: str) -> Vector:
        return wrong(name, description, request(image, {"prompt": "x", field: value}))

    def field(name: str, value: Any, what: str, description: str) -> Vector:
        return wrong(what, description, {**request(), name: value})

    without_id, without_action, without_protocol = request(), request(), request()
    del without_id["request_id"], without_action["action"], without_protocol["protocol"]
    return [
        field("protocol", 2, "protocol_2", "A newer protocol.") | {"refuse": "unsupported_protocol"},
        field("protocol", "1", "protocol_text", "The number as text.") | {"refuse": "unsupported_protocol"},
        wrong("protocol_missing", "No protocol.", without_protocol, "unsupported_protocol"),
        wrong("request_id_missing", "No request_id.", without_id),
        field("request_id", "a" * 65, "request_id_65", "A character too many."),
        field("request_id", "", "request_id_empty", "An empty request_id."),
        field("request_id", "a b", "request_id_space", "A space."),
        field("request_id", "a\n", "request_id_newline", "A line break at the end."),
        field("request_id", "../a", "request_id_slash", "A slash."),
        field("request_id", "é", "request_id_accent", "A letter that is not ASCII."),
        field("request_id", 7, "request_id_number", "A number."),
        wrong("action_missing", "No action.", without_action),
        field("action", "inference.text2image", "action_unknown", "A misspelt action.") | {"refuse": "unknown_action"},
        field("action", "", "action_empty", "An empty action."),
        field("data", [], "data_array", "data is a map."),
        field("data", None, "data_null", "data is a map; it may be left out, but not null."),
        field("priority", 10, "priority_10", "Above the range."),
        field("priority", -1, "priority_negative", "Below the range."),
        field("priority", 4.5, "priority_fraction", "Not an integer."),
        field("priority", True, "priority_bool", "true is not 1."),
        field("wait", 1, "wait_number", "1 is not true."),
        field("events", ["progres"], "event_unknown", "A misspelt event."),
        field("events", "progress", "events_text", "events is a list."),
        field("events", ["state"] * 6, "events_too_many", "More entries than there are events."),
        field("deadline_ms", 0, "deadline_zero", "A span is at least 1 ms."),
        field("deadline_ms", 30 * 86_400_000 + 1, "deadline_too_long", "More than 30 days."),
        field("queue_timeout_ms", "1000", "timeout_text", "A number as text."),
        field("session_id", "", "session_id_empty", "An empty name."),
        field("api_key", "k" * 201, "api_key_too_long", "More than 200 characters."),
        field("attachments", {}, "attachments_map", "attachments is a list."),
        data("field_unknown", "guidance", 7.5, "An unknown field of data."),
        data("field_unknown_deep", "output", {"fromat": "png"}, "An unknown field further in."),
        wrong("prompt_missing", "No prompt.", request(image)),
        data("prompt_number", "prompt", 7, "A number as prompt."),
        data("prompt_too_long", "prompt", "x" * 10_001, "More than 10,000 characters."),
        *(data(f"width_{width}", "width", width, f"A width of {width}.") for width in (0, 1, 7, 100_000)),
        data("width_text", "width", "64", "A number as text."),
        data("steps_0", "steps", 0, "No steps."),
        data("steps_10000", "steps", 10_000, "Too many steps."),
        data("steps_fraction", "steps", 20.5, "Half a step."),
        data("steps_bool", "steps", True, "true is not 1."),
        data("steps_beyond_integers", "steps", 1e300, "An integral float far beyond 2^53."),
        data("guidance_nan", "guidance_scale", nan, "Not a number."),
        data("guidance_infinite", "guidance_scale", float("inf"), "Infinity."),
        data("num_images_17", "num_images", 17, "Too many pictures."),
        data("seed_minus_2", "seed", -2, "Below the range."),
        data("seed_text_too_large", "seed", str(2**64), "A seed above 2^64 - 1."),
        data("seed_text_hex", "seed", "0xff", "Not decimal."),
        data("format_unknown", "output", {"format": "gif"}, "An unknown format."),
    ]  # fmt: skip


def fingerprints() -> list[Vector]:
    """Inputs of the fingerprint, the bytes they become, and their SHA-256."""
    picture = {"media_type": "image/png", "nbytes": len(PNG)}

    def case(name: str, description: str, data: dict[str, Any], session_id: str | None = None,
             attachments: list[dict[str, Any]] | None = None) -> Vector:  # fmt: skip
        described_parts = attachments or []
        digests = [hashlib.sha256(PNG).digest()] * len(described_parts)
        canonical = canonical_request("system.noop", session_id, data, described_parts, digests)
        return {"name": name, "description": description,
                "input": {"action": "system.noop", "session_id": session_id, "data": data,
                          "attachments": [{**part, "sha256": digest} for part, digest
                                          in zip(described_parts, digests, strict=True)]},
                "canonical": canonical, "sha256": hashlib.sha256(canonical).hexdigest()}  # fmt: skip

    return [
        case("empty", "No data.", {}),
        case("integer", "An integer.", {"echo": 7}),
        case("integral_float", "Equals the integer.", {"echo": 7.0}),
        case("float", "A 64-bit float.", {"echo": 0.1}),
        case("negative_zero", "Equals 0.", {"echo": -0.0}),
        case("large_float", "Beyond 2^53 - 1 a float stays a float.", {"echo": 2.0**53}),
        case("order_1", "Keys are sorted, at every level.", {"sleep_ms": 1, "echo": {"b": 1, "a": [{"d": 1, "c": 2}]}}),
        case("order_2", "The same fingerprint.", {"echo": {"a": [{"c": 2, "d": 1}], "b": 1}, "sleep_ms": 1}),
        case("keys_by_code_point", "U+FF61 sorts before U+1F7E0: by UTF-8 bytes, not by UTF-16 units.",
             {"echo": {"🟠": 1, "｡": 2}}),
        case("null_is_not_absent", "Differs from the one without the field.", {"echo": None}),
        case("values", "One of each kind.", {"echo": [None, True, False, -1, 0.5, "é", b"\x00\xff", [], {}]}),
        case("session", "The session counts.", {"echo": 7}, session_id="01934b2e-7c00-7000-8000-0000000000aa"),
        case("attachment", "An attachment counts by type, size and SHA-256.", {"echo": 7}, attachments=[picture]),
        case("attachment_float", "The same fingerprint.", {"echo": 7}, attachments=[{**picture, "nbytes": 8.0}]),
    ]  # fmt: skip
