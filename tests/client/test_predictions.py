"""Tensors on their way to the server and back: what the client sends, and what it makes of the answers."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.client import (
    AsyncClient,
    Blob,
    Client,
    Prediction,
    Tensor,
    attach_inputs,
    attach_requests,
    prediction_of,
)
from orchestrator.client.tensors import INLINE_BYTES_MAX
from protocol.codec import pack, unpack
from protocol.errors import AtelierError, InvalidRequest, MalformedMessage, ModelNotFound, PayloadTooLarge
from protocol.schemas import validate_data
from protocol.schemas.predict import check_tensors, read_items
from protocol.schemas.values import check_references
from protocol.tensors import to_numpy
from tests.client.scripted import Received, ScriptedServer

LARGE = np.arange(4096, dtype=np.float32).reshape(2, 2048)
TOLD = {"model_id": "mlp:2", "model_version": "2", "inference_time_ms": 0.25, "cached": True, "batch_size": 8,
        "device": "cpu", "predictions": [{"label": "cat"}]}  # fmt: skip
OUTPUT = {"name": "y", "dtype": "float32", "shape": [2, 2048]}


def check(received: Received) -> Any:
    """The real server would take it."""
    data = validate_data(received.action, received.request.data)
    check_references(data, len(received.blobs))
    check_tensors(data, [len(blob) for blob in received.blobs])
    return data


@pytest.fixture
def ask(server: ScriptedServer) -> "Iterator[Callable[..., tuple[Received, Any]]]":
    """Calls a method on a thread; returns what the server received and what the method returned."""
    with ThreadPoolExecutor(1) as pool:

        def call(method: Callable[[], Any], answer: dict[str, Any], blobs: list[bytes] | None = None) -> Any:
            returned: Future[Any] = pool.submit(method)
            received = server.receive()
            received.respond(answer, blobs, job_id="job-1", status="completed")
            return received, returned.result(20)

        yield call


def test_arrays_go_there_and_back(client: Client, ask: Callable[..., Any]) -> None:
    received, made = ask(
        lambda: client.predict("mlp", {"x": LARGE}, parameters={"k": 3}, outputs=["y"], cache=False, priority=9),
        {**TOLD, "outputs": [{**OUTPUT, "attachment": 0}]}, [LARGE.tobytes()],
    )  # fmt: skip
    check(received)
    assert received.action == "inference.predict"
    assert received.request.data == {
        "model_id": "mlp", "parameters": {"k": 3}, "outputs": ["y"], "cache": False,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 2048], "data": {"attachment": 0}}],
    }  # fmt: skip
    assert (received.blobs, received.request.priority) == ([LARGE.tobytes()], 9)
    assert np.array_equal(made.outputs["y"], LARGE)
    assert made.tensors["y"] == Tensor("float32", (2, 2048), LARGE.tobytes())
    assert (made.model_id, made.model_version, made.predictions) == ("mlp:2", "2", [{"label": "cat"}])
    assert (made.inference_time_ms, made.cached, made.batch_size, made.device) == (0.25, True, 8, "cpu")
    assert made.result.job_id == "job-1"


def test_what_is_not_said_is_not_sent(client: Client, ask: Callable[..., Any]) -> None:
    """So that a session's defaults hold."""
    received, made = ask(lambda: client.predict(inputs={"x": [1.5]}), {**TOLD, "outputs": []})
    check(received)
    assert received.request.data.keys() == {"inputs"}
    assert made.outputs == {}


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "data"),
    [
        (np.arange(3, dtype=">i2"), "int16", [3], b"\0\0\1\0\2\0"),
        (np.arange(6, dtype=np.uint8).reshape(2, 3).T, "uint8", [3, 2], bytes([0, 3, 1, 4, 2, 5])),
        (np.float64(1), "float64", [], b"\0\0\0\0\0\0\xf0\x3f"),
        (np.array([True, False]), "bool", [2], b"\1\0"),
        (np.array(["ab", "é"]), "string", [2], b"\2\0\0\0ab\2\0\0\0\xc3\xa9"),
        ([[1, 2]], "int64", [1, 2], bytes([1, *[0] * 7, 2, *[0] * 7])),
        ([1, 0.5], "float32", [2], b"\0\0\x80\x3f\0\0\0\x3f"),
        ("word", "string", [], b"\4\0\0\0word"),
        (Tensor("bfloat16", (1,), b"\x80\x3f"), "bfloat16", [1], b"\x80\x3f"),
    ],
)
def test_small_tensors_travel_in_the_header(value: Any, dtype: str, shape: list[int], data: bytes) -> None:
    made, blobs = attach_inputs({"inputs": {"x": value}})
    assert made == {"inputs": [{"name": "x", "dtype": dtype, "shape": shape, "data": data}]}
    assert blobs == []
    validate_data("inference.predict", made)


