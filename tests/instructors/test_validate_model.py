"""`model.validate`: what is sound passes, each thing that is wrong is told, and no step takes long."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from instructors import validate_model
from instructors.catalogue.settings import FILE
from instructors.registry import Registry
from protocol.codec import pack
from protocol.errors import Forbidden, ModelInvalid, ModelNotFound
from protocol.schemas.model_files import ModelValidateResult
from tests.instructors import ldm_layout, onnx_models, tiny, tiny_controlnet, tiny_lora
from tests.instructors.conftest import Desk
from tests.instructors.tensor_files import write
from tests.instructors.test_catalogue_header import _mutate
from tests.instructors.test_catalogue_judge import ESRGAN

Run = Callable[..., ModelValidateResult]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, all of them sound."""
    root = tmp_path_factory.mktemp("models")
    tiny.build(root / "tiny")
    tiny.build(root / "tiny-xl", "sdxl")
    pipeline = DiffusionPipeline.from_pretrained(root / "tiny")
    ldm_layout.write(pipeline, root / "checkpoint.safetensors")
    ldm_layout.write_configs(root / "tiny", root / "configs/tiny")
    (root / "models.toml").write_text('[checkpoint]\nconfig = "tiny"\n')
    tiny_lora.write(root / "loras/line.safetensors", tiny_lora.kohya(tiny_lora.layers(pipeline)))
    tiny_controlnet.build(root / "controlnets/edges", root / "tiny")
    shutil.copytree(root / "tiny/vae", root / "vaes/soft")
    onnx_models.mlp(root / "numbers/model.onnx", (8, 4))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Those, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "models"))


def finish(root: Path, model_id: str, **data: Any) -> ModelValidateResult:
    registry = Registry()
    validate_model.register(registry)
    desk = Desk(root)
    desk.cache_dir = None
    task = registry.make_task("model.validate", {"name" if "/" in model_id else "model_id": model_id, **data}, desk)
    while (result := task.step()) is None:
        pass
    pack(result.data)  # what is told can be sent
    assert str(root) not in json.dumps(result.data)
    return ModelValidateResult.model_validate(result.data)


def codes(result: ModelValidateResult, severity: str = "error") -> list[str]:
    return [issue.code for issue in result.issues if issue.severity == severity]


@pytest.mark.parametrize(
    ("model_id", "kind", "checks"),
    [
        ("tiny", "pipeline", {"config", "components", "weights", "values"}),
        ("tiny-xl", "pipeline", {"config", "components", "weights", "values"}),
        ("checkpoint", "checkpoint", {"configs", "values"}),
        ("models/loras/line.safetensors", "lora", {"lora", "values"}),
        ("models/controlnets/edges", "controlnet", {"weights", "values"}),
        ("models/vaes/soft", "vae", {"weights", "values"}),
        ("numbers", "onnx", {"onnx"}),
        ("models/numbers/model.onnx", "onnx", {"onnx"}),
    ],
)
def test_what_is_sound_passes(made: Path, model_id: str, kind: str, checks: set[str]) -> None:
    found = finish(made, model_id)
    assert (found.type, found.is_valid, found.issues) == (kind, True, [])
    assert {"files", "format", "type", "memory", "deep"} | checks <= found.validation_details.keys()
    status = {name: details["status"] for name, details in found.validation_details.items()}
    assert status.pop("deep") == "skipped"
    assert set(status.values()) == {"passed"}


def test_the_memory_is_that_of_the_weights(made: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(made / "tiny")
    count = sum(
        part.numel() for name in ("unet", "vae", "text_encoder") for part in getattr(pipeline, name).parameters()
    )
    memory = finish(made, "tiny").validation_details["memory"]
    assert memory["cpu_nbytes"] == pytest.approx(4 * count, rel=0.001)
    assert memory["cuda_nbytes"] == memory["cpu_nbytes"] / 2


def config(root: Path, part: str, **fields: Any) -> None:
    file = root / "tiny" / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **fields}))


