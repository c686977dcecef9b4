"""The model folder: what is found, what is refused, and that nothing outside it is read."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from instructors.models import ModelFolder, check_weights
from protocol.codec import pack
from protocol.errors import AtelierError, Forbidden, InvalidRequest, ModelInvalid, ModelNotFound
from tests.instructors import tiny

UNET = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to be damaged."""
    shutil.copytree(tiny_root, tmp_path / "models")
    return tmp_path / "models"


def change_index(root: Path, **fields: Any) -> None:
    file = root / "tiny/model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_what_is_found(root: Path) -> None:
    model = ModelFolder(root).find("tiny")
    assert (model.model_id, model.family) == ("tiny", "stable_diffusion")
    assert {"unet", "vae", "text_encoder"} <= set(model.components)
    assert sum(model.elements.values()) > 10_000
    [entry] = ModelFolder(root).entries("cpu")
    assert entry == {
        "model_id": "tiny",
        "family": "stable_diffusion",
        "actions": [f"inference.{kind}" for kind in ("text2img", "img2img", "inpainting", "lora", "controlnet")],
        "content_hash": model.content_hash,
        "nbytes": 4 * sum(model.elements.values()),
    }
    [on_gpu] = ModelFolder(root).entries("cuda:0")
    assert on_gpu["nbytes"] == entry["nbytes"] / 2
    (root / "models.toml").write_text('["*"]\ndtype = "float32"\n[tiny]\noffload = "model"\n')
    assert [entry["nbytes"] for entry in ModelFolder(root).entries("cuda:0")] == [None]


def test_what_a_model_can_be_asked_for(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    for family, actions in (("sd3", ["text2img", "img2img", "inpainting"]), ("sdxl_inpaint", ["inpainting"])):
        tiny.build(tmp_path / family, family)
        assert folder.find(family).actions == [f"inference.{action}" for action in actions]
    assert folder.find("sdxl_inpaint").family == "stable_diffusion_xl"
    unet = tmp_path / "sdxl_inpaint/unet/config.json"
    for text in ("", "[]", "{}", '{"in_channels": "9"}', "[" * 100_000):
        unet.write_text(text)
        assert "inference.text2img" in folder.find("sdxl_inpaint").actions


def test_no_folder_no_models(tmp_path: Path) -> None:
    assert ModelFolder(None).entries("cpu") == ModelFolder(tmp_path / "missing").entries("cpu") == []
    with pytest.raises(ModelNotFound):
        ModelFolder(None).find("tiny")


def test_the_only_model_needs_no_name(root: Path) -> None:
    assert ModelFolder(root).find(None).model_id == "tiny"
    shutil.copytree(root / "tiny", root / "other")
    with pytest.raises(ModelNotFound) as caught:
        ModelFolder(root).find(None)
    assert caught.value.details["known"] == ["other", "tiny"]


def test_the_hash_follows_the_content_alone(root: Path) -> None:
    folder = ModelFolder(root)
    before = folder.find("tiny").content_hash
    (root / "tiny/README.md").write_text("a model card")
    os.utime(root / "tiny" / UNET)
    shutil.copytree(root / "tiny", root / "copy")
    assert folder.find("tiny").content_hash == folder.find("copy").content_hash == before
    raw = bytearray((root / "tiny" / UNET).read_bytes())
    raw[-1] ^= 1
    (root / "tiny" / UNET).write_bytes(raw)
    assert folder.find("tiny").content_hash != before


@pytest.mark.parametrize(
    "name",
    ["../../etc", "..", ".", "/etc", "tiny/", "tiny/../tiny", "tiny\0", "TINY", "~", "", "a" * 201, "tiny\n", "models"],
)
def test_names_that_are_no_models(root: Path, name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        ModelFolder(root).find(name)
    assert str(root) not in json.dumps(caught.value.to_wire())


def test_a_link_out_of_the_folder_is_not_followed(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "tiny", tmp_path / "outside")
    (root / "linked").symlink_to(tmp_path / "outside")
    folder = ModelFolder(root)
    with pytest.raises(Forbidden):
        folder.find("linked")
    assert folder.names() == ["tiny"]
    (root / "alias").symlink_to(root / "tiny")
    assert folder.find("alias").content_hash == folder.find("tiny").content_hash


@pytest.mark.parametrize("target", ["file", "folder"])
def test_links_within_a_model(root: Path, tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    shutil.move(root / "tiny/unet", outside)
    if target == "folder":
        (root / "tiny/unet").symlink_to(outside)
    else:
        (root / "tiny/unet").mkdir()
        for file in outside.iterdir():
            (root / "tiny/unet" / file.name).symlink_to(file)
    with pytest.raises(Forbidden):
        ModelFolder(root).find("tiny")


@pytest.mark.parametrize("named", ["../../../outside/w.safetensors", "{root}/../outside/w.safetensors", "w.bin", 7])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"])
def test_a_list_of_weights_cannot_lead_out(root: Path, tmp_path: Path, index: str, named: Any) -> None:
    """transformers would open what it names, wherever that is, and as a pickle if it is not called safetensors."""
    folder = root / "tiny/text_encoder"
    (tmp_path / "outside").mkdir()
    shutil.move(folder / "model.safetensors", tmp_path / "outside/w.safetensors")
    named = str(named).format(root=root) if isinstance(named, str) else named
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": {"a": named}}))
    with pytest.raises(ModelInvalid, match="names weights elsewhere") as caught:
        ModelFolder(root).find("tiny")
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000])
def test_a_list_of_weights_that_is_none_is_refused(root: Path, text: str) -> None:
    (root / "tiny/text_encoder/model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelInvalid, match="list of weights"):
        ModelFolder(root).find("tiny")


def test_weights_in_several_files_are_taken(root: Path) -> None:
    listed = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (root / "tiny/text_encoder/model.safetensors.index.json").write_text(json.dumps(listed))
    assert ModelFolder(root).find("tiny").family == "stable_diffusion"


def test_a_link_to_nowhere_costs_its_own_model_alone(root: Path) -> None:
    shutil.copytree(root / "tiny", root / "other")
    (root / "other/unet/gone.json").symlink_to(root / "nowhere")
    folder = ModelFolder(root)
    with pytest.raises(ModelInvalid, match="cannot be read") as caught:
        folder.find("other")
    assert str(root) not in json.dumps(caught.value.to_wire())
    assert ["problem" in entry for entry in folder.entries("cpu")] == [True, False]


def test_a_folder_linked_from_within_is_refused(root: Path) -> None:
    shutil.move(root / "tiny/unet", root / "kept")
    (root / "tiny/unet").symlink_to(root / "kept")
    with pytest.raises(ModelInvalid, match="neither a file nor a folder"):
        ModelFolder(root).find("tiny")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("exploded", "w"))


def torch_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))


