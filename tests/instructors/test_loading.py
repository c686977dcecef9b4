"""What models share in memory, and how `models.toml` says they are loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from instructors.models import ModelFolder
from instructors.numerics import fingerprint
from instructors.task import Context
from protocol.errors import ModelInvalid
from tests.instructors import tiny
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import difference, open_image


@pytest.fixture
def twins(tiny_root: Path, tmp_path: Path) -> Path:
    """Two models with the same components, but for one number in the other's UNet."""
    from safetensors.torch import load_file, save_file

    for name in ("one", "other"):
        shutil.copytree(tiny_root / "tiny", tmp_path / name)
    weights = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1
    save_file(tensors, weights, metadata={"format": "pt"})
    return tmp_path


def picture(registry: Any, desk: Context, **data: Any) -> bytes:
    task = registry.make_task("inference.text2img", {"prompt": "a", "steps": 2, "seed": 1, **data}, desk)
    while (result := task.step()) is None:
        pass
    return files(result)[0]


def test_components_of_equal_content_are_loaded_once(registry: Any, twins: Path) -> None:
    desk = Desk(twins)
    one = picture(registry, desk, model_id="one")
    other = picture(registry, desk, model_id="other")
    first, second = (value._pipeline for value in desk._loaded.values())
    assert first.vae is second.vae
    assert first.text_encoder is second.text_encoder
    assert first.unet is not second.unet
    assert one != other
    assert other == picture(registry, Desk(twins), model_id="other")  # as if it had been loaded alone


def test_an_encoder_that_leaves_the_device_leaves_no_results_there(registry: Any, twins: Path) -> None:
    desk = Desk(twins)
    before = picture(registry, desk, model_id="one")
    [loaded] = desk._loaded.values()
    remembering = loaded.component("text_encoder").forward
    assert remembering._nbytes > 0
    for part in loaded.parts.values():
        part.move("cpu")
    assert (remembering._nbytes, len(remembering._known)) == (0, 0)
    assert picture(registry, desk, model_id="one") == before


def test_two_encoders_of_equal_content_are_two(registry: Any, tmp_path: Path) -> None:
    """A LoRA may change one of them alone."""
    first = tiny.build(tmp_path / "first", "sdxl")
    shutil.copytree(first, tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "text_encoder")
    shutil.copytree(first / "text_encoder_2", tmp_path / "second" / "text_encoder")
    index = json.loads((first / "model_index.json").read_text())
    index["text_encoder"] = index["text_encoder_2"]
    (tmp_path / "second" / "model_index.json").write_text(json.dumps(index))
    desk = Desk(tmp_path)
    for model_id in ("first", "second"):
        picture(registry, desk, model_id=model_id)
    one, other = (value._pipeline for value in desk._loaded.values())
    assert other.text_encoder_2 is one.text_encoder_2
    assert other.text_encoder is not other.text_encoder_2


def test_the_settings_say_how_a_model_is_loaded(registry: Any, twins: Path) -> None:
    import torch

    plain = picture(registry, Desk(twins), model_id="one")
    (twins / "models.toml").write_text(
        '["*"]\nchannels_last = true\n[other]\ndtype = "bfloat16"\nvae_tiling = true\nvae_slicing = true\nkeep = true\n'
    )
    desk = Desk(twins)
    assert picture(registry, desk, model_id="one")[:8] == plain[:8]
    picture(registry, desk, model_id="other")
    one, other = desk._loaded.values()
    assert one._pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert (one.dtype, other.dtype) == ("float32", "bfloat16")
    assert (other._pipeline.vae.use_tiling, other._pipeline.vae.use_slicing) == (True, True)
    assert (one._pipeline.vae.use_tiling, one._pipeline.vae.use_slicing) == (False, False)
    assert desk.models.kept() == ["other"]
    told = fingerprint(other.dtype, other.settings, desk)
    assert told["settings"] == {"channels_last": True, "vae_tiling": True, "vae_slicing": True}
    assert told["dtype"] == "bfloat16"
    assert len(told["device"]) > 3  # the CPU's model, not only that it is one


def test_offload_is_for_gpus(registry: Any, twins: Path) -> None:
    plain = picture(registry, Desk(twins), model_id="one")
    (twins / "models.toml").write_text('[one]\noffload = "group"\n')
    assert picture(registry, Desk(twins), model_id="one")[:8] == plain[:8]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch.compile itself imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_a_compiled_model_makes_the_same_picture(registry: Any, twins: Path) -> None:
    plain = picture(registry, Desk(twins), model_id="one")
    (twins / "models.toml").write_text("[one]\ncompile = true\n")
    desk = Desk(twins)
    compiled = picture(registry, desk, model_id="one")
    [loaded] = desk._loaded.values()
    blocks = [module for module in loaded._pipeline.unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert difference(open_image(compiled), open_image(plain)) <= 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[one]\ndtpe = 'float16'", "did you mean dtype"),
        ("[one]\ndtype = 'int8'", r"\[one\] dtype"),
        ("[one]\nkeep = 'perhaps'", r"\[one\] keep"),
        ("one = 3", r"\[one\]"),
        ("[one", "cannot be read"),
        ("#" * 300_000, "too large"),
        ("one = " + "[" * 5_000, "cannot be read"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises(ModelInvalid, match=words):
        ModelFolder(tmp_path).settings("one")


def test_settings_that_cannot_be_read_tell_no_path(tmp_path: Path) -> None:
    (tmp_path / "models.toml").symlink_to("/proc/self/mem")  # a file whose reading fails, for root as well
    with pytest.raises(ModelInvalid, match="cannot be read") as caught:
        ModelFolder(tmp_path).settings("one")
    assert "/" not in caught.value.message


def test_models_without_settings_follow_the_device(tiny_root: Path) -> None:
    settings = ModelFolder(tiny_root).settings("tiny")
    assert json.loads(settings.model_dump_json()) == {
        "dtype": None,
        "channels_last": False,
        "vae_tiling": False,
        "vae_slicing": False,
        "offload": "none",
        "compile": False,
        "config": None,
        "keep": False,
    }