def tensors(root: Path, part: str, change: Callable[[dict[str, Any]], Any]) -> None:
    file = next((root / "tiny" / part).glob("*.safetensors"))
    found = load_file(file)
    change(found)
    save_file(found, file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


UNET, VAE = "tiny/unet/diffusion_pytorch_model.safetensors", "tiny/vae/diffusion_pytorch_model.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (lambda root: cut(root / UNET), "tensor_bounds"),
    "too long": (lambda root: (root / UNET).write_bytes((root / UNET).read_bytes() + b"x"), "file_length"),
    "empty": (lambda root: (root / UNET).write_bytes(b""), "empty_file"),
    "a pickle under another name": (lambda root: (root / UNET).write_bytes(b"\x80\x04anything"), "pickle"),
    "a pickle beside it": (lambda root: (root / "tiny/unet/x.bin").write_bytes(b"\x80\x04anything"), "pickle"),
    "noise": (lambda root: (root / UNET).write_bytes(bytes(range(256)) * 9), "unknown_format"),
    "NaN": (lambda root: tensors(root, "unet", lambda all: all["conv_in.bias"].fill_(torch.nan)), "not_finite"),
    "no tensor": (lambda root: tensors(root, "unet", lambda all: all.pop("conv_in.bias")), "tensors_missing"),
    "another shape": (lambda root: config(root, "unet", block_out_channels=[8, 32]), "tensor_shape_config"),
    "no component": (lambda root: shutil.rmtree(root / "tiny/vae"), "component_missing"),
    "no weights": (lambda root: (root / VAE).unlink(), "weights_missing"),
    "no config": (lambda root: (root / "tiny/vae/config.json").unlink(), "config_missing"),
    "an empty config": (lambda root: (root / "tiny/vae/config.json").write_text("{}"), "config"),
    "a broken config": (lambda root: (root / "tiny/vae/config.json").write_text("{"), "config"),
    "a broken index": (lambda root: (root / "tiny/model_index.json").write_text("["), "index"),
    "foreign code": (
        lambda root: (root / "tiny/model_index.json").write_text('{"_class_name": "X", "unet": ["os", "system"]}'),
        "foreign_code",
    ),
    "another text encoder": (lambda root: config(root, "text_encoder", hidden_size=48), "text_width"),
    "another VAE": (lambda root: config(root, "vae", latent_channels=16), "latent_channels"),
    "fewer words": (lambda root: config(root, "text_encoder", vocab_size=3), "vocabulary"),
    "a lost shard": (
        lambda root: (root / f"{UNET}.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}'),
        "shards",
    ),
    "an empty list of shards": (lambda root: (root / f"{UNET}.index.json").write_text("[]"), "shards"),
    "no scheduler": (
        lambda root: (root / "tiny/scheduler/scheduler_config.json").rename(root / "tiny/scheduler/x.json"),
        "config_missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_of_a_pipeline_is_told(root: Path, damage: str) -> None:
    change, code = DAMAGE[damage]
    change(root)
    found = finish(root, "tiny")
    assert code in codes(found), found.issues
    assert not found.is_valid
    told = next(issue for issue in found.issues if issue.code == code)
    assert told.message
    assert told.remedy
    assert "failed" in {details["status"] for details in found.validation_details.values()}


def test_a_tensor_too_many_is_a_warning(root: Path) -> None:
    tensors(root, "unet", lambda all: all.update(more=torch.zeros(3)))
    found = finish(root, "tiny")
    assert found.is_valid
    assert codes(found, "warning") == ["tensors_unexpected"]


def test_a_link_out_of_the_folder_is_an_error(root: Path, tmp_path: Path) -> None:
    shutil.move(root / UNET, tmp_path / "elsewhere")
    (root / UNET).symlink_to(tmp_path / "elsewhere")
    assert codes(finish(root, "tiny"))[0] == "files"


BITS = {  # dtype -> (numpy's type for its bits, numbers, how many of them are NaN or infinite)
    "F64": ("<u8", [0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF8000000000001, 0], 2),
    "F32": ("<u4", [0x7F7FFFFF, 0x7F800000, 0xFF800001, 0x80000000], 2),
    "C64": ("<u4", [0x7F7FFFFF, 0x7F800000, 0xFF800001, 0x80000000], 2),
    "F16": ("<u2", [0x7BFF, 0x7C00, 0xFE00, 0x8000], 2),
    "BF16": ("<u2", [0x7F7F, 0x7F80, 0xFFC0, 0x8000], 2),
    "F8_E5M2": ("u1", [0x7B, 0x7C, 0xFE, 0x80], 2),
    "F8_E4M3": ("u1", [0x7E, 0x7F, 0xFF, 0x80], 2),
    "F8_E4M3FNUZ": ("u1", [0x7F, 0x80, 0xFF, 0x00], 1),
    "F8_E5M2FNUZ": ("u1", [0x7F, 0x80, 0xFF, 0x00], 1),
    "F8_E8M0": ("u1", [0x7F, 0xFF, 0xFE, 0x00], 1),
    "I8": ("u1", [0x7F, 0xFF, 0xFE, 0x00], 0),
}


@pytest.mark.parametrize("dtype", BITS)
def test_what_is_no_number_is_found_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    kind, bits, count = BITS[dtype]
    raw = np.array(bits, kind).tobytes()
    file = write(tmp_path / "x.safetensors", {"conv_first.weight": (2 if dtype == "C64" else 4,)}, dtype)
    file.write_bytes(file.read_bytes()[: -len(raw)] + raw)
    found = finish(tmp_path, "x")
    assert found.validation_details["values"]["not_finite"] == count
    assert ("not_finite" in codes(found)) == bool(count)


def test_fp8_as_torch_has_it(tmp_path: Path) -> None:
    """The tables above are of the formats; this is what the library writes."""
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16):
        values = torch.tensor([1.0, torch.nan, 448.0, -0.0]).to(dtype)
        save_file({"x": values}, tmp_path / "x.safetensors")
        assert finish(tmp_path, "x").validation_details["values"]["not_finite"] == 1


def test_large_files_are_looked_at_in_short_steps(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {"a": (40, 1024, 1024), "b": (3,)}, "F16")  # 80 MiB
    with (tmp_path / "x.safetensors").open("r+b") as stream:
        stream.seek(-2, 2)
        stream.write(b"\x00\x7c")
    registry = Registry()
    validate_model.register(registry)
    task, steps = registry.make_task("model.validate", {"model_id": "x"}, Desk(tmp_path)), []
    result = None
    while result is None:
        begun = time.perf_counter()
        result = task.step()
        steps.append(time.perf_counter() - begun)
    assert result.data["validation_details"]["values"]["not_finite"] == 1
    assert len(steps) > 2
    assert sorted(steps)[len(steps) // 2] < 0.2
    assert "skipped" in finish(tmp_path, "x", values=False).validation_details["values"]["status"]


def test_a_file_that_gets_shorter_meanwhile_ends_in_an_issue(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", {"a": (40, 1024, 1024)}, "F16")
    registry = Registry()
    validate_model.register(registry)
    task = registry.make_task("model.validate", {"model_id": "x"}, Desk(tmp_path))
    assert task.step() is None
    with file.open("r+b") as stream:
        stream.truncate(1000)
    while (result := task.step()) is None:
        pass
    assert "unreadable" in [issue["code"] for issue in result.data["issues"]]


def test_mutated_files_never_crash_it(tmp_path: Path) -> None:
    chance, file = random.Random(3), tmp_path / "x.safetensors"
    whole = write(file, ESRGAN).read_bytes()
    valid = 0
    for _ in range(300):
        file.write_bytes(_mutate(whole, chance) or b"x")
        valid += finish(tmp_path, "x").is_valid
    assert valid < 150


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: onnx_models.custom_operator(folder / "model.onnx"), "onnx"),
        (lambda folder: onnx_models.external(folder / "model.onnx", "../../secret.bin"), "onnx"),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), "empty_file"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\x08\x0a\x3a\xff\xff\xff\x7f"), "onnx"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"hello, I am no model"), "unknown_format"),
        (lambda folder: cut(folder / "model.onnx"), "onnx"),
    ],
    ids=["custom operator", "weights elsewhere", "empty", "broken", "text", "cut short"],
)
def test_each_damage_of_an_onnx_model_is_told(root: Path, make: Callable[[Path], Any], code: str) -> None:
    make(root / "numbers")
    found = finish(root, "numbers")
    assert codes(found)[0] == code
    assert not found.is_valid


