"""Predictions on a real worker with real ONNX models: whose answer is whose, batches, the cache, faults."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from numpy.typing import NDArray

from orchestrator.client import Client, Prediction, attach_inputs, prediction_of
from protocol.errors import AtelierError, InvalidRequest, ModelInvalid, ModelNotFound
from protocol.tensors import Tensor
from tests.e2e.house import House, Worker, eventually
from tests.instructors import onnx_models

Array = NDArray[np.float32]
DELAY_S = 0.3
CHAIN = 'then = "{}"\n[[postprocess]]\nstep = "rename"\nnames = {{y = "x"}}'


def add(models: Path, name: str, manifest: str = "") -> Path:
    """A model's folder, with its manifest; where its file belongs."""
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(manifest)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def models(house: House) -> Path:
    models = house.folder / "models"
    onnx_models.mlp(add(models, "mlp/1", "[batching]\nmax_queue_delay_us = 20_000\n[cache]\nenabled = false"))
    onnx_models.affine(add(models, "double"), 2, 0)
    onnx_models.affine(add(models, "double_then_add_one", CHAIN.format("plus_one")), 2, 0)
    onnx_models.affine(add(models, "plus_one"), 1, 1)
    onnx_models.affine(add(models, "endless", CHAIN.format("endless")), 1, 1)
    onnx_models.affine(add(models, "ragged", "[batching]\nmax_queue_delay_us = 200_000\npad = {x = 0}"), 3, 0)
    onnx_models.affine(add(models, "patient", f"[batching]\nmax_queue_delay_us = {int(DELAY_S * 1e6)}"), 1, 0)
    preferred = "[batching]\nmax_queue_delay_us = 5_000_000\npreferred_batch_sizes = [4]\n[cache]\nenabled = false"
    onnx_models.affine(add(models, "preferring", preferred), 1, 0)
    onnx_models.upper_case(add(models, "shout"))
    onnx_models.loop(add(models, "slow", "[batching]\nmax_batch_size = 1\n[cache]\nenabled = false"))
    onnx_models.two_inputs(add(models, "pair"))
    onnx_models.identity(add(models, "bits"), "bfloat16")
    add(models, "broken").write_bytes(b"not an ONNX file at all")
    (models / "empty/model.onnx").parent.mkdir()
    (models / "empty/model.onnx").write_bytes(b"")
    return models


@pytest.fixture(scope="module")
def worker(house: House, models: Path) -> Worker:
    worker = house.start_worker("onnx", "--models", str(models))
    house.wait_for_workers("onnx")
    return worker


@pytest.fixture
def server(worker: Worker, client: Client) -> Client:
    return client


@pytest.fixture(scope="module")
def mlp(models: Path) -> Iterator[onnxruntime.InferenceSession]:
    return onnxruntime.InferenceSession(models / "mlp/1/model.onnx", providers=["CPUExecutionProvider"])


def x_of(*values: float) -> dict[str, Array]:
    return {"x": np.array([values], np.float32)}


