"""`model.load`, `model.unload`, `model.components` and `model.reload`, with real models in a real engine."""

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from protocol.errors import Cancelled, InvalidRequest, ModelInvalid, ModelNotFound, OutOfMemory
from protocol.schemas import ACTIONS
from tests.instructors import onnx_models, tiny
from tests.worker.shop import Shop, runners
from worker.engine import engine

ROOT = Path(__file__).parents[2]
ACTION = "inference.predict"
ONE = {"name": "x", "dtype": "float32", "shape": [1, 1], "data": b"\0\0\x80\x3f"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns wait for what may come, and nothing does but what the test itself brings."""
    monkeypatch.setattr(engine, "IDLE_S", 0.01)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "double", 2)
    put(tmp_path, "triple", 3)
    return tmp_path


@pytest.fixture
def shop(root: Path) -> Iterator[Shop]:
    shop = Shop(root)
    yield shop
    shop.close()


def put(root: Path, name: str, factor: float) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    onnx_models.affine(folder / "new.part", factor, 0)
    os.replace(folder / "new.part", folder / "model.onnx")


def predict(shop: Shop, model_id: str = "double") -> float:
    answer = shop.run(ACTION, {"model_id": model_id, "inputs": [ONE], "cache": False})
    [output] = answer["outputs"]
    [value] = struct.unpack("<f", output["data"])
    return float(value)


def checked(action: str, answer: dict[str, Any]) -> dict[str, Any]:
    """As the action's schema knows it: what is not in it is not told."""
    assert answer.keys() <= ACTIONS[action].result.model_fields.keys()
    return ACTIONS[action].result.model_validate(answer).model_dump()


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != "zombie" for process in processes)


def test_a_model_is_loaded_once_and_let_go(shop: Shop) -> None:
    first = checked("model.load", shop.run("model.load", {"model_id": "double"}))
    assert (first["model_id"], first["was_loaded"], first["kept"], first["device"]) == ("double", False, False, "cpu")
    assert first["load_ms"] > 0
    assert first["nbytes"] > 0
    assert len(first["content_hash"]) == 64
    assert (len(runners()), shop.residency.names) == (1, ["double"])
    again = shop.run("model.load", {"model_id": "double"})
    assert (again["was_loaded"], again["load_ms"]) == (True, 0)
    processes = runners()
    assert len(processes) == 1
    told = checked("model.unload", shop.run("model.unload", {"model_id": "double"}))
    assert told == {"model_id": "double", "was_loaded": True, "in_use": False}
    assert shop.residency.names == []
    assert gone(processes)
    assert shop.run("model.unload", {"model_id": "double"})["was_loaded"] is False
    with pytest.raises(ModelNotFound):
        shop.run("model.unload", {"model_id": "nobody"})


def test_a_hundred_first_requests_start_one_process(shop: Shop) -> None:
    jobs = [shop.begin(ACTION, {"model_id": "double", "inputs": [ONE], "cache": False}) for _ in range(100)]
    load = shop.begin("model.load", {"model_id": "double"})
    answers = [shop.end(job) for job in jobs]
    assert {answer["model_id"] for answer in answers} == {"double"}
    assert shop.end(load)["was_loaded"] is False
    assert len(runners()) == 1
    [figures], _ = shop.place.statistics.news(0)
    assert figures["loads"] == 1


def test_others_are_served_while_a_model_is_loaded(shop: Shop) -> None:
    assert predict(shop, "triple") == 3
    load = shop.begin("model.load", {"model_id": "double"})
    shop.turn_until(lambda: shop.engine._running != [])
    served = 0
    while shop.outcome(load) is None:
        assert predict(shop, "triple") == 3
        served += 1
    assert served > 5
    result = shop.outcome(load)
    assert result is not None
    assert result["load_ms"] > 0
    assert result["running_ms"] <= result["load_ms"]


def test_what_is_kept_is_not_evicted_until_it_is_let_go(root: Path) -> None:
    sizes = [(root / name / "model.onnx").stat().st_size for name in ("double", "triple")]
    shop = Shop(root)
    try:
        taken = shop.run("model.load", {"model_id": "double", "keep": True})
        assert taken["kept"]
        shop.residency._budget = taken["nbytes"] + max(sizes)
        with pytest.raises(OutOfMemory):
            shop.run("model.load", {"model_id": "triple"})
        assert (shop.residency.names, shop.residency.kept) == (["double"], {"double"})
        shop.run("model.unload", {"model_id": "double"})
        assert (shop.residency.names, shop.residency.kept) == ([], frozenset())
        shop.residency._budget *= 2  # one process takes a little more than another
        shop.run("model.load", {"model_id": "triple"})
        assert shop.residency.names == ["triple"]
    finally:
        shop.close()