def old_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb()))


def protocol_0(file: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(), protocol=0))


@pytest.mark.parametrize("write", [torch_zip, old_pickle, protocol_0])
@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_model.bin", "model.pt", "MODEL.PTH", "other.safetensors"])
def test_pickles_are_refused_by_content(root: Path, write: Any, name: str) -> None:
    write(root / "tiny/unet" / name)
    with pytest.raises(ModelInvalid):
        ModelFolder(root).find("tiny")
    write(root / name)
    with pytest.raises(ModelInvalid):
        ModelFolder(root).find(name)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("write", [torch_zip, old_pickle])
def test_pickles_under_harmless_names_are_refused(root: Path, write: Any) -> None:
    write(root / "tiny/unet/notes.txt")
    with pytest.raises(ModelInvalid, match="pickle"):
        ModelFolder(root).find("tiny")


def tensor(**fields: Any) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1\0\0",
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{",
        (3).to_bytes(8, "little") + b"[1]",
        (4).to_bytes(8, "little") + b"null",
        tensor(data_offsets=[0, 16]),
        tensor(data_offsets=[4, 8]),
        tensor(data_offsets=[-8, 0]),
        tensor(data_offsets="08"),
        tensor(shape=[3]),
        tensor(shape=[-1, -2]),
        tensor(shape=[2.0]),
        tensor(shape=[True, 2]),
        tensor(dtype="F33"),
        tensor(dtype=[]),
        tensor()[:-1],
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_safetensors_that_are_none(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(raw)
    with pytest.raises(ModelInvalid) as caught:
        check_weights(file)
    assert str(tmp_path) not in caught.value.message


def test_safetensors_that_are(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(tensor())
    assert check_weights(file) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"_class_name": ["pipeline", "Mine"]},
        {"_class_name": None},
        {"unet": ["os", "system"]},
        {"unet": ["subprocess", "Popen"]},
        {"unet": ["pipeline", "Mine"]},
        {"unet": [["diffusers", "UNet2DConditionModel"], None]},
        {"extra": ["diffusers"]},
    ],
)
def test_an_index_with_code_of_its_own_is_refused(root: Path, fields: dict[str, Any]) -> None:
    change_index(root, **fields)
    with pytest.raises(ModelInvalid):
        ModelFolder(root).find("tiny")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"x"', " " * 300_000])
