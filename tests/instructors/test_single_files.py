"""Checkpoints in one file: they make the pictures of the pipelines they were made of, with no network."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from instructors import single_files
from instructors.models import ModelFolder
from instructors.pipelines import loading, single_file
from instructors.pipelines.single_file import clip_tokenizer
from protocol.errors import ModelInvalid, ModelNotFound
from tests.instructors import ldm_layout, tiny
from tests.instructors.conftest import Desk
from tests.instructors.tensor_files import write

SHIPPED = sorted(folder.parent.name for folder in single_files.SHIPPED.glob("*/model_index.json"))
QUICK = ("sd1", "sd2")  # of the full size, one with each text encoder; SDXL takes half a minute


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines, their checkpoints as `<family>-file`, and the configs of each."""
    root = tmp_path_factory.mktemp("models")
    settings = ""
    for family in ("sd", "sd2", "sdxl", "sd_inpaint"):
        folder = tiny.build(root / family, "sd" if family == "sd2" else family)
        pipeline = DiffusionPipeline.from_pretrained(folder)
        if family == "sdxl":
            _widen(pipeline)
            pipeline.save_pretrained(folder)
        ldm_layout.write(pipeline, root / f"{family}-file.safetensors", is_sd2=family == "sd2")
        ldm_layout.write_configs(folder, root / "configs" / family)
        settings += f'["{family}-file"]\nconfig = "{family}"\n'
    (root / "models.toml").write_text(settings)
    return root


