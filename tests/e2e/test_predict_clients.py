"""Pictures, tensors and batches through both clients and the command, with a real worker and real ONNX models."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from PIL import Image

from orchestrator.cli import cli
from orchestrator.client import AsyncClient, Client, Prediction, attach_inputs, prediction_of
from protocol.errors import InvalidRequest, NotFound
from protocol.ids import new_id
from tests.e2e.house import House
from tests.instructors import onnx_models

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LARGE = np.arange(8192, dtype=np.float32).reshape(4, 2048)

CLASSIFIER = """
[[preprocess]]
step = "resize"
width = 8
height = 8

[[preprocess]]
step = "to_tensor"
output = "x"

[[postprocess]]
step = "softmax"
input = "y"
temperature = 0.1

[[postprocess]]
step = "top_k"
input = "y"
k = 1
labels = "labels.txt"
"""
DETECTOR = """
[[preprocess]]
step = "resize"
width = 64
height = 64
mode = "letterbox"

[[preprocess]]
step = "to_tensor"
output = "x"

[[postprocess]]
step = "nms"
layout = "yolov8"
input = "y"
"""


def colour_of(path: Path) -> None:
    """`x` float32 [batch, 3, 8, 8] -> `y` [batch, 3]: the mean of each channel."""
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)]
    inputs = [onnx_models.value("x", "float32", ["batch", 3, 8, 8])]
    outputs = [onnx_models.value("y", "float32", ["batch", 3])]
    onnx_models.save(onnx_models.model(nodes, inputs, outputs, {"axes": np.array([2, 3])}), path)


def middle_of(path: Path) -> None:
    """`x` float32 [batch, 3, 64, 64] -> `y` [batch, 5, 1]: always a box of 32 x 16 pixels in the middle, surely."""
    row = np.array([[[32], [32], [32], [16], [0.75]]], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "shape"], ["rows"]),
        helper.make_node("Add", ["rows", "row"], ["y"]),
    ]
    weights = {"axes": np.array([1, 2, 3]), "zero": np.float32(0), "shape": np.array([-1, 1, 1]), "row": row}
    inputs = [onnx_models.value("x", "float32", ["batch", 3, 64, 64])]
    outputs = [onnx_models.value("y", "float32", ["batch", 5, 1])]
    onnx_models.save(onnx_models.model(nodes, inputs, outputs, weights), path)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        models = started.folder / "models"
        onnx_models.affine(models / "double/model.onnx", 2, 0)
        onnx_models.identity(models / "words/model.onnx", "string", ["batch"])
        colour_of(models / "colours/model.onnx")
        (models / "colours/model.toml").write_text(CLASSIFIER)
        (models / "colours/labels.txt").write_text("\n".join(COLOURS))
        middle_of(models / "middle/model.onnx")
        (models / "middle/model.toml").write_text(DETECTOR)
        started.start_orchestrator()
        started.start_worker("w", "--models", str(models))
        started.wait_for_workers("w")
        yield started


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.png" for name in COLOURS}
    for name, path in paths.items():
        Image.new("RGB", (40, 20), COLOURS[name]).save(path)
    return paths


def test_a_pictures_class(client: Client, pictures: dict[str, Path]) -> None:
    made = client.predict("colours", images=list(pictures.values()))
    assert [item["classes"][0]["label"] for item in made.predictions] == list(COLOURS)
    assert [item.keys() for item in made.predictions] == [{"classes"}] * 3
    assert made.outputs == {}
    assert made.predictions[0]["classes"][0]["score"] > 0.99


def test_what_a_step_lets_a_request_set(client: Client, pictures: dict[str, Path]) -> None:
    made = client.predict("colours", images=[pictures["blue"]], parameters={"k": 2})
    assert [entry["label"] for entry in made.predictions[0]["classes"]] == ["blue", "red"]
    with pytest.raises(InvalidRequest, match="k"):
        client.predict("colours", images=[pictures["blue"]], parameters={"k": 0})
    with pytest.raises(InvalidRequest, match=r"parameters\.labels"):
        client.predict("colours", images=[pictures["blue"]], parameters={"labels": "other.txt"})


def test_boxes_are_in_pixels_of_the_picture_that_was_sent(client: Client) -> None:
    """Letterboxed to 64 x 64, a picture of 200 x 100 has its middle in the middle; a pixel there is 3.125 here."""
    images = [Image.new("RGB", size) for size in ((200, 100), (32, 64))]
    made = client.predict("middle", images=images)
    assert [item["detections"][0]["box"] for item in made.predictions] == [[50, 25, 150, 75], [0, 24, 32, 40]]
    again = client.predict("middle", images=[Image.new("RGB", (400, 200))])  # to the model the same picture
    assert again.predictions[0]["detections"][0]["box"] == [100, 50, 300, 100 + 50]


def test_artifacts_stand_for_bytes(client: Client, pictures: dict[str, Path]) -> None:
    stored = client.artifacts.put(LARGE.tobytes())
    tensor = {"dtype": "float32", "shape": list(LARGE.shape), "data": {"artifact_id": stored.artifact_id}}
    data, blobs = attach_inputs({"model_id": "double", "inputs": {"x": tensor}})
    for wait in (True, False):
        job = client.submit("inference.predict", data, attachments=blobs, wait=wait)
        assert np.array_equal(prediction_of(job.result(30)).outputs["y"], LARGE * 2)
    picture = client.artifacts.put(pictures["green"].read_bytes(), "image/png")
    made = client.predict("colours", images=[{"artifact_id": picture.artifact_id}])
    assert made.predictions[0]["classes"][0]["label"] == "green"
    with pytest.raises(InvalidRequest, match="float32 of shape"):
        client.predict("double", {"x": {**tensor, "shape": [3, 2048]}})
    with pytest.raises(NotFound):
        client.predict("double", {"x": {**tensor, "data": {"artifact_id": new_id()}}})


def test_a_tensor_that_is_not_its_shape_is_never_accepted(client: Client) -> None:
    tensor = {"name": "x", "dtype": "float32", "shape": [2, 2], "data": {"attachment": 0}}
    data = {"model_id": "double", "inputs": [tensor]}
    _, blobs = attach_inputs({"inputs": {"x": LARGE}})
    with pytest.raises(InvalidRequest, match=r"inputs\.0: has 32768 bytes; float32 of shape \[2, 2\] has 16"):
        client.submit("inference.predict", data, attachments=blobs, wait=False)
    with pytest.raises(InvalidRequest, match="2147483648 bytes by its shape"):
        client.predict("double", {"x": {**tensor, "shape": [2**29]}})


def test_a_sessions_defaults_hold(client: Client, pictures: dict[str, Path]) -> None:
    session = client.sessions.create(defaults={"model_id": "colours", "parameters": {"k": 3}})
    made = client.predict(images=[pictures["red"]], session_id=session.session_id)
    assert (made.model_id, len(made.predictions[0]["classes"])) == ("colours", 3)


def test_strings_and_lists(client: Client) -> None:
    assert client.predict("words", {"x": ["ab", "é", ""]}).outputs["y"].tolist() == ["ab", "é", ""]
    assert client.predict("double", {"x": [[1.5, -2]]}).tensors["y"].tolist() == [[3.0, -4.0]]


def test_a_batch_answers_each_for_itself(client: Client) -> None:
    requests: list[dict[str, Any]] = [{"inputs": {"x": LARGE + index}} for index in range(20)]
    requests[7] = {"inputs": {"z": LARGE}}
    made = client.predict_batch("double", requests)
    assert isinstance(made[7], InvalidRequest)
    for index, one in enumerate(made):
        if index != 7:
            assert isinstance(one, Prediction)
            assert np.array_equal(one.outputs["y"], (LARGE + index) * 2)


async def test_many_at_a_time(house: House) -> None:
    async with AsyncClient(house.endpoint, timeout_s=30) as client:
        calls = [client.predict("double", {"x": np.full((1, 4), index, np.float32)}) for index in range(100)]
        made = await asyncio.gather(*calls)
        assert [one.outputs["y"][0, 0] for one in made] == [2 * index for index in range(100)]
        batch = await client.predict_batch("double", [{"inputs": {"x": LARGE}}])
        assert isinstance(batch[0], Prediction)
        assert np.array_equal(batch[0].outputs["y"], LARGE * 2)


def command(house: House, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["predict", *arguments, "--connect", house.endpoint])


def test_the_command(house: House, pictures: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", LARGE)
    done = command(house, "double", "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert np.array_equal(np.load(tmp_path / "out/y.npy"), LARGE * 2)
    told = json.loads(command(house, "double", "--input", "x=[[1.5, NaN]]", "--json").output)
    assert told["outputs"]["y"]["values"] == [[3, None]]
    told = json.loads(
        command(house, "colours", "--image", str(pictures["blue"]), "--parameter", "k=2", "--json").output
    )
    assert [entry["label"] for entry in told["predictions"][0]["classes"]] == ["blue", "red"]


def test_the_command_tells_what_is_wrong(house: House) -> None:
    done = command(house, "double", "--input", "x=[[1, 2]]")  # int64
    assert done.exit_code == 1
    assert "float32" in done.output
    assert len(done.output.splitlines()) == 1
    done = command(house, "duoble", "--input", "x=[[1.5]]")
    assert done.exit_code == 1
    assert done.output.startswith("error: model_not_found:")