def test_a_model_in_use_leaves_with_the_last_job(shop: Shop, root: Path) -> None:
    onnx_models.loop(root / "slow/model.onnx")
    (root / "slow/model.toml").write_text("[batching]\nmax_batch_size = 1\n[cache]\nenabled = false")
    shop.run("model.load", {"model_id": "slow"})
    count = {"name": "x", "dtype": "int64", "shape": [1], "data": (300_000).to_bytes(8, "little")}
    job = shop.begin(ACTION, {"model_id": "slow", "inputs": [count]})
    shop.turn_until(lambda: shop.engine._running != [])
    told = shop.run("model.unload", {"model_id": "slow"})
    assert told == {"model_id": "slow", "was_loaded": True, "in_use": True}
    processes = runners()
    shop.end(job)
    assert shop.residency.names == []
    assert gone(processes)


def test_what_cannot_be_loaded_is_told(shop: Shop, root: Path) -> None:
    (root / "broken").mkdir()
    (root / "broken/model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelInvalid):
        shop.run("model.load", {"model_id": "broken"})
    with pytest.raises(ModelNotFound):
        shop.run("model.load", {"model_id": "absent"})
    with pytest.raises(InvalidRequest):
        shop.run("model.load", {"model_id": "double", "kep": True})
    assert (runners(), shop.place.loader._loading if shop.place.loader else {}) == ([], {})


def test_an_onnx_model_tells_what_it_is_made_of(shop: Shop, root: Path) -> None:
    manifest = '[batching]\nmax_batch_size = 8\n[[postprocess]]\nstep = "rename"\nnames = {y = "z"}'
    (root / "double/model.toml").write_text(manifest)
    from_files = checked("model.components", shop.run("model.components", {"model_id": "double"}))
    assert (from_files["loaded"], from_files["graph"]["providers"]) == (False, None)
    shop.run("model.load", {"model_id": "double"})
    told = checked("model.components", shop.run("model.components", {"model_id": "double"}))
    assert (told["family"], told["loaded"], told["device"]) == ("onnx", True, "cpu")
    graph = told["graph"]
    [x] = graph["inputs"]
    assert (x["name"], x["dtype"], x["shape"]) == ("x", "float32", ["batch", "width"])
    assert [y["name"] for y in graph["outputs"]] == ["y"]
    assert (graph["providers"], graph["fell_back"], graph["opset"]) == (["CPUExecutionProvider"], False, 21)
    assert (graph["batched"], graph["max_batch_size"], graph["elements"]) == (True, 8, 2)
    assert (graph["preprocess"], graph["postprocess"]) == ([], ["rename"])
    same = {name: from_files["graph"][name] for name in ("inputs", "outputs", "opset", "elements", "batched")}
    assert same == {name: graph[name] for name in same}


def test_reload_takes_up_what_changed_and_keeps_what_works(shop: Shop, root: Path) -> None:
    for name in ("double", "triple"):
        shop.run("model.load", {"model_id": name, "keep": name == "double"})
    before = runners()
    put(root, "double", 5)
    answer = checked("model.reload", shop.run("model.reload"))
    assert answer == {"reloaded": ["double"], "unchanged": ["triple"], "failed": []}
    assert (predict(shop), predict(shop, "triple")) == (5, 3)
    assert shop.residency.kept == {"double"}
    assert len(runners()) == 2
    assert len([process for process in before if gone([process])]) == 1
    (root / "double/model.onnx").write_bytes(b"rubbish")
    answer = shop.run("model.reload", {"model_id": "double"})
    [failed] = answer["failed"]
    assert (answer["reloaded"], failed["model_id"], failed["error"]["code"]) == ([], "double", "model_invalid")
    assert (predict(shop), shop.residency.kept) == (5, {"double"})
    shop.run("model.unload", {"model_id": "triple"})
    put(root, "triple", 7)
    assert shop.run("model.reload", {"model_id": "triple"}) == {"reloaded": [], "unchanged": ["triple"], "failed": []}
    assert predict(shop, "triple") == 7


def test_a_pipeline_is_loaded_reloaded_and_let_go(tmp_path: Path) -> None:
    tiny.build(tmp_path / "tiny")
    shutil.copytree(tmp_path / "tiny", tmp_path / "twin")
    shop = Shop(tmp_path)
    from_files = checked("model.components", shop.run("model.components", {"model_id": "tiny"}))
    assert {part["where"] for part in from_files["components"]} == {"files"}
    loaded = shop.run("model.load", {"model_id": "tiny", "keep": True}, 60)
    assert (loaded["was_loaded"], loaded["kept"]) == (False, True)
    assert shop.run("model.load", {"model_id": "twin"}, 60)["was_loaded"] is False
    told = checked("model.components", shop.run("model.components", {"model_id": "tiny"}))
    parts = {part["name"]: part for part in told["components"]}
    unet = parts["unet"]
    assert (unet["class_name"], unet["where"], unet["dtype"]) == ("UNet2DConditionModel", "cpu", "float32")
    assert (unet["shared_with"], unet["nbytes"]) == (["twin"], 4 * unet["elements"])
    assert (parts["scheduler"]["nbytes"], parts["scheduler"]["where"]) == (0, "cpu")
    assert {name: part["elements"] for name, part in parts.items()} == {
        part["name"]: part["elements"] for part in from_files["components"]
    }
    assert told["nbytes"] >= sum(part["nbytes"] for part in parts.values())
    before = shop.context.keys_of("tiny")
    config = tmp_path / "tiny/scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("}", ' , "note": "changed"}'))
    answer = shop.run("model.reload", timeout_s=60)
    assert answer == {"reloaded": ["tiny"], "unchanged": ["twin"], "failed": []}
    assert len(shop.context.keys_of("tiny")) == 1  # the old one has left
    assert (shop.context.keys_of("tiny") == before, shop.residency.kept) == (False, {"tiny"})
    assert shop.run("model.unload", {"model_id": "tiny"})["was_loaded"]
    assert shop.residency.names == ["twin"]