def _widen(pipeline: Any) -> None:
    """The second text encoder: by their widths the library tells which of the two is which."""
    torch.manual_seed(1)
    told = {**pipeline.text_encoder_2.config.to_dict(), "hidden_size": 48}
    pipeline.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**told))
    width = pipeline.text_encoder.config.hidden_size + 48
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "cross_attention_dim": width})


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub fails at once, and loudly."""

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(single_file_utils, "fetch_diffusers_config", refuse)
    monkeypatch.setattr("diffusers.loaders.single_file.fetch_diffusers_config", refuse)
    monkeypatch.setattr("diffusers.loaders.single_file._download_diffusers_model_config_from_hub", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", refuse)


def painted(loaded: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        image = loaded(prompt="a red circle", num_inference_steps=3, generator=generator).images[0]
    return np.asarray(image)


@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_it_makes_the_pictures_of_the_pipeline_it_came_from(root: Path, family: str) -> None:
    desk = Desk(root)
    stock = DiffusionPipeline.from_pretrained(root / family)
    stock.set_progress_bar_config(disable=True)
    model = desk.models.pipeline(f"{family}-file")
    made = loading._pipeline(model, torch.float32, {})
    expected = painted(stock)
    assert expected.std() > 1  # there is something to be equal to
    assert np.array_equal(painted(made), expected)


@pytest.mark.parametrize(("family", "encoders"), [("sd2", 1), ("sdxl", 2)])
def test_every_tensor_is_loaded_as_it_stood(root: Path, family: str, encoders: int) -> None:
    """What is small in a tensor would not show in tiny pictures."""
    made = loading._pipeline(ModelFolder(root).pipeline(f"{family}-file"), torch.float32, {})
    stock = DiffusionPipeline.from_pretrained(root / family)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2")[: 2 + encoders]:
        want, have = getattr(stock, name).state_dict(), getattr(made, name).state_dict()
        assert want.keys() == have.keys()
        assert all(torch.equal(want[key], have[key]) for key in want), name


def test_requests_name_it_like_any_model(root: Path) -> None:
    folder = ModelFolder(root)
    files = [f"{family}{file}" for family in ("sd", "sd2", "sd_inpaint", "sdxl") for file in ("", "-file")]
    assert folder.names() == files
    file, whole = folder.find("sd-file"), folder.find("sd")
    assert file.family == whole.family == "stable_diffusion"
    assert file.actions == whole.actions
    assert file.nbytes("cpu", folder.settings("sd-file")) == whole.nbytes("cpu", folder.settings("sd"))
    assert folder.find("sd_inpaint-file").actions == ["inference.inpainting"]
    assert folder.find("sd-file.safetensors").model_id == "sd-file"


def test_a_checkpoint_in_a_folder_of_its_own_and_in_versions(root: Path, tmp_path: Path) -> None:
    for place in ("alone/checkpoint.safetensors", "many/1.0/x.safetensors", "many/2.0/x.safetensors"):
        (tmp_path / place).parent.mkdir(parents=True)
        shutil.copyfile(root / "sd-file.safetensors", tmp_path / place)
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "models.toml").write_text('["*"]\nconfig = "sd"\n')
    write(tmp_path / "Lora/only.safetensors", {"x.lora_down.weight": (2, 3), "x.lora_up.weight": (3, 2)})
    folder = ModelFolder(tmp_path)
    assert folder.names() == ["alone", "many:1.0", "many:2.0"]
    assert folder.find("many").model_id == "many:2.0"
    assert loading._pipeline(folder.find("alone"), torch.float32, {}).unet is not None


def test_other_configs_make_another_model(root: Path, tmp_path: Path) -> None:
    shutil.copyfile(root / "sd-file.safetensors", tmp_path / "x.safetensors")
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "models.toml").write_text('[x]\nconfig = "sd"\n')
    before = ModelFolder(tmp_path).find("x").content_hash
    scheduler = tmp_path / "configs/sd/scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("epsilon", "v_prediction"))
    assert ModelFolder(tmp_path).find("x").content_hash != before


def test_v_prediction_is_told_to_the_scheduler(root: Path, tmp_path: Path) -> None:
    tensors = load_file(root / "sd-file.safetensors")
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "x.safetensors")
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "models.toml").write_text('[x]\nconfig = "sd"\n')
    made = loading._pipeline(ModelFolder(tmp_path).find("x"), torch.float32, {})
    assert made.scheduler.config.prediction_type == "v_prediction"
    assert made.scheduler.config.rescale_betas_zero_snr is True


FLUX = {"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (4,), "vae.encoder.x": (1,)}
PICKLE = b"\x80\x04anything"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("", "configs of flux schnell are not shipped.*models.toml"),
        ("config = 'flux'", "no pipeline's model_index.json in configs/flux"),
        ("config = '../flux'", "no name of a folder"),
    ],
)
def test_families_without_shipped_configs_say_what_to_give(tmp_path: Path, settings: str, match: str) -> None:
    write(tmp_path / "x.safetensors", FLUX)
    (tmp_path / "models.toml").write_text(f"[x]\n{settings}\n")
    with pytest.raises(ModelInvalid, match=match):
        ModelFolder(tmp_path).find("x")


def test_configs_with_a_pickle_or_code_of_their_own_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copyfile(root / "sd-file.safetensors", tmp_path / "x.safetensors")
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "models.toml").write_text('[x]\nconfig = "sd"\n')
    pickle = tmp_path / "configs/sd/text_encoder/pytorch_model.bin"
    pickle.write_bytes(PICKLE)
    with pytest.raises(ModelInvalid, match="pickle"):
        ModelFolder(tmp_path).find("x")
    pickle.unlink()
    index = tmp_path / "configs/sd/model_index.json"
    index.write_text(index.read_text().replace('"diffusers"', '"elsewhere"', 1))
    with pytest.raises(ModelInvalid, match="code of its own"):
        ModelFolder(tmp_path).find("x")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda file: file.write_bytes(PICKLE), "pickle"),
        (lambda file: file.write_bytes(b""), "whole safetensors"),
        (lambda file: write(file, {"x.lora_down.weight": (2, 3), "x.lora_up.weight": (3, 2)}), "but: lora"),
        (lambda file: write(file, {"weight": (2, 3)}), "but: unknown"),
    ],
)
def test_files_that_are_no_checkpoint_say_what_they_are(
    tmp_path: Path, make: Callable[[Path], Any], match: str
) -> None:
    make(tmp_path / "x.safetensors")
    folder = ModelFolder(tmp_path)
    assert folder.names() == ["x"]
    with pytest.raises(ModelInvalid, match=match):
        folder.find("x")
    with pytest.raises(ModelNotFound):
        folder.find("y")


def test_a_checkpoint_without_its_text_encoder_does_not_load(root: Path, tmp_path: Path) -> None:
    tensors = load_file(root / "sd-file.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("cond_stage_model.")}
    save_file(kept, tmp_path / "x.safetensors")
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "models.toml").write_text('[x]\nconfig = "sd"\n')
    desk = Desk(tmp_path)
    with pytest.raises(ModelInvalid, match="do not make"):
        loading.load(desk.models.find("x"), desk.models.settings("x"), desk)


# The numbers of weights that these models were published with.
UNETS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}
TEXTS = {"sd1": 123_060_480, "sd2": 340_387_840, "sdxl": 123_060_480}
VAE = 83_653_863
SECOND_TEXT = 694_659_840
MORE_CHANNELS = 5 * 320 * 9  # of an inpainting model's first convolution


def on_meta(config: str, part: str, kind: Any) -> Any:
    told = json.loads((single_files.SHIPPED / config / part / "config.json").read_bytes())
    with torch.device("meta"):
        return kind.from_config(told)


def text_on_meta(config: str, part: str) -> Any:
    import transformers

    folder = single_files.SHIPPED / config / part
    name = json.loads((folder / "config.json").read_bytes())["architectures"][0]
    with torch.device("meta"):
        return getattr(transformers, name)(transformers.CLIPTextConfig.from_pretrained(folder))


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("config", SHIPPED)
def test_shipped_configs_make_models_of_the_published_size(config: str) -> None:
    family, _, purpose = config.partition("-")
    more = MORE_CHANNELS if purpose == "inpainting" else 0
    assert count(on_meta(config, "unet", UNet2DConditionModel)) == UNETS[family] + more
    assert count(on_meta(config, "vae", AutoencoderKL)) == VAE
    assert count(text_on_meta(config, "text_encoder")) == TEXTS[family]
    if family == "sdxl":
        assert count(text_on_meta(config, "text_encoder_2")) == SECOND_TEXT


@pytest.mark.parametrize("config", SHIPPED)
def test_published_layouts_convert_by_the_shipped_configs(config: str) -> None:
    """Tensors without content, of the full size: each gets its name and shape."""
    unet = on_meta(config, "unet", UNet2DConditionModel)
    told = {f"model.diffusion_model.{name}": tensor for name, tensor in ldm_layout.unet(unet).items()}
    converted = single_file_utils.convert_ldm_unet_checkpoint(told, dict(unet.config))
    assert shapes(converted) == shapes(unet.state_dict())
    vae = on_meta(config, "vae", AutoencoderKL)
    told |= {f"first_stage_model.{name}": tensor for name, tensor in ldm_layout.vae(vae).items()}
    converted = single_file_utils.convert_ldm_vae_checkpoint(told, dict(vae.config))
    assert converted.keys() == vae.state_dict().keys()
    if config.startswith("sdxl"):
        told["conditioner.embedders.0.x"] = torch.zeros(1)
    elif config.startswith("sd2"):
        told["cond_stage_model.model.x"] = torch.zeros(1)
    kind = single_files.judge.judge({name: tuple(tensor.shape) for name, tensor in told.items()}, told_of(config))
    assert (kind.type, kind.family) == ("checkpoint", config.partition("-")[0])
    assert single_files.config_folder(kind, Path(), None).name == config


def told_of(config: str) -> dict[str, str]:
    return {"modelspec.prediction_type": "epsilon"} if config == "sd2-base" else {}


def shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


TEXTS_WITH_TOKENS = {  # as CLIP's own tokenizer splits them
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "hello world": [3306, 1002],
    "A Photo, of CATS!! naïve 123": [320, 1125, 267, 539, 3989, 748, 1097, 35689, 563, 272, 273, 274],
}


@pytest.mark.parametrize("text", TEXTS_WITH_TOKENS)
def test_the_shipped_vocabulary_is_that_of_clip(text: str) -> None:
    tokenizer = clip_tokenizer("<|endoftext|>")
    assert len(tokenizer) == 49_408
    assert tokenizer(text).input_ids == [49_406, *TEXTS_WITH_TOKENS[text], 49_407]


def test_texts_are_filled_up_as_each_encoder_was_trained() -> None:
    first, second = (partial(clip_tokenizer(pad), "a", padding="max_length") for pad in ("<|endoftext|>", "!"))
    assert first().input_ids == [49_406, 320, *[49_407] * 75]
    assert second().input_ids == [49_406, 320, 49_407, *[0] * 74]


def test_what_is_shipped_is_small_and_names_its_licence() -> None:
    assert sum(file.stat().st_size for file in single_files.SHIPPED.rglob("*") if file.is_file()) < 2_000_000
    assert "Copyright (c) 2021 OpenAI" in (single_files.SHIPPED / "clip/LICENSE").read_text()


@pytest.mark.parametrize(
    "config", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED]
)
def test_a_checkpoint_of_the_full_size_becomes_a_pipeline(config: str, tmp_path: Path) -> None:
    """All numbers are zero and the file is sparse: it takes neither disk nor time, and no tensor may be left out."""
    parts = {"unet": on_meta(config, "unet", UNet2DConditionModel), "vae": on_meta(config, "vae", AutoencoderKL)}
    texts = ["text_encoder", "text_encoder_2"] if config.startswith("sdxl") else ["text_encoder"]
    parts |= {name: text_on_meta(config, name) for name in texts}
    tensors = ldm_layout.checkpoint(parts, is_sd2=config.startswith("sd2"))
    file = write(tmp_path / "x.safetensors", shapes(tensors), "F16", told_of(config))
    found = single_files.read(file, tmp_path, None)
    assert found.config.name == config
    made = single_file.pipeline(found, torch.float16, {})
    assert made.scheduler.config.prediction_type == ("v_prediction" if config == "sd2" else "epsilon")
    assert made.tokenizer.pad_token == ("!" if config.startswith("sd2") else "<|endoftext|>")
    for name, part in parts.items():
        state = getattr(made, name).state_dict()
        assert shapes(state) == shapes(part.state_dict())
        assert not any(tensor.is_meta for tensor in state.values())
    assert found.elements() == {name: count(part) for name, part in parts.items()}