def test_others_are_attachments_behind_the_callers_own() -> None:
    small, large = (np.zeros(INLINE_BYTES_MAX + more, np.uint8) for more in (0, 1))
    made, blobs = attach_inputs({"inputs": {"a": small, "b": large}, "images": [b"\x89PNG"]}, [Blob(b"mine")])
    assert [type(entry["data"]) for entry in made["inputs"]] == [bytes, dict]
    assert (made["inputs"][1]["data"], made["images"]) == ({"attachment": 1}, [{"attachment": 2}])
    assert [blob.content for blob in blobs] == [b"mine", bytes(INLINE_BYTES_MAX + 1), b"\x89PNG"]


def test_what_is_sent_does_not_change_with_the_callers_array() -> None:
    array = LARGE.copy()
    _, blobs = attach_inputs({"inputs": {"x": array}})
    array[:] = 0
    assert blobs[0].content == LARGE.tobytes()


def test_an_artifact_is_named_as_on_the_wire() -> None:
    stored = {"dtype": "int8", "shape": [1], "data": {"artifact_id": "a"}}
    assert attach_inputs({"inputs": {"x": stored}}) == ({"inputs": [{**stored, "name": "x"}]}, [])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.ones(2, complex), "complex128"), (np.array([object()]), "strings only"), ([[1], [2, 3]], "one length"),
        ([1, "a"], "several kinds"), (None, "something beside"), ([2**63], "int64"), ([[1], 2], "one length"),
        (np.array(["2026-01-31"], "datetime64"), "datetime64"),
    ],
)  # fmt: skip
def test_what_is_no_tensor_is_told_by_name(value: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"input 'x' is no tensor: .*{problem}"):
        attach_inputs({"inputs": {"x": value}})


def test_a_tensor_beyond_a_frame_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(PayloadTooLarge, match="64 MiB"):
        client.predict("mlp", {"x": np.zeros(2**26 + 1, np.uint8)})


def test_a_job_is_waited_for_later(client: Client, ask: Callable[..., Any]) -> None:
    data, blobs = attach_inputs({"model_id": "mlp", "inputs": {"x": LARGE}})
    job = []

    def submit() -> Prediction:
        job.append(client.submit("inference.predict", data, attachments=blobs))
        return prediction_of(job[0].result(20))

    received, made = ask(submit, {**TOLD, "outputs": [{**OUTPUT, "attachment": 0}]}, [LARGE.tobytes()])
    check(received)
    assert np.array_equal(made.outputs["y"], LARGE)


def test_a_batch_travels_as_one_attachment(client: Client, ask: Callable[..., Any]) -> None:
    error = {"code": "model_not_found", "message": "no", "details": {"known": []}}
    entries = [{**TOLD, "outputs": [{"name": "y", "dtype": "int64", "shape": [], "data": b"\7" + bytes(7)}]},
               {"error": error}]  # fmt: skip
    requests = [{"inputs": {"x": LARGE}}, {"images": [b"\x89PNG"], "parameters": {"k": 1}}]
    received, made = ask(
        lambda: client.predict_batch("mlp", requests, cache=False),
        {"results": 0, "count": 2, "failed": 1}, [pack(entries)],
    )  # fmt: skip
    check(received)
    assert received.action == "predict.batch"
    assert received.request.data == {"model_id": "mlp", "cache": False, "items": {"attachment": 0}}
    first, second = read_items(received.blobs[0])
    assert not isinstance(first, AtelierError)
    assert not isinstance(second, AtelierError)
    sent = first.inputs[0]
    assert np.array_equal(to_numpy(Tensor(sent.dtype, tuple(sent.shape), sent.data)), LARGE)  # type: ignore[arg-type]
    assert (second.images, second.parameters) == ([b"\x89PNG"], {"k": 1})
    assert made[0].outputs["y"] == 7
    assert isinstance(made[1], ModelNotFound)


def test_what_the_caller_holds_is_not_changed() -> None:
    requests = [{"inputs": {"x": LARGE}, "images": [b"\x89PNG"]}]
    attach_requests({"requests": requests})
    assert requests == [{"inputs": {"x": LARGE}, "images": [b"\x89PNG"]}]