def test_an_onnx_model_is_measured_while_others_are_served(shop: Shop) -> None:
    shop.run("model.load", {"model_id": "triple"})
    job = shop.begin("model.benchmark", {"model_id": "double", "batch_sizes": [1, 4], "runs": 9, "axes": {"width": 8}})
    shop.turn_until(lambda: shop.engine._running != [])
    served = 0
    while shop.outcome(job) is None:
        assert predict(shop, "triple") == 3
        served += 1
    assert served > 5
    told = checked("model.benchmark", shop.end(job))
    assert (told["model_id"], told["device_kind"], told["providers"]) == ("double", "cpu", ["CPUExecutionProvider"])
    assert (told["settings"], any(name.startswith("onnxruntime") for name in told["versions"])) == (
        {"axes": {"width": 8}},
        True,
    )
    assert [(batch["batch_size"], batch["runs"]) for batch in told["batches"]] == [(1, 9), (4, 9)]
    for batch in told["batches"]:
        assert 0 < batch["p50_ms"] <= batch["p95_ms"] < 1000
        assert batch["per_s"] * batch["p50_ms"] / 1000 <= 2 * batch["batch_size"]
        assert batch["peak_nbytes"] > 2**20
    assert told["warm_load_ms"] > 0
    assert told["cold_load_ms"] > 0
    progress = [message["data"]["progress"] for message in shop.messages if message["kind"] == "event"]
    assert progress == [0.0, 0.5]
    assert shop.residency.names == ["triple"]
    assert len(runners()) == 1


def test_what_cannot_be_measured_is_told_and_a_benchmark_can_be_left(shop: Shop) -> None:
    wrong: list[dict[str, Any]] = [
        {"steps": 3},
        {"axes": {"depth": 2}},
        {"batch_sizes": [65_536], "axes": {"width": 65_536}},
        {"batch_sizes": []},
        {"runs": 0},
    ]
    for fields in wrong:
        with pytest.raises(InvalidRequest):
            shop.run("model.benchmark", {"model_id": "double", **fields})
    job = shop.begin("model.benchmark", {"model_id": "double", "runs": 1000, "axes": {"width": 60_000}})
    shop.turn_until(lambda: any(message["kind"] == "event" for message in shop.messages))
    shop.engine.cancel(job)
    with pytest.raises(Cancelled):
        shop.end(job)
    shop.turn_until(lambda: runners() == [])  # its process ends, too


def test_a_pipeline_is_measured_in_steps(tmp_path: Path) -> None:
    tiny.build(tmp_path / "tiny")
    shop = Shop(tmp_path)
    size = {"width": 32, "height": 32, "steps": 2}
    job = shop.begin("model.benchmark", {"model_id": "tiny", "batch_sizes": [1, 2], "runs": 2, **size})
    told = checked("model.benchmark", shop.end(job, 60))
    assert told["settings"] == {**size, "dtype": "float32"}
    assert [(batch["batch_size"], batch["runs"]) for batch in told["batches"]] == [(1, 2), (2, 2)]
    assert all(batch["p50_ms"] > 0 and batch["peak_nbytes"] > 2**20 for batch in told["batches"])
    assert told["nbytes"] == shop.context.at_hand(shop.context.keys_of("tiny")[0]).nbytes
    assert min(told["cold_load_ms"], told["warm_load_ms"]) > 0
    assert "diffusers" in told["versions"]
    demo = Shop(ROOT / "models")
    told = demo.run("model.benchmark", {"model_id": "demo", "batch_sizes": [2], "runs": 1, "warmup": 0, "steps": 1}, 60)
    assert told["settings"] == {"width": 64, "height": 64, "steps": 1, "dtype": "float32"}
    assert told["batches"][0]["per_s"] > 0
    job = shop.begin("model.benchmark", {"model_id": "tiny", **size})
    again = shop.end(job, 60)
    assert again["cold_load_ms"] is None  # the test itself holds it
    with pytest.raises(InvalidRequest):
        shop.run("model.benchmark", {"model_id": "tiny", "width": 33})
