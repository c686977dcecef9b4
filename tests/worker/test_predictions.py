"""Predictions in a real engine with real models: what chains, batches, faults and pictures make of them."""

import io
import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from instructors import images, prediction
from instructors.models import Model, ModelFolder
from instructors.pipelines.onnx import loading, runner, serving
from protocol.errors import AtelierError, InvalidRequest, ModelInvalid, OutOfMemory, PayloadTooLarge, TimeoutRun
from tests.instructors import onnx_models
from tests.worker.shop import Shop, runners
from worker.engine import engine
from worker.jobs import Job

ACTION = "inference.predict"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns wait for what may come, and nothing does but what the test itself brings."""
    monkeypatch.setattr(engine, "IDLE_S", 0.01)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.close()


def folder(root: Path, name: str, manifest: str = "") -> Path:
    """A new model's; where its file belongs."""
    path = root / name
    path.mkdir()
    (path / "model.toml").write_text(manifest)
    return path / "model.onnx"


def tensor(array: Any, name: str = "x") -> dict[str, Any]:
    array = np.asarray(array)
    return {"name": name, "dtype": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


def asking(model_id: str, array: Any, **more: Any) -> dict[str, Any]:
    return {"model_id": model_id, "inputs": [tensor(array)], "cache": False, **more}


def floats(answer: dict[str, Any], name: str = "y") -> list[float]:
    [data] = [output["data"] for output in answer["outputs"] if output["name"] == name]
    return [value for (value,) in struct.iter_unpack("<f", data)]


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


def ends(shop: Shop, jobs: list[Job]) -> list[dict[str, Any] | AtelierError]:
    found: list[dict[str, Any] | AtelierError] = []
    for job in jobs:
        try:
            found.append(shop.end(job))
        except AtelierError as error:
            found.append(error)
    return found


RENAMED = '[[postprocess]]\nstep = "rename"\nnames = {y = "x"}'


def test_each_model_of_a_chain_is_timed_once(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_models.identity(folder(tmp_path, "first", f'then = "second"\n{RENAMED}'))
    onnx_models.identity(folder(tmp_path, "second"))
    take = serving.Request.take
    monkeypatch.setattr(serving.Request, "take", lambda unit, own, count, size, _: take(unit, own, count, size, 1.0))
    answer = shop.run(ACTION, asking("first", ones(1, 1)))
    assert (answer["model_id"], answer["inference_time_ms"]) == ("second", 2.0)
    spent_us = {figures["model_id"]: figures["total_us"] for figures in shop.place.statistics.news(0)[0]}
    assert spent_us == {"first": 1000, "second": 1000}


def test_the_outputs_asked_for_are_those_of_the_last_model(shop: Shop, tmp_path: Path) -> None:
    path = folder(tmp_path, "first", 'then = "second"')
    made = onnx_models.model(
        [helper.make_node("Neg", ["a"], ["x"])],
        [onnx_models.value("a", "float32", ["batch", 1])],
        [onnx_models.value("x", "float32", ["batch", 1])],
    )
    onnx_models.save(made, path)
    onnx_models.affine(folder(tmp_path, "second"), 2, 0)
    data = {"model_id": "first", "inputs": [tensor(ones(1, 1), "a")], "cache": False, "outputs": ["y"]}
    assert floats(shop.run(ACTION, data)) == [-2.0]


def trimmed(path: Path) -> None:
    """`x` float32 [batch, width] -> `y`: as many of its columns as the largest number says."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["width"], to=onnx_models.TYPES["int64"]),
        helper.make_node("Reshape", ["width", "one"], ["end"]),
        helper.make_node("Slice", ["x", "zero", "end", "one"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "one": np.array([1])}
    ins = [onnx_models.value("x", "float32", ["batch", 3])]
    outs = [onnx_models.value("y", "float32", ["batch", "some"])]
    onnx_models.save(onnx_models.model(nodes, ins, outs, weights), path)


def test_parts_of_a_request_whose_answers_do_not_fit_together_are_told(shop: Shop, tmp_path: Path) -> None:
    trimmed(folder(tmp_path, "trimmed", "[batching]\nmax_batch_size = 2"))
    assert floats(shop.run(ACTION, asking("trimmed", ones(2, 3)))) == [1, 1]
    x = ones(4, 3)
    x[2] = 3
    with pytest.raises(ModelInvalid, match="max_batch_size"):
        shop.run(ACTION, asking("trimmed", x))
    assert floats(shop.run(ACTION, asking("trimmed", ones(2, 3)))) == [1, 1]


@pytest.mark.parametrize("manifest", ["pad = {x = 0}", "pad = {x = 1e30}"])
def test_a_long_request_does_not_blow_up_the_others(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    """Filled up, a batch may have no more bytes than a process takes at a time, nor what its type cannot hold."""
    shape = ("batch", "width")
    onnx_models.identity(folder(tmp_path, "ragged", f"[batching]\n{manifest}"), "int32", shape)
    shop.run(ACTION, asking("ragged", np.ones((1, 1), np.int32)))
    monkeypatch.setattr(serving, "FRAME_BYTES_MAX", 4000)
    inputs = [np.full((1, 1 if number else 900), number, np.int32) for number in range(8)]
    answers = ends(shop, [shop.begin(ACTION, asking("ragged", x)) for x in inputs])
    for x, answer in zip(inputs, answers, strict=True):
        assert isinstance(answer, dict)
        assert answer["outputs"][0]["shape"] == list(x.shape)
    assert answers[0]["batch_size"] == 1  # type: ignore[index]


def test_a_process_that_was_stopped_is_noticed(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "HUNG_GRACE_S", 0.2)
    onnx_models.affine(folder(tmp_path, "double", "[onnx]\nrun_timeout_ms = 200"), 2, 0)
    assert floats(shop.run(ACTION, asking("double", ones(1, 1)))) == [2]
    [process] = runners()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutRun):
        shop.run(ACTION, asking("double", ones(1, 1)), timeout_s=10)
    assert floats(shop.run(ACTION, asking("double", ones(1, 1)))) == [2]


def test_who_shared_a_batch_with_what_ends_the_process_is_answered(shop: Shop, tmp_path: Path) -> None:
    """The one that takes the process with it is found out, and no other fails for it."""
    path = folder(tmp_path, "memory", "[batching]\nmax_batch_size = 8\n[onnx]\nrun_timeout_ms = 300")
    onnx_models.save(batched_slow_node(), path)
    one = np.array([1], np.int64)
    shop.run(ACTION, asking("memory", one), timeout_s=20)
    jobs = [shop.begin(ACTION, asking("memory", np.array([n], np.int64))) for n in (200_000, 1, 2, 3, 4, 5)]
    answers = ends(shop, jobs)
    assert isinstance(answers[0], AtelierError)
    for number, answer in enumerate(answers[1:], start=1):
        assert isinstance(answer, dict), (number, answer)


def batched_slow_node() -> Any:
    """`x` int64 [batch] -> `y` = x; its largest number of boxes is compared in one node that cannot be ended."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["count"], keepdims=0),
        helper.make_node("Range", ["zero", "count", "one"], ["numbers"]),
        helper.make_node("Cast", ["numbers"], ["at"], to=onnx_models.TYPES["float32"]),
        helper.make_node("Add", ["at", "half"], ["end"]),
        helper.make_node("Reshape", ["at", "column"], ["at_"]),
        helper.make_node("Reshape", ["end", "column"], ["end_"]),
        helper.make_node("Concat", ["at_", "at_", "end_", "end_"], ["boxes"], axis=2),
        helper.make_node("Reshape", ["at", "row"], ["scores"]),
        helper.make_node("Reshape", ["count", "single"], ["most"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most"], ["selected"]),
        helper.make_node("Shape", ["selected"], ["found"], start=0, end=1),
        helper.make_node("Sub", ["found", "most"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    weights = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "half": np.float32(0.5),
        "column": np.array([1, -1, 1]),
        "row": np.array([1, 1, -1]),
        "single": np.array([1]),
    }
    ends_ = [onnx_models.value(name, "int64", ["batch"]) for name in ("x", "y")]
    return onnx_models.model(nodes, [ends_[0]], [ends_[1]], weights)


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


SEES = """
[[preprocess]]
step = "resize"
width = 2
height = 2
[[preprocess]]
step = "to_tensor"
output = "x"
"""


def test_all_pictures_of_a_request_have_so_many_pixels_at_most(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "JOB_PIXELS_MAX", 100)
    onnx_models.identity(folder(tmp_path, "sees", SEES), "float32", ("batch", 3, 2, 2))
    small, large = picture(5, 10), picture(5, 11)
    answer = shop.run(ACTION, {"model_id": "sees", "images": [small, small]})
    assert answer["outputs"][0]["shape"] == [2, 3, 2, 2]
    with pytest.raises(PayloadTooLarge, match="100"):
        shop.run(ACTION, {"model_id": "sees", "images": [small, large]})
    shop.place.delivery.start()
    requests = [{"images": [small]}, {"images": [large]}, {"images": [small]}]
    told = shop.run("predict.batch", {"model_id": "sees", "requests": requests})
    assert (told["count"], told["failed"]) == (3, 1)


@pytest.mark.parametrize("shape", [[1, 0, 2**31 - 1, 2**31 - 1, 2**31 - 1], [1, 2**31 - 1, 2**31 - 1, 0]])
def test_shapes_that_no_array_has_are_the_requests_fault(shop: Shop, tmp_path: Path, shape: list[int]) -> None:
    onnx_models.identity(folder(tmp_path, "same"))
    with pytest.raises(InvalidRequest):
        shop.run(ACTION, {"model_id": "same", "inputs": [{**tensor(ones(0)), "shape": shape}]})


def test_an_answer_that_cannot_be_kept_keeps_nobody_waiting(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_models.affine(folder(tmp_path, "double"), 2, 0)
    data = {"model_id": "double", "inputs": [tensor(ones(1, 1))]}

    def no_memory(*_: object) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(prediction.tensor_bytes, "pack", no_memory)
        ends(shop, [shop.begin(ACTION, data), shop.begin(ACTION, data)])
    assert floats(shop.run(ACTION, data)) == [2]


def test_a_chain_waits_for_room_for_its_next_model(shop: Shop, tmp_path: Path) -> None:
    """While another job uses what would have to leave; and does not fail for it."""
    wide = (8, 1024, 1024, 8)
    onnx_models.mlp(folder(tmp_path, "held", "[batching]\nmax_queue_delay_us = 1_500_000"), wide)
    onnx_models.mlp(folder(tmp_path, "first", f'then = "second"\n{RENAMED}'), wide)
    onnx_models.mlp(folder(tmp_path, "second"), wide)
    for name in ("held", "first"):
        shop.run("model.load", {"model_id": name})
    shop.residency._budget = shop.residency.nbytes + 2**20
    held = shop.begin(ACTION, asking("held", ones(1, 8)))
    chain = shop.begin(ACTION, asking("first", ones(1, 8)))
    shop.turn_until(lambda: shop.outcome(held) is not None)
    assert shop.outcome(chain) is None
    assert shop.end(chain)["model_id"] == "second"


def test_a_changed_model_is_taken_up_when_there_is_room_again(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOOK_S", 0.1)
    monkeypatch.setattr(loading, "AGAIN_S", 0.1)
    path = folder(tmp_path, "double", "[batching]\nmax_queue_delay_us = 1_500_000")
    onnx_models.affine(path, 2, 0)
    shop.run("model.load", {"model_id": "double"})
    shop.residency._budget = shop.residency.nbytes + 2**20
    held = shop.begin(ACTION, asking("double", ones(1, 1)))
    onnx_models.affine(path.with_name("new.part"), 3, 0)
    os.replace(path.with_name("new.part"), path)
    told = shop.run("model.reload", {"model_id": "double"})
    assert [entry["error"]["code"] for entry in told["failed"]] == ["out_of_memory"]
    assert floats(shop.end(held)) == [2]

    def answered() -> list[float]:
        return floats(shop.end(shop.begin(ACTION, asking("double", ones(1, 1)), priority=9)))

    shop.turn_until(lambda: answered() == [3])


def test_steps_after_a_model_see_the_numbers_of_bfloat16(shop: Shop, tmp_path: Path) -> None:
    manifest = '[[postprocess]]\nstep = "top_k"\ninput = "y"\nk = 2'
    onnx_models.identity(folder(tmp_path, "bits", manifest), "bfloat16", ("batch", 3))
    bits = np.array([[0x3F80, 0xC000, 0x4000]], np.uint16)  # 1, -2, 2
    data = {"model_id": "bits", "inputs": [{**tensor(bits), "dtype": "bfloat16"}]}
    [told] = shop.run(ACTION, data)["predictions"]
    assert [(entry["index"], entry["score"]) for entry in told["classes"]] == [(2, 2.0), (0, 1.0)]


def test_a_model_whose_process_could_not_be_started_again_is_loaded_anew_under_load(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though at no time nobody asks for it."""
    onnx_models.affine(folder(tmp_path, "double"), 2, 0)
    shop.run("model.load", {"model_id": "double"})
    [process] = runners()

    def no_memory(_: object) -> runner.Runner:
        raise OutOfMemory

    jobs: list[Job] = []

    def keep_asking() -> None:
        asked = {message["job_id"] for message in shop.messages}
        waiting = sum(job.assign.job_id not in asked for job in jobs)
        jobs.extend(shop.begin(ACTION, asking("double", ones(1, 1))) for _ in range(64 - waiting))

    def served() -> bool:
        keep_asking()
        return any(message["success"] for message in shop.messages[1:])

    def failed() -> bool:
        keep_asking()
        return any(not message["success"] for message in shop.messages)

    with monkeypatch.context() as patch:
        patch.setattr(loading.Runner, "start", no_memory)
        process.kill()
        shop.turn_until(failed)
    shop.messages.clear()
    jobs.clear()
    shop.turn_until(served)


def test_a_model_that_changes_while_it_is_looked_at_is_served_as_it_is_then(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are replaced between their reading and the note of how they were."""
    monkeypatch.setattr(loading, "LOOK_S", 0.1)
    path = folder(tmp_path, "double")
    onnx_models.affine(path, 2, 0)
    find = ModelFolder.onnx

    def found_then_replaced(models: ModelFolder, model_id: str | None) -> Model:
        monkeypatch.setattr(ModelFolder, "onnx", find)
        model = find(models, model_id)
        onnx_models.affine(path.with_name("new.part"), 3, 0)
        os.replace(path.with_name("new.part"), path)
        return model

    monkeypatch.setattr(ModelFolder, "onnx", found_then_replaced)
    assert floats(shop.run(ACTION, asking("double", ones(1, 1)))) == [3]
    told = shop.run("model.load", {"model_id": "double"})
    assert told["content_hash"] == shop.place.models.onnx("double").content_hash


def test_others_are_answered_while_a_models_process_is_started_again(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_models.affine(folder(tmp_path, "double"), 2, 0)
    shop.run("model.load", {"model_id": "double"})
    [process] = runners()
    onnx_models.affine(folder(tmp_path, "triple"), 3, 0)
    shop.run("model.load", {"model_id": "triple"})
    may_start, start = threading.Event(), loading.Runner.start

    def late(spec: Any) -> runner.Runner:
        assert may_start.wait(30)
        return start(spec)

    monkeypatch.setattr(loading.Runner, "start", late)
    process.kill()
    waiting = shop.begin(ACTION, asking("double", ones(1, 1)))
    for _ in range(20):
        assert floats(shop.run(ACTION, asking("triple", ones(1, 1)))) == [3]
    assert not any(message["job_id"] == waiting.assign.job_id for message in shop.messages)
    may_start.set()
    assert floats(shop.end(waiting)) == [2]
