"""`controlnet.list` and `controlnet.preprocess`; which ControlNets are taken, and that none is kept unused."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
from PIL import Image

from instructors.task import Blob, R
from protocol.errors import AtelierError, Forbidden, InvalidRequest, ModelInvalid
from protocol.schemas import ACTIONS
from tests.instructors import tiny, tiny_controlnet
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import box, file, finish, make, noise, open_image, paint
from tests.instructors.test_estimators import ramp, save_depth
from worker.residency import Residency

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with two ControlNets for its model."""
    root = tmp_path_factory.mktemp("controlnets")
    tiny.build(root / "sd")
    for seed, name in enumerate(("edges", "other")):
        tiny_controlnet.build(root / "controlnets" / name, root / "sd", seed)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(built, tmp_path / "models")


def listed(registry: Any, desk: Desk) -> dict[str, dict[str, Any]]:
    data = finish(registry.make_task("controlnet.list", {}, desk)).data
    ACTIONS["controlnet.list"].result.model_validate(data)
    return {entry["controlnet_id"]: entry for entry in data["controlnets"]}


def use(name: str, **more: Any) -> dict[str, Any]:
    return {"controlnet_id": name, "image": file(noise()), **more}


def test_list_tells_what_there_is_and_what_is_loaded(registry: Any, built: Path) -> None:
    desk = Desk(built)
    found = listed(registry, desk)
    assert {name: (entry["family"], entry["loaded"]) for name, entry in found.items()} == {
        "edges": ("sd", False),
        "other": ("sd", False),
    }
    folder = built / "controlnets" / "edges"
    assert found["edges"]["nbytes"] == sum(one.stat().st_size for one in folder.iterdir())
    paint(registry, desk, "text2img", [], model_id="sd", controlnets=[use("edges")])
    assert [name for name, entry in listed(registry, desk).items() if entry["loaded"]] == ["edges"]
    assert listed(registry, Desk(None)) == {}


def test_preprocessors_that_need_a_model_are_told_where_there_is_one(registry: Any, root: Path) -> None:
    def names() -> list[str]:
        data = finish(registry.make_task("controlnet.list", {}, Desk(root))).data
        return data["preprocessors"]  # type: ignore[no-any-return]

    assert names() == ["none", "canny", "scribble", "softedge", "tile"]
    (root / "preprocessors").mkdir()
    (root / "preprocessors" / "depth.onnx").write_bytes(b"")
    assert names()[-1] == "depth"


@pytest.mark.parametrize("name", ["none", "canny", "scribble", "softedge", "tile"])
def test_preprocess_makes_a_picture_of_the_image_s_size(registry: Any, built: Path, name: str) -> None:
    desk = Desk(built)
    drawn = Image.new("RGB", (90, 60), "white")
    drawn.paste("black", (30, 20, 60, 40))
    desk.blobs = [Blob("image/png", file(drawn))]
    data = {"image": {"attachment": 0}, "preprocessor": name}
    result = finish(registry.make_task("controlnet.preprocess", data, desk))
    ACTIONS["controlnet.preprocess"].result.model_validate(result.data)
    assert result.data["images"] == [
        {"attachment": 0, "media_type": "image/png", "width": 90, "height": 60, "preprocessor": name}
    ]
    [raw] = files(result)
    made = np.asarray(open_image(raw).convert("L")).astype(int)
    assert made.shape == (60, 90)
    if name in ("canny", "scribble", "softedge"):
        assert made[18:42, 28:62].max() > 100  # around the box
        assert made[:8, :8].max() == made[28:32, 40:50].max() == 0  # where nothing changes
    else:
        assert made[2, 2] > 250
        assert made[30, 45] < 5
    coarse = finish(registry.make_task("controlnet.preprocess", {**data, "resolution": 16}, desk))
    assert (files(coarse) == [raw]) == (name == "none")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"preprocessor": "cany"}, "preprocessor"),
        ({"preprocessor": "pose"}, "needs a model file"),
        ({"preprocessor": "canny", "image": {"attachment": 1}}, "there is no attachment 1"),
        ({"preprocessor": "canny", "resolution": 12}, "resolution"),
        ({}, "preprocessor"),
    ],
)
def test_what_cannot_be_preprocessed(registry: Any, built: Path, data: dict[str, Any], words: str) -> None:
    desk = Desk(built)
    desk.blobs = [Blob("image/png", file(box()))]
    with pytest.raises(InvalidRequest, match=words):
        finish(registry.make_task("controlnet.preprocess", {"image": {"attachment": 0}, **data}, desk))


def test_depth_is_made_by_the_user_s_model_which_stays_loaded(registry: Any, root: Path) -> None:
    (root / "preprocessors").mkdir()
    save_depth(root / "preprocessors" / "depth.onnx", [1, 3, 16, 16])
    desk = Budgeted(root)
    desk.blobs = [Blob("image/png", file(ramp(32, 32)))]
    data = {"image": {"attachment": 0}, "preprocessor": "depth"}
    [raw] = files(finish(registry.make_task("controlnet.preprocess", data, desk)))
    columns = np.asarray(open_image(raw).convert("L")).astype(int).mean(axis=0)
    assert columns[0] < 20
    assert columns[-1] > 235
    assert desk.residency.names == ["preprocessor depth"]
    near = {"controlnet_id": "edges", "image": file(ramp(32, 32)), "preprocessor": "depth"}
    task = make(registry, desk, "text2img", [], model_id="sd", controlnets=[near], width=32, height=32)
    assert files(finish(task))[1] == raw
    assert sorted(desk.residency.names) == ["controlnet/edges", "preprocessor depth", "sd"]


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04anything")