def test_every_answer_is_the_askers_own(server: Client, mlp: onnxruntime.InferenceSession) -> None:
    """64 in flight, each request's input its own, of one to four items; and batches fill up under load."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((1 + number % 4, 128)).astype(np.float32) for number in range(640)]

    def ask(x: Array) -> Prediction:
        return server.predict("mlp", {"x": x})

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, inputs))
    for x, answer in zip(inputs, answers, strict=True):
        [expected] = mlp.run(None, {"x": x})
        np.testing.assert_allclose(answer.outputs["y"], expected, atol=1e-5)
        assert (answer.model_id, answer.model_version, answer.cached) == ("mlp:1", "1", False)
        assert 1 <= answer.batch_size <= 32
    items = sum(len(x) for x in inputs)
    batches = sum(len(x) / answer.batch_size for x, answer in zip(inputs, answers, strict=True))
    assert items / batches >= 8  # the mean batch


def test_a_request_larger_than_a_batch_is_answered_whole(server: Client, mlp: onnxruntime.InferenceSession) -> None:
    x = np.random.default_rng(1).standard_normal((150, 128)).astype(np.float32)
    answer = server.predict("mlp", {"x": x})
    np.testing.assert_allclose(answer.outputs["y"], mlp.run(None, {"x": x})[0], atol=1e-5)
    assert answer.batch_size == 32


def test_the_delay_for_company_is_kept_and_no_longer(server: Client) -> None:
    server.predict("patient", x_of(0), cache=False)  # loads it
    begun = time.monotonic()
    answer = server.predict("patient", x_of(1), cache=False)
    alone_s = time.monotonic() - begun
    assert answer.batch_size == 1
    assert DELAY_S <= alone_s < 10 * DELAY_S
    begun = time.monotonic()
    server.predict("patient", x_of(2), cache=False, priority=9)  # what is urgent does not wait for company
    urgent_s = time.monotonic() - begun
    assert urgent_s < alone_s


def test_requests_that_wait_make_one_batch_of_a_preferred_size(server: Client) -> None:
    server.predict("preferring", x_of(0), priority=9)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: server.predict("preferring", x_of(number)), range(4)))
    assert [answer.batch_size for answer in answers] == [4, 4, 4, 4]  # long before the delay is over
    assert [float(answer.outputs["y"][0, 0]) for answer in answers] == [0, 1, 2, 3]


def test_ragged_requests_share_a_batch_filled_up(server: Client) -> None:
    inputs = [np.arange(1, 2 + length, dtype=np.float32).reshape(1, -1) for length in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda x: server.predict("ragged", {"x": x}), inputs))
    for x, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], 3 * x)
    assert max(answer.batch_size for answer in answers) > 1


def test_other_widths_do_not_share_a_batch(server: Client) -> None:
    inputs = [np.full((1, 1 + number % 3), number, np.float32) for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda x: server.predict("double", {"x": x}), inputs))
    for x, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], 2 * x)


def test_equal_requests_are_computed_once(server: Client) -> None:
    x = {"x": np.array([[123.0, 456.0]], np.float32)}
    data, blobs = attach_inputs({"model_id": "double", "inputs": x})
    jobs = [server.submit("inference.predict", data, attachments=blobs) for _ in range(100)]
    answers = [prediction_of(job.result()) for job in jobs]
    for answer in answers:
        np.testing.assert_array_equal(answer.outputs["y"], [[246.0, 912.0]])
    assert sum(not answer.cached for answer in answers) == 1
    assert server.predict("double", x).cached
    assert not server.predict("double", x, cache=False).cached


def test_strings_bfloat16_and_several_tensors(server: Client) -> None:
    words = server.predict("shout", {"x": ["so", "quiet"]})
    assert list(words.outputs["y"]) == ["SO", "QUIET"]
    a, b = np.array([[1.5, 2, 3]], np.float32), np.array([[2, 3, 4]], np.int64)
    pair = server.predict("pair", {"a": a, "b": b})
    np.testing.assert_array_equal(pair.outputs["sum"], a + b)
    np.testing.assert_array_equal(pair.outputs["product"], a * b)
    only = server.predict("pair", {"a": a, "b": b}, outputs=["sum"])
    assert list(only.outputs) == ["sum"]
    bits = server.predict("bits", {"x": Tensor("bfloat16", (1, 2), b"\x80\x3f\x00\x40")})
    assert bits.tensors["y"].dtype == "bfloat16"
    assert bits.tensors["y"].tolist() == [[1.0, 2.0]]


def test_a_chain_of_models(server: Client) -> None:
    answer = server.predict("double_then_add_one", x_of(5))
    np.testing.assert_array_equal(answer.outputs["y"], [[11.0]])
    assert answer.model_id == "plus_one"
    with pytest.raises(InvalidRequest, match="chain"):
        server.predict("endless", x_of(0))


def test_a_fallback_answers_where_a_model_cannot(server: Client) -> None:
    answer = server.predict("broken", x_of(5), fallbacks=["empty", "double"])
    assert answer.model_id == "double"
    np.testing.assert_array_equal(answer.outputs["y"], [[10.0]])
    with pytest.raises(InvalidRequest):  # which no other model would help
        server.predict("double", {"wrong": np.zeros((1, 1), np.float32)}, fallbacks=["plus_one"])


def test_a_batch_whose_entries_fail_for_themselves(server: Client) -> None:
    requests = [{"inputs": x_of(number)} for number in range(20)]
    requests[7] = {"inputs": {"y": np.zeros((1, 1), np.float32)}}
    answers = server.predict_batch("double", requests)
    assert isinstance(answers[7], InvalidRequest)
    for number, answer in enumerate(answers):
        if number != 7:
            assert isinstance(answer, Prediction)
            np.testing.assert_array_equal(answer.outputs["y"], [[2.0 * number]])
    [wrong] = server.predict_batch("double", [{"inputs": {"z": np.zeros((1, 1), np.float32)}}])
    assert isinstance(wrong, InvalidRequest)


@pytest.mark.parametrize(
    ("model_id", "inputs", "error", "said"),
    [
        ("double", {"wrong": np.zeros((1, 2), np.float32)}, InvalidRequest, "'x'"),
        ("double", {"x": np.zeros((1, 2), np.float64)}, InvalidRequest, "float32"),
        ("double", {"x": np.zeros((1, 2, 2), np.float32)}, InvalidRequest, "float32"),
        ("mlp", {"x": np.zeros((1, 127), np.float32)}, InvalidRequest, "128"),
        ("pair", {"a": np.zeros((1, 3), np.float32), "b": np.zeros((2, 3), np.int64)}, InvalidRequest, "axis"),
        ("pair", {"a": np.zeros((1, 3), np.float32)}, InvalidRequest, "missing"),
        ("broken", {"x": np.zeros((1, 1), np.float32)}, ModelInvalid, "ONNX|bytes|empty"),
        ("empty", {"x": np.zeros((1, 1), np.float32)}, ModelInvalid, "ONNX|bytes|empty"),
        ("nowhere", {"x": np.zeros((1, 1), np.float32)}, ModelNotFound, "model"),
        ("mlp:2", {"x": np.zeros((1, 128), np.float32)}, ModelNotFound, "model"),
    ],
)
def test_bad_requests_are_told_and_harm_nobody(
    server: Client, worker: Worker, model_id: str, inputs: dict[str, Array], error: type[AtelierError], said: str
) -> None:
    pid = worker.child.pid
    with pytest.raises(error, match=said) as caught:
        server.predict(model_id, inputs)
    assert "/" not in caught.value.message
    np.testing.assert_array_equal(server.predict("double", x_of(4)).outputs["y"], [[8.0]])
    assert worker.child.pid == pid


def test_unknown_parameters_and_outputs_are_refused(server: Client) -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.k"):
        server.predict("double", x_of(1), parameters={"k": 3})
    with pytest.raises(InvalidRequest, match="output"):
        server.predict("double", x_of(1), outputs=["z"])


def test_nan_passes_as_it_is(server: Client) -> None:
    [[value]] = server.predict("double", x_of(float("nan"))).outputs["y"]
    assert np.isnan(value)


def test_killing_a_models_process_harms_no_request(server: Client, worker: Worker) -> None:
    server.predict("slow", {"x": np.array([1], np.int64)})
    before, pid = {process.pid for process in worker.runners()}, worker.child.pid
    slow = {"x": np.array([600_000], np.int64)}
    data, blobs = attach_inputs({"model_id": "slow", "inputs": slow})
    jobs = [server.submit("inference.predict", data, attachments=blobs) for _ in range(3)]

    found: list[psutil.Process] = []

    def computing() -> bool:
        found.extend(process for process in worker.runners() if process.cpu_percent(0.05) > 20)
        return bool(found)

    eventually(computing, 10)
    busy = found[0]
    busy.kill()
    for job in jobs:
        [answer] = prediction_of(job.result()).outputs["y"]
        assert answer == 600_000
    assert busy.pid in before
    assert busy.pid not in {process.pid for process in worker.runners()}
    assert worker.child.pid == pid


def test_a_running_prediction_can_be_cancelled(server: Client) -> None:
    data, blobs = attach_inputs({"model_id": "slow", "inputs": {"x": np.array([600_000], np.int64)}})
    job = server.submit("inference.predict", data, attachments=blobs)
    time.sleep(0.2)
    job.cancel()
    with pytest.raises(AtelierError) as caught:
        job.result()
    assert caught.value.code.value == "cancelled"
    assert server.predict("double", x_of(1)).outputs["y"] == 2
