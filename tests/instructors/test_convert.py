"""`model.convert`: other forms of a model, compared before they are put in place, and nothing left where it fails."""

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from instructors.convert import Convert
from instructors.convert_source import RECORD
from instructors.pipelines.convert import graphs
from instructors.pipelines.convert.__main__ import convert
from instructors.pipelines.convert.order import Order
from instructors.pipelines.onnx.runner import Runner, RunnerSpec
from instructors.sources.staging import FOLDER
from protocol.enums import EventName
from protocol.errors import (
    AtelierError,
    Forbidden,
    InvalidRequest,
    ModelInvalid,
    ModelNotFound,
    OutOfMemory,
    RequestConflict,
    Unavailable,
)  # fmt: skip
from tests.instructors import ldm_layout, tiny
from tests.instructors.converting import ConvertDesk, classifier

pytestmark = pytest.mark.timeout(180)  # a process that imports all that converts, on a machine that is busy


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("sources")
    return root / "topics", classifier(root / "topics")


@pytest.fixture
def desk(tmp_path: Path, source: tuple[Path, Any]) -> ConvertDesk:
    """With the classifier "topics" in its folder."""
    copy(source[0], tmp_path / "topics")
    return ConvertDesk(tmp_path)


def copy(folder: Path, target: Path) -> None:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def ask(file: Path, rows: int, tokens: int) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """The graph's logits for some texts, and the texts."""
    ids = torch.randint(0, 100, (rows, tokens), generator=torch.Generator().manual_seed(rows))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())})
    return logits, ids


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, source: tuple[Path, Any]) -> tuple[ConvertDesk, dict[str, Any]]:
    """By a process of its own, as a worker has it."""
    root = tmp_path_factory.mktemp("converted")
    copy(source[0], root / "topics")
    desk = ConvertDesk(root)
    return desk, desk.convert(source="topics", name="topics-onnx", within_s=120)


def order_of(desk: ConvertDesk, **data: Any) -> Order:
    """For what the process does, without one."""
    unit = desk.begin(**{"source": "topics", **data}).units[0]
    assert desk.models.root is not None
    return Order(unit._source, desk.models.root / FOLDER / "here", unit._target)


def quiet(_progress: float, _doing: str) -> None:
    """Nobody watches."""


def process_of(task: Convert) -> Any:
    process = task.units[0]._process
    assert process is not None
    return process._process


def test_a_text_classifier_becomes_a_model_that_predicts(
    converted: tuple[ConvertDesk, dict[str, Any]], source: tuple[Path, Any]
) -> None:
    desk, answer = converted
    assert answer["model_id"] == "topics-onnx:1"
    assert {file["name"] for file in answer["files"]} == {"config.json", "model.onnx", RECORD}
    assert answer["nbytes"] == sum(file["nbytes"] for file in answer["files"])
    assert answer["seconds"] > 0
    difference = answer["components"]["model"]
    assert 0 < difference["max_rel_error"] < difference["tolerance"]
    model = desk.models.find("topics-onnx")
    assert model.actions == ["inference.predict", "predict.batch"]
    for rows, tokens in ((1, 5), (7, 31)):  # sizes that it was not traced with
        logits, ids = ask(model.path / "model.onnx", rows, tokens)
        with torch.inference_mode():
            wanted = source[1](input_ids=ids).logits.numpy()
        assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert [data["doing"] for data, _ in desk.named(EventName.PROGRESS)] == ["model", "model"]
    assert desk.staged == []


def test_the_same_again_is_there_already(converted: tuple[ConvertDesk, dict[str, Any]]) -> None:
    """As after a worker that was lost between putting it in place and telling so."""
    desk, first = converted
    again = desk.convert(source="topics", name="topics-onnx", within_s=0)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    with pytest.raises(RequestConflict, match="another"):
        desk.begin(source="topics", name="topics-onnx", version="1", precision="float16")
    assert desk.begin(source="topics", name="topics-onnx", precision="float16")._target.name == "2"


def test_a_conversion_that_is_left_ends_and_leaves_nothing(desk: ConvertDesk) -> None:
    task = desk.begin(source="topics", name="left")
    task.step()
    process = process_of(task)
    assert task.units[0].away
    task.close()  # cancelled
    process.wait(10)
    assert process.returncode == -signal.SIGKILL
    assert desk.staged == []
    assert not (desk.models.root / "left").exists()  # type: ignore[operator]


