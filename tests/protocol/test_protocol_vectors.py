"""The golden vectors, both ways: bytes -> header and header -> bytes, and exactly the code where they are refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import canonical_request, check_attachments, fingerprint, pack, unpack, unpack_header
from protocol.enums import ErrorCode
from protocol.errors import AtelierError
from protocol.messages import FROM_WORKER, TO_CLIENT, TO_WORKER, Message, parse_message, parse_request
from protocol.schemas import ACTIONS, validate_data
from protocol.schemas.predict import check_tensors
from protocol.schemas.values import check_references

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "protocol" / "vectors"


def load(name: str) -> list[Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


FILES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "fingerprints")
VECTORS = [pytest.param(vector, id=f"{name}-{vector['name']}") for name in FILES for vector in load(name)]
FINGERPRINTS = [pytest.param(vector, id=vector["name"]) for vector in load("fingerprints")]


def from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if "$bin" in value:
            return bytes.fromhex(value["$bin"])
        if "$float" in value:
            return float(value["$float"])
        return {key: from_json(item) for key, item in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value


def frame_bytes(frame: Any) -> bytes:
    pieces = [[frame, 1]] if isinstance(frame, str) else frame
    return b"".join(bytes.fromhex(piece) * times for piece, times in pieces)


def frame_size(frame: Any) -> int:
    pieces = [[frame, 1]] if isinstance(frame, str) else frame
    return sum(len(piece) // 2 * times for piece, times in pieces)


def receive(vector: dict[str, Any]) -> Message | None:
    """What a receiver does with a message, in the order of SPEC.md, Reading a message."""
    header = unpack_header(frame_bytes(vector["frames"][0]))
    sizes = [frame_size(frame) for frame in vector["frames"][1:]]
    message: Message | None
    if (vector["plane"], vector["direction"]) == ("client", "to_orchestrator"):
        message = request = parse_request(header)
        check_attachments(header, sizes)
        data = validate_data(request.action, request.data)
        check_references(data, len(sizes))
        check_tensors(data, sizes)
    else:
        known = {
            ("client", "from_orchestrator"): TO_CLIENT,
            ("worker", "to_orchestrator"): FROM_WORKER,
            ("worker", "from_orchestrator"): TO_WORKER,
        }[vector["plane"], vector["direction"]]
        message = parse_message(header, known)
        check_attachments(header, sizes)
    return message


@pytest.mark.parametrize("vector", VECTORS)
def test_received_as_told(vector: dict[str, Any]) -> None:
    if "refuse" in vector:
        with pytest.raises(AtelierError) as caught:
            receive(vector)
        assert caught.value.code == vector["refuse"]
        assert len(pack(caught.value.to_wire())) < 8192  # a refusal is small whatever was sent
    else:
        assert (receive(vector) is None) == vector.get("ignored", False)


@pytest.mark.parametrize("vector", [p for p in VECTORS if p.values[0]["header"] is not None])
def test_decoded_and_encoded_as_told(vector: dict[str, Any]) -> None:
    header = from_json(vector["header"])
    raw = frame_bytes(vector["frames"][0])
    assert typed(unpack_header(raw)) == typed(header)
    if vector["reencodes"]:
        assert pack(header).hex() == raw.hex()


def test_msgpack_without_its_c_part_refuses_the_same() -> None:
    """Where no compiled msgpack is installed its pure Python stands in; it must not open a door."""
    script = """
import msgpack, protocol.codec, test_protocol_vectors as vectors
from protocol.errors import AtelierError
assert msgpack.Unpacker.__module__ == "msgpack.fallback"
for vector in vectors.load("refused_framing") + vectors.load("encodings") + vectors.load("requests"):
    try:
        told = "valid" if vectors.receive(vector) else "ignored"
    except AtelierError as error:
        told = error.code.value
    assert told == vector.get("refuse", "valid"), (vector["name"], told)
print("same")
"""
    here = Path(__file__).parent
    environment = {**os.environ, "MSGPACK_PUREPYTHON": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{here}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr


def typed(value: Any) -> Any:
    """Comparable with its types and its order of keys: 7 is not 7.0 is not true, NaN equals NaN."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), repr(value))


@pytest.mark.parametrize("vector", FINGERPRINTS)
def test_fingerprint_as_told(vector: dict[str, Any]) -> None:
    asked = from_json(vector["input"])
    parts = (asked["action"], asked["session_id"], asked["data"], asked["attachments"])
    digests = [entry["sha256"] for entry in asked["attachments"]]
    canonical = from_json(vector["canonical"])
    assert canonical_request(*parts, digests).hex() == canonical.hex()
    assert fingerprint(*parts, digests).hex() == hashlib.sha256(canonical).hexdigest() == vector["sha256"]
    assert unpack(canonical)[0] == asked["action"]


def test_which_fingerprints_are_equal() -> None:
    of = {vector["name"]: vector["sha256"] for vector in load("fingerprints")}
    equal = [{"integer", "integral_float"}, {"order_1", "order_2"}, {"attachment", "attachment_float"}]
    for group in equal:
        assert len({of[name] for name in group}) == 1
    assert len(set(of.values())) == len(of) - len(equal)


def test_every_kind_of_message_and_event_has_a_valid_vector() -> None:
    told = {
        (vector["plane"], vector["direction"], vector["header"].get("kind", "request"))
        for name in FILES
        for vector in load(name)
        if vector.get("valid") and vector["header"] is not None
    }
    assert told == {
        ("client", "to_orchestrator", "request"),
        *(("client", "from_orchestrator", kind) for kind in TO_CLIENT),
        *(("worker", "to_orchestrator", kind) for kind in FROM_WORKER),
        *(("worker", "from_orchestrator", kind) for kind in TO_WORKER),
    }


def test_every_action_that_works_with_models_has_a_valid_vector() -> None:
    told = {vector["header"]["action"] for vector in load("requests") if vector["header"] is not None}
    assert {name for name in ACTIONS if name.partition(".")[0] in ("inference", "lora", "controlnet")} <= told


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("image", "inference.text2img"),
        ("answer_controlnet", "inference.controlnet"),
        ("answer_preprocess", "controlnet.preprocess"),
        ("answer_lora_list", "lora.list"),
        ("answer_lora_unload", "lora.unload"),
        ("answer_controlnet_list", "controlnet.list"),
        ("answer_validate", "inference.validate"),
        ("answer_validate_refused", "inference.validate"),
    ],
)
def test_answers_have_the_shape_that_is_told(name: str, action: str) -> None:
    data = next(vector["header"]["data"] for vector in load("responses_and_events") if vector["name"] == name)
    shaped = ACTIONS[action].result.model_validate(data).model_dump(exclude_unset=True)
    assert {key: shaped[key] for key in data} == data


def test_refusals_use_codes_of_the_catalogue() -> None:
    codes = {vector["refuse"] for name in FILES for vector in load(name) if "refuse" in vector}
    assert codes == {
        ErrorCode.MALFORMED_MESSAGE,
        ErrorCode.PAYLOAD_TOO_LARGE,
        ErrorCode.UNSUPPORTED_PROTOCOL,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.UNKNOWN_ACTION,
    }


def test_names_are_unique() -> None:
    for name in [*FILES, "fingerprints"]:
        names = [vector["name"] for vector in load(name)]
        assert len(set(names)) == len(names), name


@pytest.mark.parametrize("script", ["scripts.make_vectors", "scripts.spec_tables"])
def test_generated_files_are_up_to_date(script: str) -> None:
    done = subprocess.run([sys.executable, "-m", script, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