def disguised(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"PK\x03\x04" + bytes(100))


def beside(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"\x80\x02anything")


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def not_one(folder: Path) -> None:
    reconfigured(folder, _class_name="UNet2DConditionModel")


def of_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def reconfigured(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def of_more_layers(folder: Path) -> None:
    reconfigured(folder, mid_block_type="UNetMidBlock2D")


def linked_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parents[2] / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parents[2] / "elsewhere.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (pickled, ModelInvalid, "pickle"),
        (disguised, ModelInvalid, "pickle"),
        (beside, ModelInvalid, "pickle"),
        (cut_short, ModelInvalid, "not a whole safetensors"),
        (not_one, ModelInvalid, "names no ControlNet"),
        (of_no_json, ModelInvalid, "cannot be read"),
        (linked_out, Forbidden, "leads out"),
    ],
)
def test_a_controlnet_that_is_not_taken(
    registry: Any, root: Path, damage: Callable[[Path], None], error: type[AtelierError], words: str
) -> None:
    desk = Desk(root)
    damage(root / "controlnets" / "edges")
    assert words in listed(registry, desk)["edges"]["problem"]
    with pytest.raises(error, match=words) as caught:
        make(registry, desk, "text2img", [], model_id="sd", controlnets=[use("edges")])
    assert caught.value.details["controlnet_id"] == "edges"
    assert str(root) not in caught.value.message
    paint(registry, desk, "text2img", [], model_id="sd", controlnets=[use("other")])


@pytest.mark.parametrize("damage", [without_weights, of_more_layers])
def test_files_that_do_not_make_one(registry: Any, root: Path, damage: Callable[[Path], None]) -> None:
    damage(root / "controlnets" / "edges")
    with pytest.raises(ModelInvalid, match="do not"):
        make(registry, Desk(root), "text2img", [], model_id="sd", controlnets=[use("edges")])


@pytest.mark.parametrize(
    "settings",
    [
        {"cross_attention_dim": 768},
        {"block_out_channels": [8, 32]},
        {"in_channels": 9},
        {"conditioning_embedding_out_channels": [16, 32, 64, 128]},
        {"conditioning_channels": 1},
        {"cross_attention_dim": "much"},
    ],
)
def test_one_for_another_base_model(registry: Any, root: Path, settings: dict[str, Any]) -> None:
    reconfigured(root / "controlnets" / "edges", **settings)
    with pytest.raises(ModelInvalid, match=f"another base model: its {next(iter(settings))}"):
        make(registry, Desk(root), "text2img", [], model_id="sd", controlnets=[use("edges")])


def test_a_single_file_is_told_from_a_pickle(registry: Any, root: Path) -> None:
    shutil.copy(root / "controlnets" / "edges" / WEIGHTS, root / "controlnets" / "one.safetensors")
    (root / "controlnets" / "two.pth").write_bytes(b"\x80\x04anything")
    found = listed(registry, Desk(root))
    assert "single file" in found["one.safetensors"]["problem"]
    assert "pickle" in found["two.pth"]["problem"]


class Budgeted(Desk):
    """A desk where things stay in memory under the worker's own rules."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.residency = Residency(10**9, gc.collect)
        self.pins: list[str] = []

    def resident(self, key: str, nbytes: int, load: Callable[[], R]) -> R:
        found: Any = self.residency.get(key)
        self.pins.append(key)
        return found if found is not None else self.residency.load(key, nbytes, load)

    def part(self, key: str) -> Any:
        return self.residency.part(key)

    def unpin(self) -> None:
        for key in self.pins:
            self.residency.unpin(key)
        self.pins.clear()


def test_an_evicted_controlnet_is_gone_and_comes_back(registry: Any, built: Path) -> None:
    desk = Budgeted(built)

    def painted() -> tuple[bytes, Any]:
        task = make(registry, desk, "text2img", [], model_id="sd", controlnets=[use("edges")])
        module = ref(task._controls[0].net.module)
        return files(finish(task))[0], module

    before, module = painted()
    assert desk.residency.names == ["sd", "controlnet/edges"]
    assert not desk.residency.forget(desk.pins[1])  # in use
    key = desk.pins[1]
    desk.unpin()
    assert desk.residency.forget(key)
    gc.collect()
    assert module() is None  # nothing of the model keeps it
    assert not listed(registry, desk)["edges"]["loaded"]
    assert painted()[0] == before
    assert listed(registry, desk)["edges"]["loaded"]


def test_equal_files_of_two_names_are_loaded_once(registry: Any, root: Path) -> None:
    shutil.copytree(root / "controlnets" / "edges", root / "controlnets" / "again")
    task = make(registry, Desk(root), "text2img", [], model_id="sd", controlnets=[use("edges"), use("again")])
    first, second = (control.net.module for control in task._controls)
    assert first is second