def test_a_process_that_is_killed_is_told_of(desk: ConvertDesk) -> None:
    task = desk.begin(source="topics", name="killed")
    task.step()
    os.kill(process_of(task).pid, signal.SIGKILL)
    with pytest.raises(OutOfMemory, match="memory"):
        desk.finish(task, 20)
    assert desk.staged == []
    assert not (desk.models.root / "killed").exists()  # type: ignore[operator]


def test_a_full_disk_leaves_nothing(desk: ConvertDesk) -> None:
    """The system's limit on the size of files stands for a disk that is full: both fail the write."""
    task = desk.begin(source="topics", name="full")
    task.step()
    resource.prlimit(process_of(task).pid, resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(Unavailable, match="no room") as told:
        desk.finish(task, 120)
    assert str(desk.models.root) not in str(told.value.to_wire())
    assert desk.staged == []
    assert not (desk.models.root / "full").exists()  # type: ignore[operator]


def test_who_is_second_is_told(desk: ConvertDesk, tmp_path: Path) -> None:
    """Another put a version there while this one was made."""
    other = tmp_path / "taken" / "1"
    order = order_of(desk, name="taken")

    def meanwhile(_progress: float, _doing: str) -> None:
        other.mkdir(parents=True, exist_ok=True)
        (other / "model.onnx").write_bytes(b"other")

    with pytest.raises(RequestConflict):
        convert(order, meanwhile)
    assert [file.name for file in other.iterdir()] == ["model.onnx"]
    assert (other / "model.onnx").read_bytes() == b"other"


def test_one_that_differs_too_much_is_refused(desk: ConvertDesk, tmp_path: Path) -> None:
    """A weight that halves do not hold becomes infinite in them."""
    file = tmp_path / "topics/model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"][0] = 1e6
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelInvalid, match="no numbers"):
        convert(order_of(desk, name="overflowed", precision="float16"), quiet)
    assert not (tmp_path / "overflowed").exists()


def test_int8_is_further_from_the_source_than_float32(desk: ConvertDesk, source: tuple[Path, Any]) -> None:
    difference = convert(order_of(desk, name="small", precision="int8"), quiet)["model"]
    assert 1e-4 < difference["max_rel_error"] < difference["tolerance"]
    graph = onnx.load(desk.models.find("small").path / "model.onnx")
    assert "MatMulInteger" in {node.op_type for node in graph.graph.node}


