"""What files of tensors are, by their names and shapes: layouts as they are written by their trainers and libraries."""

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from instructors.catalogue import content, header, judge
from instructors.catalogue.judge import Kind
from protocol.limits import MIB
from tests.instructors import tiny, tiny_lora
from tests.instructors.tensor_files import write

Shapes = dict[str, tuple[int, ...]]


def ldm(width: int, channels: int = 4) -> Shapes:
    """A UNet in the original layout, with its prefix."""
    return {
        "model.diffusion_model.input_blocks.0.0.weight": (4, channels, 3, 3),
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (4,),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, width),
    }


VAE = {
    "first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3),
    "first_stage_model.decoder.mid.block_1.norm1.weight": (4,),
}
CLIP = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": (4,)}
FLUX = {"double_blocks.0.img_attn.norm.key_norm.scale": (4,), "img_in.weight": (4, 64)}
ESRGAN = {"conv_first.weight": (8, 3, 3, 3), "body.0.rdb1.conv1.weight": (4, 8, 3, 3), "conv_up1.weight": (8, 8, 3, 3)}
OLD_ESRGAN = {"model.0.weight": (8, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (4, 8, 3, 3)}
CASES: list[tuple[str, Shapes, Kind]] = [
    ("sd1", {**ldm(768), **VAE, **CLIP}, Kind("checkpoint", "sd1")),
    ("sd1 inpainting", {**ldm(768, 9), **VAE, **CLIP}, Kind("checkpoint", "sd1", ("inpainting",))),
    ("pix2pix", {**ldm(768, 8), **VAE, **CLIP}, Kind("checkpoint", "sd1", ("pix2pix",))),
    ("sd2", {**ldm(1024), **VAE}, Kind("checkpoint", "sd2")),
    ("sd2 depth", {**ldm(1024, 5), **VAE}, Kind("checkpoint", "sd2", ("depth",))),
    ("x4 upscaler", {**ldm(1024, 7), **VAE}, Kind("checkpoint", "sd2", ("upscaler",))),
    ("sdxl", {**ldm(2048), **VAE, "conditioner.embedders.0.x": (1,)}, Kind("checkpoint", "sdxl")),
    ("sdxl inpainting", {**ldm(2048, 9), **VAE}, Kind("checkpoint", "sdxl", ("inpainting",))),
    ("refiner", {**ldm(1280), **VAE}, Kind("checkpoint", "sdxl", ("refiner",))),
    ("v-prediction by a mark", {**ldm(2048), **VAE, "v_pred": ()}, Kind("checkpoint", "sdxl", ("v_prediction",))),
    ("a UNet alone", ldm(768), Kind("diffusion_model", "sd1")),
    ("flux schnell", FLUX, Kind("diffusion_model", "flux", ("schnell",))),
    ("flux dev", {**FLUX, "guidance_in.in_layer.bias": (4,)}, Kind("diffusion_model", "flux", ("dev",))),
    ("flux fill", {**FLUX, "img_in.weight": (4, 384)}, Kind("diffusion_model", "flux", ("inpainting",))),
    (
        "flux with its encoders",
        {**{f"model.diffusion_model.{name}": shape for name, shape in FLUX.items()}, "vae.encoder.x": (1,)},
        Kind("checkpoint", "flux", ("schnell",)),
    ),
    ("sd3", {"joint_blocks.0.context_block.adaLN_modulation.1.bias": (4,)}, Kind("diffusion_model", "sd3")),
    ("esrgan", ESRGAN, Kind("upscaler", "esrgan")),
    ("old esrgan", OLD_ESRGAN, Kind("upscaler", "esrgan")),
    ("compact", {"body.0.weight": (8, 3, 3, 3), "body.1.weight": (8,)}, Kind("upscaler", "compact")),
    ("embedding", {"emb_params": (4, 768)}, Kind("textual_inversion", "sd1")),
    ("embedding of a library", {"<cat>": (1024,)}, Kind("textual_inversion", "sd2")),
    ("embedding for two encoders", {"clip_l": (2, 768), "clip_g": (2, 1280)}, Kind("textual_inversion", "sdxl")),
    ("vae", VAE, Kind("vae")),
    ("t5", {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 8)}, Kind("text_encoder", "t5")),
    ("original controlnet", {"control_model.input_hint_block.0.weight": (4,),
                             "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, 768)},
     Kind("controlnet", "sd1")),
    ("flux controlnet", {"controlnet_x_embedder.weight": (4, 4)}, Kind("controlnet", "flux")),
    ("lokr", {"lora_unet_x.lokr_w1": (4, 4)}, Kind("lora")),
    ("flux lora", {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, Kind("lora", "flux")),
    ("nothing", {"weight": (3, 4)}, Kind("unknown")),
    ("no tensors", {}, Kind("unknown")),
]  # fmt: skip


@pytest.mark.parametrize(("shapes", "kind"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_kinds(shapes: Shapes, kind: Kind) -> None:
    found = judge.judge(shapes)
    assert (found.type, found.family, found.variants) == (kind.type, kind.family, kind.variants)


@pytest.mark.parametrize(
    ("told", "variants"),
    [("v", ("v_prediction",)), ("v_prediction", ("v_prediction",)), ("epsilon", ("epsilon",)), ("else", ())],
)
def test_what_it_predicts_as_the_file_tells(told: str, variants: tuple[str, ...]) -> None:
    assert judge.judge({**ldm(1024), **VAE}, {"modelspec.prediction_type": told}).variants == variants


@pytest.mark.parametrize(("ups", "channels", "scale"), [((1, 2), 3, 4), ((1, 2), 12, 2), ((1, 2, 3), 3, 8)])
def test_the_scale_of_an_upscaler(ups: tuple[int, ...], channels: int, scale: int) -> None:
    shapes = {"conv_first.weight": (8, channels, 3, 3), "body.0.rdb1.conv1.weight": (4, 8, 3, 3)}
    assert judge.judge({**shapes, **{f"conv_up{up}.weight": (8, 8, 3, 3) for up in ups}}).facts == {"scale": scale}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in ("sd", "sdxl", "sd3", "sd_inpaint"):
        tiny.build(root / family, family)
    return root


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("sd", ("pipeline", "sd1", ())),
        ("sdxl", ("pipeline", "sdxl", ())),
        ("sd3", ("pipeline", "sd3", ())),
        ("sd_inpaint", ("pipeline", "sd1", ("inpainting",))),
    ],
)
def test_pipelines_of_the_library(pipelines: Path, folder: str, expected: tuple[Any, ...]) -> None:
    found = content.of_folder(pipelines / folder, pipelines)
    assert (found.type, found.family, found.variants) == expected
    assert (found.format, found.dtype, found.problem) == ("diffusers", "float32", None)
    assert found.nbytes == sum(file.stat().st_size for file in (pipelines / folder).rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("part", "kind"), [("unet", "diffusion_model"), ("vae", "vae"), ("text_encoder", "text_encoder")]
)
def test_components_of_the_library(pipelines: Path, part: str, kind: str) -> None:
    folder = pipelines / "sd" / part
    assert content.is_model_folder({file.name for file in folder.iterdir()}, folder)
    found = content.of_folder(folder, pipelines)
    assert (found.type, found.dtype, found.problem) == (kind, "float32", None)
    alone = next(folder.glob("*.safetensors"))
    by_itself = content.of_file(alone)
    assert by_itself is not None
    assert by_itself.type == kind  # the config only adds the class


@pytest.mark.parametrize("layout", tiny_lora.LAYOUTS)
def test_loras_in_every_layout(pipelines: Path, tmp_path: Path, layout: str) -> None:
    from diffusers import DiffusionPipeline

    made = tiny_lora.LAYOUTS[layout](tiny_lora.layers(DiffusionPipeline.from_pretrained(pipelines / "sd"), rank=4))
    found = content.of_file(tiny_lora.write(tmp_path / "x.safetensors", made))
    assert found is not None
    assert (found.type, found.facts, found.dtype) == ("lora", {"rank": 4}, "float32")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3"])
def test_the_dtype_is_that_of_most_bytes(tmp_path: Path, dtype: str) -> None:
    found = content.of_file(write(tmp_path / "x.bin", {**ldm(768), **VAE}, dtype))
    assert found is not None
    assert found.dtype == header.NAMES[dtype]


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.txt", "x"])
def test_no_suffix_is_believed(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"\x80\x04\x95" + bytes(20))
    found = content.of_file(file)
    assert found is not None
    assert (found.type, found.problem) == ("pickle", "It is a pickle, and those run code.")
    write(file, ldm(768))
    found = content.of_file(file)
    assert found is not None
    assert (found.type, found.format) == ("diffusion_model", "safetensors")


@pytest.mark.timeout(10)
def test_a_zip_with_a_huge_directory_is_told_at_once(tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 500_000
    ends = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, count * len(entry), 4)
    last = struct.pack("<IQI", 0, 4 + count * len(entry), 1)
    file = tmp_path / "bomb.zip"
    file.write_bytes(
        b"PK\x03\x04" + entry * count + b"PK\x06\x06" + ends + b"PK\x06\x07" + last + b"PK\x05\x06" + bytes(18)
    )
    tracemalloc.start()
    try:
        begun = time.perf_counter()
        assert content.of_file(file) is None
        assert time.perf_counter() - begun < 0.5
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()


def test_zips_are_pickles_only_with_a_pickle_in_them(tmp_path: Path) -> None:
    import numpy as np
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "y.npz", a=np.zeros(3))
    found = content.of_file(tmp_path / "x.safetensors")
    assert found is not None
    assert found.type == "pickle"
    assert "safetensors" in (found.remedy or "")
    assert content.of_file(tmp_path / "y.npz") is None


def test_a_damaged_file_tells_what_is_wrong(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.safetensors", ldm(768)).read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-7])
    found = content.of_file(tmp_path / "x.safetensors")
    assert found is not None
    assert found.type == "unknown"
    assert "7 bytes after the file" in (found.problem or "")
    assert found.remedy


def test_files_of_no_model_are_none(tmp_path: Path) -> None:
    for number, raw in enumerate(
        (b"\x89PNG\r\n\x1a\n" + bytes(50), b'{"a": 1, "b": {"c": 2}}', b"1234567 {not a header", b"")
    ):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(raw)
        assert content.of_file(file) is None


def test_a_pipeline_with_pickles_alone_is_not_usable(pipelines: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(pipelines / "sd", tmp_path / "sd")
    for file in (tmp_path / "sd").rglob("*.safetensors"):
        file.with_suffix(".bin").write_bytes(b"\x80\x02anything at all")
        file.unlink()
    found = content.of_folder(tmp_path / "sd", tmp_path)
    assert "pickles" in (found.problem or "")
    assert found.family == "sd1"