def test_a_broken_index_is_refused(root: Path, text: str) -> None:
    (root / "tiny/model_index.json").write_text(text)
    with pytest.raises(ModelInvalid):
        ModelFolder(root).find("tiny")


@pytest.mark.parametrize("told", ["\ud800", "x" * 100_000, "a b", ""])
def test_a_class_of_no_usual_name_is_refused(root: Path, told: str) -> None:
    """It would stand in the worker's capabilities, which could not be sent."""
    change_index(root, _class_name=told)
    [entry] = ModelFolder(root).entries("cpu")
    assert "problem" in entry
    assert len(pack(entry)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda config: {**config, "layers_per_block": 20_000},
        lambda config: {**config, "transformer_layers_per_block": [1, [2, 20_000]]},
        lambda config: {**config, "down_block_types": config["down_block_types"] * 1000},
        lambda config: {**config, "layers_per_block": 20_000, "_comment": " " * 2**20},
    ],
)
def test_a_config_of_endless_layers_is_refused(root: Path, change: Any) -> None:
    """The device would be at work for minutes, only to make room for its weights."""
    file = root / "tiny/unet/config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ModelInvalid, match="config of 'unet'"):
        ModelFolder(root).find("tiny")


@pytest.mark.parametrize("name", [b"bad\xff", b"two words", b"x" * 201])
def test_folders_whose_names_are_no_models_are_not_told(root: Path, name: bytes) -> None:
    os.rename(bytes(root / "tiny"), bytes(root) + b"/" + name)
    assert ModelFolder(root).names() == []


def test_a_pipe_among_the_files_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "tiny/unet/pipe.safetensors")
    with pytest.raises(ModelInvalid):
        ModelFolder(root).find("tiny")


def test_bad_models_are_listed_with_their_problem(root: Path) -> None:
    shutil.copytree(root / "tiny", root / "evil")
    torch_zip(root / "evil/unet/model.bin")
    entries = {entry["model_id"]: entry for entry in ModelFolder(root).entries("cpu")}
    assert entries["evil"]["content_hash"] is None
    assert "pickle" in entries["evil"]["problem"]
    assert "problem" not in entries["tiny"]


def test_weights_that_do_not_fit_their_config(root: Path, registry: Any) -> None:
    from tests.instructors.conftest import Desk

    shutil.copy(root / "tiny/vae/diffusion_pytorch_model.safetensors", root / "tiny" / UNET)
    with pytest.raises(AtelierError) as caught:
        registry.make_task("inference.text2img", {"prompt": "x"}, Desk(root))
    assert isinstance(caught.value, ModelInvalid)
    assert str(root) not in caught.value.message


def test_a_family_without_text2img(root: Path, registry: Any) -> None:
    from tests.instructors.conftest import Desk

    change_index(root, _class_name="DDPMPipeline")
    with pytest.raises(ModelInvalid):
        registry.make_task("inference.text2img", {"prompt": "x"}, Desk(root))