def test_one_beyond_its_tolerance_is_not_put_in_place(
    desk: ConvertDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(graphs.TOLERANCES, "float32", 1e-9)
    with pytest.raises(ModelInvalid, match="differs by"):
        convert(order_of(desk, name="strict"), quiet)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"source": "nowhere"}, ModelNotFound, "no model"),
        ({"source": "../outside"}, ModelNotFound, "no model"),
        ({"source": "loras"}, ModelNotFound, "no model"),
        ({"source": "empty"}, ModelNotFound, "neither|no pipeline"),
        ({"source": "sd3"}, InvalidRequest, "stable_diffusion3"),
        ({"source": "topics", "to": "diffusers"}, InvalidRequest, "single file"),
        ({"source": "topics", "name": "loras"}, InvalidRequest, "name"),
        ({"source": "topics", "name": "sd3"}, InvalidRequest, "name"),
        ({"source": "topics", "precision": "int4"}, InvalidRequest, "precision"),
        ({"source": "topics", "name": "../there"}, InvalidRequest, "name"),
        ({"source": "topics", "version": "a/b"}, InvalidRequest, "version"),
        ({"source": "code"}, ModelInvalid, "code of its own"),
        ({"source": "pickled"}, ModelInvalid, "pickle"),
        ({"source": "linked"}, Forbidden, "out of"),
        ({"source": "translator"}, InvalidRequest, "encoders and classifiers"),
    ],
)
def test_what_is_not_converted_is_told(
    tmp_path: Path, source: tuple[Path, Any], asked: dict[str, Any], error: type[AtelierError], words: str
) -> None:
    root = tmp_path / "models"
    root.mkdir()
    for name in ("topics", "code", "pickled", "translator"):
        copy(source[0], root / name)
    for name, more in (
        ("code", {"auto_map": {"AutoModel": "evil.Model"}}),
        ("translator", {"is_encoder_decoder": True}),
    ):
        config = json.loads((root / name / "config.json").read_text())
        (root / name / "config.json").write_text(json.dumps({**config, **more}))
    (root / "pickled/pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    (root / "empty").mkdir()
    (root / "linked").symlink_to(source[0])
    tiny.build(root / "sd3", "sd3")
    desk = ConvertDesk(root)
    with pytest.raises(error, match=words) as told:
        desk.begin(**{"name": "new", **asked})
    assert str(root) not in json.dumps(told.value.to_wire())
    assert not (root / "new").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"num_hidden_layers": 2}, ModelInvalid, "do not fit"),
        ({"architectures": ["pipeline"]}, InvalidRequest, "class"),
        ({"architectures": ["ViTForImageClassification"]}, InvalidRequest, "of text"),
    ],
)
def test_a_config_that_makes_no_model_of_text_is_told(
    desk: ConvertDesk, tmp_path: Path, change: dict[str, Any], error: type[AtelierError], words: str
) -> None:
    file = tmp_path / "topics/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(error, match=words):
        convert(order_of(desk, name="unfit"), quiet)
    assert not (tmp_path / "unfit").exists()


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("float16", torch.float16)])
def test_a_single_file_becomes_a_folder(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny.build(tmp_path / "whole"))
    ldm_layout.write(pipeline, tmp_path / "file.safetensors")
    ldm_layout.write_configs(tmp_path / "whole", tmp_path / "configs/sd")
    (tmp_path / "models.toml").write_text('[file]\nconfig = "sd"\n')
    desk = ConvertDesk(tmp_path)
    told: list[float] = []
    order = order_of(desk, source="file", to="diffusers", name="folder", precision=precision)
    found = convert(order, lambda progress, _doing: told.append(progress))
    assert set(found) == {"text_encoder", "unet", "vae_encoder", "vae_decoder"}
    assert all(part["max_rel_error"] < (1e-6 if precision == "float32" else 1e-2) for part in found.values())
    assert told == [number / 8 for number in range(8)]
    model = desk.models.find("folder:1")
    assert model.actions == desk.models.find("whole").actions
    for name in ("unet", "vae", "text_encoder"):
        want = getattr(pipeline, name).state_dict()
        have = getattr(DiffusionPipeline.from_pretrained(model.path, dtype=dtype), name).state_dict()
        assert all(torch.equal(want[key].to(have[key].dtype), have[key]) for key in want), name
        assert have["conv_in.weight" if name == "unet" else next(iter(have))].dtype == dtype
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in model.path.rglob("*.json"))


def test_a_single_file_is_not_converted_to_onnx_at_once(tmp_path: Path) -> None:
    ldm_layout.write(DiffusionPipeline.from_pretrained(tiny.build(tmp_path / "whole")), tmp_path / "file.safetensors")
    desk = ConvertDesk(tmp_path)
    for more, words in (({}, "to diffusers first"), ({"to": "diffusers", "precision": "int8"}, "float32 or float16")):
        with pytest.raises(InvalidRequest, match=words):
            desk.begin(source="file", name="new", **more)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_large_weights_stand_beside_their_graph(
    desk: ConvertDesk, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A protobuf ends at 2 GiB; here, all weights count as large."""
    monkeypatch.setattr(graphs, "INLINE_BYTES_MAX", 0)
    found = convert(order_of(desk, name="large", precision=precision), quiet)
    assert found["model"]["max_rel_error"] < found["model"]["tolerance"]
    model = desk.models.find("large")
    beside = model.path / "model.onnx.data"
    assert beside.stat().st_size > (model.path / "model.onnx").stat().st_size
    runner = Runner.start(RunnerSpec(model.path / "model.onnx"))
    try:
        ids = np.ones((2, 5), np.int64)
        assert runner.run({"input_ids": ids, "attention_mask": ids})["logits"].shape == (2, 3)
    finally:
        runner.close()