@pytest.mark.parametrize(
    ("answer", "blobs"),
    [
        ({"outputs": [{**OUTPUT, "attachment": 1}]}, [b""]),
        ({"outputs": [{**OUTPUT, "attachment": 0}]}, [b"short"]),
        ({"outputs": [{**OUTPUT}]}, []),
        ({"outputs": [{**OUTPUT, "dtype": "string", "attachment": 0}]}, [b"\xff" * 9]),
        ({"outputs": "y"}, []),
    ],
)
def test_an_answer_without_its_tensor_is_an_error(
    client: Client, ask: Callable[..., Any], answer: dict[str, Any], blobs: list[bytes]
) -> None:
    with pytest.raises(MalformedMessage):
        ask(lambda: client.predict("mlp", {"x": [1]}).outputs, {**TOLD, **answer}, blobs)


@pytest.mark.parametrize(
    ("answer", "attachment"),
    [
        ({"results": 1, "count": 1, "failed": 0}, pack([{}])),
        ({"results": 0, "count": 2, "failed": 0}, pack([{**TOLD, "outputs": []}])),
        ({"results": 0, "count": 1, "failed": 0}, pack([{"outputs": []}])),
        ({"results": 0, "count": 1, "failed": 0}, pack([7])),
        ({"results": 0, "count": 1, "failed": 0}, b"\xc1"),
    ],
)
def test_a_batchs_answer_that_is_none(
    client: Client, ask: Callable[..., Any], answer: dict[str, Any], attachment: bytes
) -> None:
    with pytest.raises(MalformedMessage):
        ask(lambda: client.predict_batch("mlp", [{"inputs": {"x": [1]}}]), answer, [attachment])


def test_a_refusal_is_raised(server: ScriptedServer, client: Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        returned = pool.submit(lambda: client.predict("mlp", {"x": [1]}))
        server.receive().fail("invalid_request", details={"fields": [{"field": "inputs.0", "problem": "no"}]})
        with pytest.raises(InvalidRequest):
            returned.result(20)


async def test_the_same_awaited(server: ScriptedServer) -> None:
    async def ask(call: Any, answer: dict[str, Any], blobs: list[bytes] | None = None) -> tuple[Received, Any]:
        task = asyncio.create_task(call)
        received = await asyncio.to_thread(server.receive)
        received.respond(answer, blobs, job_id="job-1", status="completed")
        return received, await task

    told = {**TOLD, "outputs": [{**OUTPUT, "attachment": 0}]}
    async with AsyncClient(server.endpoint, timeout_s=20) as client:
        for images in ((), [b"\x89PNG"]):
            call = client.predict("mlp", {"x": LARGE}, images=images, parameters={"k": 3}, routing_key="u")
            received, made = await ask(call, told, [LARGE.tobytes()])
            check(received)
            assert received.blobs == [LARGE.tobytes(), *images]
            assert (received.request.data["routing_key"], received.request.data["parameters"]) == ("u", {"k": 3})
            assert np.array_equal(made.outputs["y"], LARGE)
        batch = client.predict_batch("mlp", [{"inputs": {"x": LARGE}}])
        received, many = await ask(batch, {"results": 0, "count": 1, "failed": 0}, [pack([{**TOLD, "outputs": []}])])
        check(received)
        assert len(unpack(received.blobs[0])) == 1
        assert many[0].model_version == "2"


def test_without_numpy_tensors_have_their_bytes(tmp_path: Path) -> None:
    """The base install: lists are sent, and outputs read as `Tensor`s."""
    script = """
import sys
sys.modules["numpy"] = None
from orchestrator.client import Blob, Prediction, Tensor, attach_inputs
from protocol.schemas.predict import PredictResult
data, _ = attach_inputs({"inputs": {"x": [[1.5, 2]], "t": Tensor("uint8", (1,), b"7")}})
assert data["inputs"][0]["data"] == bytes.fromhex("0000c03f00000040")
output = {"name": "y", "dtype": "float32", "shape": [1, 2], "attachment": 0}
told = PredictResult.model_validate({"model_id": "m", "outputs": [output], "inference_time_ms": 1})
made = Prediction(told, [Blob(data["inputs"][0]["data"])])
assert made.tensors["y"].tolist() == [[1.5, 2.0]]
try:
    made.outputs
except ImportError as error:
    assert "pip install numpy" in str(error)
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "told\n", done.stderr