def onnx_model(folder: Path, content: bytes = b"\x08\x0a", **manifest: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    if manifest:
        (folder / "model.toml").write_text("\n".join(f"{key} = {value}" for key, value in manifest.items()))
    return folder


def test_versions_are_found_and_the_newest_answers_for_the_name(root: Path) -> None:
    for version in ("1", "9", "10", "2026-01-rc"):
        onnx_model(root / "loc" / version, version.encode())
    folder = ModelFolder(root)
    assert folder.versions("loc") == ["1", "9", "10", "2026-01-rc"]
    assert folder.names() == ["loc:1", "loc:10", "loc:2026-01-rc", "loc:9", "tiny"]
    shutil.rmtree(root / "loc/2026-01-rc")
    newest, nine = folder.find("loc"), folder.find("loc:9")
    assert (newest.model_id, newest.version, newest.family) == ("loc:10", "10", "onnx")
    assert (nine.model_id, nine.path) == ("loc:9", root / "loc/9")
    assert newest.content_hash != nine.content_hash
    assert folder.find("tiny").version is None
    for name in ("loc:", "loc:11", "loc:../tiny", "loc:1:1", "loc/1", "tiny:unet", ":1", "loc:.hidden"):
        with pytest.raises(ModelNotFound):
            folder.find(name)


def test_a_pipeline_may_come_in_versions(root: Path) -> None:
    shutil.copytree(root / "tiny", root / "painter/1")
    assert ModelFolder(root).find("painter").model_id == "painter:1"
    assert ModelFolder(root).find("painter:1").content_hash == ModelFolder(root).find("tiny").content_hash


def test_shelves_and_hidden_folders_are_no_models(root: Path) -> None:
    for name in ("loras", "controlnets", "vaes", "preprocessors", ".staging"):
        onnx_model(root / name / "1")
    assert ModelFolder(root).names() == ["tiny"]


def test_a_version_that_leads_out_is_refused(root: Path, tmp_path: Path) -> None:
    onnx_model(tmp_path / "elsewhere")
    onnx_model(root / "loc/1")
    (root / "loc/2").symlink_to(tmp_path / "elsewhere")
    folder = ModelFolder(root)
    assert folder.versions("loc") == ["1"]
    with pytest.raises(Forbidden):
        folder.find("loc:2")


def test_each_kind_of_model_answers_for_its_actions(root: Path) -> None:
    onnx_model(root / "loc/1")
    folder = ModelFolder(root)
    assert folder.find("loc").actions == ["inference.predict", "predict.batch"]
    assert folder.pipeline(None).model_id == "tiny"
    assert folder.onnx(None).model_id == "loc:1"
    with pytest.raises(InvalidRequest, match="inference"):
        folder.pipeline("loc")
    with pytest.raises(InvalidRequest, match="pictures"):
        folder.onnx("tiny")


def test_the_hash_of_an_onnx_model_covers_all_but_its_card(root: Path) -> None:
    folder, path = ModelFolder(root), onnx_model(root / "loc/1")
    before = folder.find("loc")
    (path / "README.md").write_text("a card")
    assert folder.find("loc") == before
    (path / "labels.dat").write_text("cat\ndog\n")
    labelled = folder.find("loc")
    assert labelled.content_hash != before.content_hash
    assert labelled.weights_nbytes == before.weights_nbytes + 8
    (path / "weights.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelInvalid, match="pickle"):
        folder.find("loc")


def test_the_manifest(root: Path, tmp_path: Path) -> None:
    path = onnx_model(root / "loc/1", description='"Where it is"')
    (path / "net.onnx").write_bytes(b"")
    folder = ModelFolder(root)
    assert folder.find("loc").manifest.description == "Where it is"
    for text, problem in (
        ("descripton = 1", "did you mean description"),
        ("[batching]\nmax_batch = 3", "did you mean max_batch_size"),
        ("[batching]\nmax_batch_size = 0", "batching.max_batch_size"),
        ("[onnx]\nfile = '../x.onnx'", "onnx.file"),
        ("[", "cannot be read"),
        ("x = " + "[" * 5000, "cannot be read"),
        ("#" * 300_000, "too large"),
    ):
        (path / "model.toml").write_text(text)
        with pytest.raises(ModelInvalid, match=problem):
            folder.find("loc")
    (path / "model.toml").write_text('[onnx]\nfile = "net.onnx"')
    (path / "model.onnx").unlink()
    assert folder.find("loc").manifest.onnx.file == "net.onnx"
    (tmp_path / "secret.toml").write_text("token = 'hidden'")
    (path / "model.toml").unlink()
    (path / "model.toml").symlink_to(tmp_path / "secret.toml")
    with pytest.raises(AtelierError) as caught:
        folder.find("loc")
    assert "hidden" not in caught.value.message


def test_an_onnx_file_that_cannot_be_run_is_told_before_it_is_asked_for(root: Path) -> None:
    onnx_model(root / "loc/1", b"not a graph")
    [entry] = [entry for entry in ModelFolder(root).entries("cpu") if entry["model_id"] == "loc:1"]
    assert entry["problem"]
    assert entry["actions"] == ["inference.predict", "predict.batch"]
