"""What is told of a LoRA from its header alone, and which files are refused."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from instructors import lora_files
from instructors.lora_files import LoraFolder
from protocol.errors import Forbidden, ModelInvalid, ModelNotFound
from protocol.schemas.lora import LoraInfo

TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = f"lora_unet_{TO_K.replace('.', '_')}"
OTHER = {"lora_unet_conv_in.lora_down.weight": (4, 4), "lora_unet_conv_in.lora_up.weight": (4, 4)}


@pytest.fixture
def folder(tmp_path: Path) -> LoraFolder:
    (tmp_path / "loras").mkdir()
    return LoraFolder(tmp_path)


def write(
    folder: LoraFolder, shapes: dict[str, tuple[int, ...]], name: str = "some", metadata: dict[str, str] | None = None
) -> Path:
    assert folder.models is not None
    path = folder.models / "loras" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: numpy.zeros(shape, numpy.float16) for key, shape in shapes.items()}, path, metadata)
    return path


def kohya(width: int = 768, rank: int = 4) -> dict[str, tuple[int, ...]]:
    return {f"{KOHYA}.lora_down.weight": (rank, width), f"{KOHYA}.lora_up.weight": (64, rank), f"{KOHYA}.alpha": ()}


def test_what_the_header_tells(folder: LoraFolder) -> None:
    shapes = kohya() | {
        "lora_unet_mid_block_resnets_0_conv1.lora_down.weight": (8, 64, 3, 3),
        "lora_unet_mid_block_resnets_0_conv1.lora_up.weight": (64, 8, 1, 1),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (2, 768),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (3072, 2),
    }
    tags = {"10_hollow": {"hollow": 40, "ring": 12}, "2_more": {"ring": 30, "a\x00b": 1}}
    path = write(folder, shapes, metadata={"ss_tag_frequency": json.dumps(tags), "ss_base_model_version": "sd_v1"})
    file = folder.find("some")
    assert (file.layout, file.ranks, file.base_model) == ("kohya", (2, 4, 8), "SD 1")
    assert file.targets == {"text_encoder": ("feed_forward",), "unet": ("attention", "convolution")}
    assert file.trigger_words == ("ring", "hollow")
    assert file.nbytes == path.stat().st_size
    assert file.elements == sum(numpy.prod(shape, dtype=int) for shape in shapes.values())
    info = LoraInfo.model_validate(file.to_wire())
    assert (info.format, info.rank, info.targets) == ("kohya", 8, ["text_encoder", "unet"])


@pytest.mark.parametrize(
    ("shapes", "layout", "base_model"),
    [
        (kohya(1024), "kohya", "SD 2"),
        (kohya(2048), "kohya", "SDXL"),
        ({f"unet.{TO_K}.lora_A.weight": (4, 2048), f"unet.{TO_K}.lora_B.weight": (64, 4)}, "peft", "SDXL"),
        (
            {
                f"unet.{TO_K.replace('.to_k', '.processor.to_k_lora')}.down.weight": (4, 768),
                f"unet.{TO_K.replace('.to_k', '.processor.to_k_lora')}.up.weight": (64, 4),
            },
            "diffusers",
            "SD 1",
        ),
        (
            {
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 64),
                "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (64, 4),
            },
            "kohya",
            "Flux",
        ),
    ],
)
def test_layout_and_base_model(
    folder: LoraFolder, shapes: dict[str, tuple[int, ...]], layout: str, base_model: str
) -> None:
    write(folder, shapes)
    file = folder.find("some")
    assert (file.layout, file.base_model) == (layout, base_model)


@pytest.mark.parametrize(
    ("metadata", "base_model"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD 1"),
        ({"modelspec.architecture": "Stable-Diffusion-XL-v1-base/lora"}, "SDXL"),
        ({"ss_base_model_version": "something new"}, None),
        ({}, None),
    ],
)
def test_what_the_shapes_do_not_prove_its_trainer_may_tell(
    folder: LoraFolder, metadata: dict[str, str], base_model: str | None
) -> None:
    write(folder, kohya(width=32), metadata=metadata)
    assert folder.find("some").base_model == base_model


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "hollow, ring "}, ("hollow", "ring")),
        ({"modelspec.trigger_phrase": "x" * 500}, ("x" * 100,)),
        ({"ss_tag_frequency": json.dumps({"f": {f"tag {n}": 100 - n for n in range(50)}})}, 20),
        ({"ss_tag_frequency": "not JSON"}, ()),
        ({"ss_tag_frequency": "[" * 100_000}, ()),
        ({"ss_tag_frequency": json.dumps({"f": {"tag": "many"}})}, ()),
        ({"ss_tag_frequency": '{"f": {"tag": Infinity}}'}, ()),
        ({"ss_tag_frequency": "[1, 2]"}, ()),
    ],
)
def test_trigger_words(folder: LoraFolder, metadata: dict[str, str], words: tuple[str, ...] | int) -> None:
    write(folder, kohya(), metadata=metadata)
    found = folder.find("some").trigger_words
    assert len(found) == words if isinstance(words, int) else found == words


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({f"{KOHYA}.lokr_w1": (4, 4), f"{KOHYA}.lokr_w2": (4, 4)}, "is a LoKr"),
        ({f"{KOHYA}.hada_w1_a": (4, 4), f"{KOHYA}.hada_w1_b": (4, 4)}, "is a LoHa"),
        (kohya() | {f"{KOHYA}.dora_scale": (64, 1)}, "is a DoRA"),
        ({f"unet.{TO_K}.lora_A.weight": (4, 8), f"unet.{TO_K}.lora_magnitude_vector": (8,)}, "is a DoRA"),
        (kohya() | {f"{KOHYA}.lora_mid.weight": (4, 4, 3, 3)}, "Tucker"),
        ({f"base_model.model.{TO_K}.lora_A.weight": (4, 8)}, "is a checkpoint of peft's own"),
        ({"model.weight": (4, 4)}, "is not a LoRA of kohya, diffusers or peft"),
        (
            {name: shape for name, shape in kohya().items() if "up" not in name},
            "Half of this LoRA's layer .* is missing",
        ),
        (OTHER | {f"{KOHYA}.lora_up.weight": (64, 4)}, "Half of this LoRA's layer .* is missing"),
        (kohya() | {f"{KOHYA}.lora_up.weight": (64, 5)}, "do not have one rank"),
        (kohya(rank=0), "do not have one rank"),
        (kohya() | {f"{KOHYA}.lora_down.weight": (4,)}, "do not have one rank"),
        (kohya() | {"surprise": (1,)}, "a tensor of no known use: 'surprise'"),
        (kohya() | {"x" * 501: (1,)}, "names have up to 500 letters"),
        ({}, "up to 20000 tensors"),
    ],
)
def test_files_that_are_refused(folder: LoraFolder, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    write(folder, shapes)
    with pytest.raises(ModelInvalid, match=message):
        folder.find("some")
    assert LoraInfo.model_validate(folder.entry("some")).problem


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("some.safetensors", pickle.dumps({"weight": 1})),
        ("some.safetensors", b"PK\x03\x04" + bytes(100)),
        ("some.safetensors", b""),
        ("some.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
        ("some.safetensors", (40).to_bytes(8, "little") + b"[" * 40),
        ("some.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("some.pt", pickle.dumps({"weight": 1})),
        ("some.ckpt", b"anything"),
    ],
)
def test_pickles_and_damaged_files_are_refused(folder: LoraFolder, name: str, content: bytes) -> None:
    assert folder.models is not None
    (folder.models / "loras" / name).write_bytes(content)
    with pytest.raises(ModelInvalid) as caught:
        folder.find("some")
    assert str(folder.models) not in caught.value.message


def test_a_cut_off_file_is_refused(folder: LoraFolder) -> None:
    path = write(folder, kohya())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelInvalid, match="not a whole safetensors file"):
        folder.find("some")


def test_a_header_without_end_is_refused(folder: LoraFolder) -> None:
    write(folder, kohya(), metadata={"ss_dataset_dirs": "x" * (lora_files.HEADER_BYTES_MAX + 1)})
    with pytest.raises(ModelInvalid, match="header has more than 16 MiB"):
        folder.find("some")


@pytest.mark.parametrize("settings", ["not JSON", "[1]", '{"unet.use_dora": true}', "[" * 100_000])
def test_settings_that_cannot_be_followed_are_refused(folder: LoraFolder, settings: str) -> None:
    write(folder, kohya(), metadata={"lora_adapter_metadata": settings})
    with pytest.raises(ModelInvalid):
        folder.find("some")


def test_names(folder: LoraFolder, tmp_path: Path) -> None:
    write(folder, kohya(), "hollow")
    write(folder, kohya(), "in_a_folder/weights")
    write(folder, kohya(), "two/a")
    write(folder, kohya(), "two/b")
    write(folder, kohya(), "not a name")
    (tmp_path / "loras" / "readme.txt").write_text("no LoRA")
    assert folder.names() == ["hollow", "in_a_folder"]
    assert folder.find("in_a_folder").lora_id == "in_a_folder"
    for name in ("holow", "../hollow", "two", "", "hollow/../hollow", "a" * 300, "loras"):
        with pytest.raises(ModelNotFound):
            folder.find(name)
    with pytest.raises(ModelNotFound) as caught:
        folder.find("holow")
    assert caught.value.details == {"known": ["hollow", "in_a_folder"], "nearest": "hollow"}


def test_no_folder_has_no_loras(tmp_path: Path) -> None:
    for folder in (LoraFolder(None), LoraFolder(tmp_path), LoraFolder(tmp_path / "missing")):
        assert folder.names() == []
        with pytest.raises(ModelNotFound):
            folder.find("some")


def test_a_link_out_of_the_folder_is_refused(
    folder: LoraFolder, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = write(LoraFolder(tmp_path_factory.mktemp("elsewhere")), kohya())
    (tmp_path / "loras" / "link.safetensors").symlink_to(target)
    (tmp_path / "loras" / "linked").symlink_to(target.parent)
    with pytest.raises(Forbidden, match="leads out of the model folder"):
        folder.find("link")
    with pytest.raises(ModelNotFound):
        folder.find("linked")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "loras").symlink_to(target.parent)
    with pytest.raises(Forbidden):
        LoraFolder(tmp_path / "all").find("some")
    assert folder.names() == ["link"]
    assert folder.entry("link")["nbytes"] == 0


def test_a_file_that_cannot_be_read_costs_the_list_nothing(folder: LoraFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, kohya())

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(lora_files, "read", refuse)
    assert "cannot be read" in folder.entry("some")["problem"]
    assert str(path) not in folder.entry("some")["problem"]


def test_a_changed_file_is_read_again_and_one_that_is_not_is_not(folder: LoraFolder) -> None:
    write(folder, kohya())
    first = folder.find("some")
    assert folder.find("some") is first
    before = first.content_hash
    write(folder, kohya(rank=8))
    assert folder.find("some").content_hash != before
    assert folder.find("some").ranks == (8,)


def test_listing_imports_no_library_that_computes() -> None:
    code = "import sys, instructors.lora_files; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