def test_the_facts_of_an_onnx_model(made: Path) -> None:
    facts = finish(made, "numbers").validation_details["onnx"]
    assert (facts["opset"], facts["external_files"], facts["elements"]) == (21, 0, 8 * 4 + 4)
    assert facts["inputs"] == ["x: float32 [batch, 8]"]
    assert facts["outputs"] == ["y: float32 [batch, 4]"]


def test_a_lora_that_is_not_applied_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "loras/x.safetensors", {"lora_unet_x.lokr_w1": (4, 4), "lora_unet_x.lokr_w2": (4, 4)})
    found = finish(tmp_path, "models/loras/x.safetensors")
    assert (found.type, codes(found)) == ("lora", ["lora"])
    assert "LoKr" in found.issues[0].message


def test_a_checkpoint_without_a_part_is_an_error(made: Path, tmp_path: Path) -> None:
    whole = load_file(made / "checkpoint.safetensors")
    save_file({n: t for n, t in whole.items() if not n.startswith("cond_")}, tmp_path / "x.safetensors")
    (tmp_path / "models.toml").write_text('[x]\nconfig = "sd1"\n')
    assert "part_missing" in codes(finish(tmp_path, "x"))


def test_a_checkpoint_of_a_family_without_configs_says_what_to_do(tmp_path: Path) -> None:
    flux = {"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (4,), "vae.x": (1,)}
    write(tmp_path / "x.safetensors", flux)
    found = finish(tmp_path, "x")
    assert codes(found) == ["configs"]
    assert "models.toml" in found.issues[0].message


def test_what_no_request_uses_is_told(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", ESRGAN)
    found = finish(tmp_path, "x")
    assert found.is_valid
    assert codes(found, "info") == ["not_used"]


@pytest.mark.parametrize("model_id", ["tiny", "tiny-xl", "checkpoint", "numbers"])
def test_deep_runs_it(made: Path, model_id: str) -> None:
    found = finish(made, model_id, deep=True)
    assert found.is_valid
    deep = found.validation_details["deep"]
    assert (deep["status"], deep["ran"]) == ("passed", "one inference" if model_id == "numbers" else "one step")


def test_deep_decodes_with_a_vae(root: Path) -> None:
    deep = finish(root, "models/vaes/soft", deep=True).validation_details["deep"]
    assert (deep["status"], deep["ran"], deep["width"]) == ("passed", "one decode", 16)
    file = root / "vaes/soft/diffusion_pytorch_model.safetensors"
    found = load_file(file)
    found["decoder.conv_out.bias"].fill_(torch.inf)
    save_file(found, file)
    told = finish(root, "models/vaes/soft", deep=True, values=False)
    assert "not numbers" in told.issues[0].message


def test_deep_runs_a_model_made_for_inpainting(tmp_path: Path) -> None:
    tiny.build(tmp_path / "tiny", "sd_inpaint")
    assert finish(tmp_path, "tiny", deep=True).validation_details["deep"]["status"] == "passed"


def test_deep_finds_what_the_files_do_not_tell(root: Path) -> None:
    tensors(root, "unet", lambda all: all["conv_in.bias"].fill_(torch.nan))
    found = finish(root, "tiny", deep=True, values=False)
    assert not found.is_valid
    assert "not numbers" in found.issues[0].message


def test_deep_finds_a_vae_whose_pictures_are_black(root: Path) -> None:
    tensors(root, "vae", lambda all: all["decoder.conv_out.bias"].fill_(torch.nan))
    found = finish(root, "tiny", deep=True, values=False)
    assert not found.is_valid
    assert "VAE" in found.issues[0].message


def test_deep_finds_an_onnx_model_that_makes_no_numbers(tmp_path: Path) -> None:
    onnx_models.affine(tmp_path / "x/model.onnx", 1.0, float("nan"))
    found = finish(tmp_path, "x", deep=True)
    assert not found.is_valid
    assert "not numbers" in found.issues[0].message


def test_deep_is_left_out_where_files_are_wrong_or_it_cannot_run(root: Path) -> None:
    assert finish(root, "models/loras/line.safetensors", deep=True).validation_details["deep"]["status"] == "skipped"
    cut(root / UNET)
    assert "not sound" in finish(root, "tiny", deep=True).validation_details["deep"]["reason"]


NOWHERE = (
    "../outside/secret", "models/../../outside/secret.safetensors", "/etc/passwd", "models//etc/passwd", "nothing",
    "models/.staging/x.safetensors", ".staging/x", "models", "models/", "other/x", "a\\b",
)  # fmt: skip


def test_names_lead_to_nothing_but_what_is_allowed(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside/secret.safetensors", ESRGAN)
    write(root / ".staging/x.safetensors", ESRGAN)
    (root / "linked").symlink_to(tmp_path / "outside")
    for name in NOWHERE:
        with pytest.raises(ModelNotFound):
            finish(root, name)
    for name in ("linked", "models/linked/secret.safetensors"):
        with pytest.raises((Forbidden, ModelNotFound)):
            finish(root, name)
    with pytest.raises(ModelNotFound) as caught:
        finish(root, "tinny")
    assert caught.value.details["nearest"] == "tiny"


def test_folders_that_the_operator_allowed(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "other/up/x.safetensors", ESRGAN)
    (root / FILE).write_text(f'[scan]\nother = "{tmp_path / "other"}"\n')
    assert finish(root, "other/up/x.safetensors").type == "upscaler"
    (root / FILE).write_text("[scan]\nother = 3\n")
    with pytest.raises(ModelInvalid):
        finish(root, "other/up/x.safetensors")


def test_versions_are_named_as_everywhere(made: Path, tmp_path: Path) -> None:
    for version in ("9", "10"):
        shutil.copytree(made / "numbers", tmp_path / "numbers" / version)
    (tmp_path / "numbers/9/model.onnx").write_bytes(b"")
    assert finish(tmp_path, "numbers").is_valid  # the newest
    assert not finish(tmp_path, "numbers:9").is_valid
