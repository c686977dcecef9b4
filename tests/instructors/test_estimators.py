"""Depth and pose by model files: tiny ones of random weights, or ones that compute what can be foretold."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from instructors import estimators, preprocessors, skeleton
from instructors.models import ModelFolder
from protocol.errors import Forbidden, InvalidRequest, ModelInvalid

GREY = np.array([0.485, 0.456, 0.406]) * 255  # what the model sees as 0


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    (tmp_path / "preprocessors").mkdir()
    return ModelFolder(tmp_path)


def place(folder: ModelFolder, name: str) -> Path:
    assert folder.root is not None
    return folder.root / "preprocessors" / name


def loaded(folder: ModelFolder, name: str = "depth") -> estimators.Estimator:
    return estimators.load(estimators.find(name, folder), "cpu")


def ramp(width: int, height: int) -> Image.Image:
    """From black on the left to white on the right."""
    return Image.fromarray(
        np.linspace(0, 255, width).round().astype(np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    )


def save_onnx(path: Path, nodes: list[Any], shape: list[Any], outputs: list[str], **constants: Any) -> None:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)


def save_depth(path: Path, shape: list[Any], keepdims: int = 0) -> None:
    """Nearness is brightness."""
    mean = helper.make_node("ReduceMean", ["image", "axis"], ["depth"], keepdims=keepdims)
    save_onnx(path, [mean], shape, ["depth"], axis=[1])


def save_pose(path: Path, shape: list[Any], points: int = 17) -> None:
    """Every point is where the picture is brightest."""
    nodes = [helper.make_node("ReduceMean", ["image", "colours"], ["grey"], keepdims=0)]
    for name, axis in (("x", "rows"), ("y", "columns")):
        nodes.append(helper.make_node("ReduceMax", ["grey", axis], [f"one_{name}"], keepdims=0))
        nodes.append(helper.make_node("Unsqueeze", [f"one_{name}", "rows"], [f"row_{name}"]))
        nodes.append(helper.make_node("Tile", [f"row_{name}", "repeats"], [name]))
    save_onnx(path, nodes, shape, ["x", "y"], colours=[1], rows=[1], columns=[2], repeats=[1, points, 1])


def save_dpt(path: Path, **options: Any) -> None:
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    transformers.DPTForDepthEstimation(config).save_pretrained(path)
    save_processor(path, {"height": 32, "width": 32}, **options)


def save_depth_anything(path: Path, kind: str) -> None:
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=1,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        patch_size=14,
        depth_estimation_type=kind,
        max_depth=10 if kind == "metric" else 1,
    )
    model = transformers.DepthAnythingForDepthEstimation(config)
    for weights in model.parameters():  # as they are made, they are so small that every depth is the same
        torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(path)
    save_processor(path, {"height": 28, "width": 42})


def save_processor(path: Path, size: dict[str, int], **options: Any) -> None:
    settings = {"image_processor_type": "DPTImageProcessor", "size": size, **options}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))


def stock_depth(path: Path, image: Image.Image) -> np.ndarray:
    """What the library says: [height, width]."""
    inputs = transformers.AutoImageProcessor.from_pretrained(path)(images=image, return_tensors="pt")
    with torch.inference_mode():
        depth = transformers.AutoModelForDepthEstimation.from_pretrained(path)(**inputs).predicted_depth[0].numpy()
    assert isinstance(depth, np.ndarray)
    return depth


@pytest.mark.parametrize("shape", [[1, 3, "h", "w"], ["n", 3, "h", "w"], [1, 3, 32, 64], [1, 3, 32, "w"]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_depth_by_an_onnx_file(folder: ModelFolder, shape: list[Any], keepdims: int) -> None:
    save_depth(place(folder, "depth.onnx"), shape, keepdims)
    image = ramp(96, 64)
    result = preprocessors.run("depth", image, size=(96, 64), estimator=loaded(folder))
    assert result.size == (96, 64)
    difference = np.asarray(result).astype(int) - np.asarray(image).astype(int)
    assert np.abs(difference).max() <= 6  # sizes between rounded the ends of the ramp


def test_an_onnx_file_sees_pictures_as_imagenet_has_them(folder: ModelFolder) -> None:
    save_depth(place(folder, "depth.onnx"), [1, 3, 16, 16])
    model = estimators._OnnxFile(place(folder, "depth.onnx"), "cpu")
    [zero] = model(np.tile(GREY, (16, 16, 1)).astype(np.float32))
    assert np.abs(zero).max() < 1e-6
    [white] = model(np.full((16, 16, 3), 255, np.uint8))
    assert np.allclose(white, np.mean((1 - GREY / 255) / [0.229, 0.224, 0.225]), atol=1e-5)


@pytest.mark.parametrize(("size", "seen"), [((8, 224), (224, 224)), ((500, 640), (448, 672)), ((4000, 90), (896, 224))])
def test_an_open_size_is_one_that_every_patch_divides(
    folder: ModelFolder, size: tuple[int, int], seen: tuple[int, int]
) -> None:
    save_depth(place(folder, "depth.onnx"), [1, 3, "h", "w"])
    depth = loaded(folder)(np.asarray(ramp(*size)))
    assert depth.shape == (seen[1], seen[0], 3)


def test_a_picture_of_one_depth_is_black(folder: ModelFolder) -> None:
    save_depth(place(folder, "depth.onnx"), [1, 3, "h", "w"])
    plain = Image.new("RGB", (40, 40), "white")
    assert preprocessors.run("depth", plain, size=(40, 40), estimator=loaded(folder)).getbbox() is None


def test_depth_by_a_model_of_transformers(folder: ModelFolder) -> None:
    path = place(folder, "depth")
    save_dpt(path, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    image = ramp(32, 32)
    depth = stock_depth(path, image)
    assert depth.max() > depth.min()
    expected = (255 * (depth - depth.min()) / (depth.max() - depth.min())).round()
    estimator = loaded(folder)
    assert estimator.nbytes > 100_000
    result = estimator(np.asarray(image))
    assert result.shape == (*depth.shape, 3)
    assert np.abs(result[..., 0] - expected).max() <= 1
    assert np.array_equal(result, loaded(folder)(np.asarray(image)))


def test_metres_are_turned_round(folder: ModelFolder) -> None:
    """Depth Anything answers nearness, or metres: white is near either way."""
    image = ramp(42, 28)
    results = {}
    for kind in ("relative", "metric"):
        path = place(folder, "depth")
        save_depth_anything(path, kind)
        depth = stock_depth(path, image)
        result = loaded(folder)(np.asarray(image))[..., 0]
        assert depth.max() > depth.min()
        results[kind] = np.corrcoef(result.ravel(), depth.ravel())[0, 1]
    assert results["relative"] > 0.99
    assert results["metric"] < -0.99


def test_without_files_it_is_told_where_to_put_them(folder: ModelFolder) -> None:
    for name, where in (("depth", "preprocessors/depth.onnx"), ("pose", "preprocessors/pose.onnx")):
        for models in (folder, ModelFolder(None)):
            assert not estimators.is_there(name, models)
            with pytest.raises(InvalidRequest, match=where) as caught:
                estimators.find(name, models)
            [field] = caught.value.details["fields"]
            assert field["field"] == "preprocessor"
            assert str(folder.root) not in caught.value.message


def test_the_version_follows_the_files(folder: ModelFolder) -> None:
    save_depth(place(folder, "depth.onnx"), [1, 3, "h", "w"])
    before = estimators.find("depth", folder)
    assert before == estimators.find("depth", folder)
    assert before.nbytes == place(folder, "depth.onnx").stat().st_size
    save_depth(place(folder, "depth.onnx"), [1, 3, 32, 32])
    assert estimators.find("depth", folder).version != before.version


def test_the_folder_of_estimators_is_no_model(folder: ModelFolder) -> None:
    save_dpt(place(folder, "depth"))
    assert folder.names() == []


def test_links_out_of_the_model_folder_are_refused(
    folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    save_depth(outside / "depth.onnx", [1, 3, "h", "w"])
    save_dpt(outside / "depth")
    place(folder, "depth.onnx").symlink_to(outside / "depth.onnx")
    with pytest.raises(Forbidden):
        estimators.find("depth", folder)
    place(folder, "depth.onnx").unlink()
    place(folder, "depth").symlink_to(outside / "depth")
    with pytest.raises(Forbidden):
        estimators.find("depth", folder)
    place(folder, "depth").unlink()
    place(folder, "depth").mkdir()
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (place(folder, "depth") / file).symlink_to(outside / "depth" / file)
    with pytest.raises(Forbidden):
        estimators.find("depth", folder)


def test_a_link_to_nowhere_is_no_file_to_use(folder: ModelFolder) -> None:
    save_dpt(place(folder, "depth"))
    (place(folder, "depth") / "gone.json").symlink_to("nowhere")
    with pytest.raises(ModelInvalid, match="cannot be read"):
        estimators.find("depth", folder)


def test_an_onnx_file_reads_no_file_beside_the_folder(folder: ModelFolder) -> None:
    """Weights of an ONNX file may be stored in another one, named inside it."""
    assert folder.root is not None
    (folder.root / "secret").write_bytes(bytes(12))
    weights = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 1, 1])
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("length", "12")):
        weights.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Add", ["image", "w"], ["depth"])]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "sly", inputs, outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    place(folder, "depth.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelInvalid):
        loaded(folder)


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_pickles_are_refused_under_any_name(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place(folder, "depth.onnx").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelInvalid, match="pickle"):
        estimators.find("depth", folder)
    place(folder, "depth.onnx").unlink()
    save_dpt(place(folder, "depth"))
    for name in ("pytorch_model.bin", "model.safetensors"):
        (place(folder, "depth") / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ModelInvalid):
            estimators.find("depth", folder)
    assert not Path("ran").exists()


def test_code_beside_a_model_is_not_run(folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = place(folder, "depth")
    save_dpt(path)
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForDepthEstimation": "own.Own"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "own.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Own: pass\n")
    with pytest.raises(ModelInvalid):
        loaded(folder)
    assert not Path("ran").exists()


def test_missing_weights_are_not_made_up(folder: ModelFolder) -> None:
    from safetensors.torch import load_file, save_file

    path = place(folder, "depth")
    save_dpt(path)
    weights = load_file(path / "model.safetensors")
    gone = next(name for name in sorted(weights) if name.startswith("head."))
    del weights[gone]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelInvalid, match=gone):
        loaded(folder)


@pytest.mark.parametrize("content", [b"", b"no model" * 10, None])
def test_a_damaged_onnx_file_is_refused(folder: ModelFolder, content: bytes | None) -> None:
    file = place(folder, "depth.onnx")
    save_depth(file, [1, 3, "h", "w"])
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    with pytest.raises(ModelInvalid, match="cannot be used") as caught:
        loaded(folder)
    assert str(folder.root) not in caught.value.message


def test_an_onnx_file_for_something_else_is_refused(folder: ModelFolder) -> None:
    file = place(folder, "depth.onnx")
    same = [helper.make_node("Identity", ["image"], ["depth"])]
    for shape, problem in (
        ([1, 3], "must take one picture"),
        ([1, 4, 8, 8], "must take one picture"),
        ([1, 3, 100_000, 32], "a side of 100000"),
    ):
        save_onnx(file, same, shape, ["depth"])
        with pytest.raises(ModelInvalid, match=problem):
            loaded(folder)
    save_onnx(file, same, [1, 3, 8, 8], ["depth"])
    with pytest.raises(ModelInvalid, match="answers no depth"):
        loaded(folder)(np.zeros((8, 8, 3), np.uint8))


def test_a_model_that_fails_at_work_is_to_blame(folder: ModelFolder) -> None:
    """It asks for a shape that its picture does not have."""
    nodes = [helper.make_node("Reshape", ["image", "form"], ["depth"])]
    save_onnx(place(folder, "depth.onnx"), nodes, [1, 3, "h", "w"], ["depth"], form=[1, 7, 11])
    estimator = loaded(folder)
    with pytest.raises(ModelInvalid, match="preprocessor depth cannot be used"):
        estimator(np.zeros((8, 8, 3), np.uint8))


def test_depth_that_is_no_number_is_refused(folder: ModelFolder) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["image", "axis"], ["mean"], keepdims=0),
        helper.make_node("Log", ["mean"], ["depth"]),
    ]
    save_onnx(place(folder, "depth.onnx"), nodes, [1, 3, 8, 8], ["depth"], axis=[1])
    with pytest.raises(ModelInvalid, match="finite"):
        loaded(folder)(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("model_size", [(64, 48), (32, 64)])
@pytest.mark.parametrize("spot", [(20, 30), (150, 80)])
def test_pose_points_come_back_to_where_they_are(
    folder: ModelFolder, model_size: tuple[int, int], spot: tuple[int, int]
) -> None:
    """Whatever the shape of what the model sees: wider or taller than the picture."""
    save_pose(place(folder, "pose.onnx"), [1, 3, model_size[1], model_size[0]], points=133)
    image = Image.new("RGB", (200, 120))
    image.paste("white", (spot[0] - 6, spot[1] - 6, spot[0] + 6, spot[1] + 6))
    result = preprocessors.run("pose", image, size=(200, 120), estimator=loaded(folder, "pose"))
    left, top, right, bottom = result.getbbox() or (0, 0, 0, 0)
    assert right > left
    assert abs((left + right) / 2 - spot[0]) < 8
    assert abs((top + bottom) / 2 - spot[1]) < 8


def test_a_picture_with_nobody_gives_a_black_pose(folder: ModelFolder) -> None:
    save_pose(place(folder, "pose.onnx"), [1, 3, 32, 32])
    assert (
        preprocessors.run("pose", Image.new("RGB", (50, 40)), size=(50, 40), estimator=loaded(folder, "pose")).getbbox()
        is None
    )


def test_a_pose_file_for_something_else_is_refused(folder: ModelFolder) -> None:
    save_pose(place(folder, "pose.onnx"), [1, 3, "h", "w"])
    with pytest.raises(ModelInvalid, match="size open"):
        loaded(folder, "pose")
    save_pose(place(folder, "pose.onnx"), [1, 3, 32, 32], points=5)
    with pytest.raises(ModelInvalid, match="no SimCC"):
        loaded(folder, "pose")(np.zeros((8, 8, 3), np.uint8))
    save_depth(place(folder, "pose.onnx"), [1, 3, 32, 32])
    with pytest.raises(ModelInvalid, match="no SimCC"):
        loaded(folder, "pose")(np.zeros((8, 8, 3), np.uint8))


def test_a_skeleton_has_openposes_colours() -> None:
    points, scores = np.zeros((17, 2)), np.zeros(17)
    for index, point in ((5, (300, 100)), (6, (100, 100)), (8, (100, 200))):  # shoulders, and the right elbow
        points[index], scores[index] = point, 1
    canvas = skeleton.draw(points, scores, 512, 512)
    assert canvas[100, 200].tolist() == [255, 85, 0]  # the neck, between the shoulders
    assert canvas[100, 100].tolist() == [255, 170, 0]
    assert canvas[100, 300].tolist() == [85, 255, 0]
    assert canvas[200, 100].tolist() == [255, 255, 0]
    assert canvas[100, 150].tolist() == [153, 0, 0]  # limbs: the colour of the wheel in turn, darkened
    assert canvas[100, 250].tolist() == [153, 51, 0]
    assert canvas[150, 100].tolist() == [153, 102, 0]
    assert (canvas[300:] == 0).all()
    scores[5] = 0.2
    unsure = skeleton.draw(points, scores, 512, 512)
    assert (unsure[100, 200:310] == 0).all()
    assert unsure[200, 100].tolist() == [255, 255, 0]


def test_points_outside_the_picture_do_no_harm() -> None:
    points = np.full((17, 2), 1e6)
    points[::2] = -1e6
    assert skeleton.draw(points, np.ones(17), 40, 30).shape == (30, 40, 3)
