"""Another VAE than the model's own, through the picture task."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest

from instructors.task import Padding
from protocol.errors import AtelierError, ModelInvalid, ModelNotFound
from tests.instructors import tiny
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import difference, make, noise, run, together
from tests.instructors.test_text2img import open_image


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, a VAE of other weights, one for other latents, and what is none."""
    import torch
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("models")
    tiny.build(folder / "tiny")
    torch.manual_seed(7)
    own = AutoencoderKL.from_pretrained(folder / "tiny" / "vae").config
    AutoencoderKL.from_config(own).save_pretrained(folder / "vaes" / "other")
    AutoencoderKL.from_config({**own, "latent_channels": 8}).save_pretrained(folder / "vaes" / "wide")
    shutil.copytree(folder / "tiny" / "unet", folder / "vaes" / "unet")
    shutil.copytree(folder / "vaes" / "other", folder / "vaes" / "short")
    config = json.loads((folder / "vaes" / "short" / "config.json").read_text())
    (folder / "vaes" / "short" / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    shutil.copytree(folder / "vaes" / "other", folder / "vaes" / "senseless")
    (folder / "vaes" / "senseless" / "config.json").write_text(json.dumps({**config, "block_out_channels": 3}))
    return folder


def picture(registry: Any, desk: Desk, **data: Any) -> Any:
    data = {"model_id": "tiny", "prompt": "a", "steps": 2, "seed": 1, **data}
    task = registry.make_task("inference.text2img", data, desk)
    while (result := task.step()) is None:
        pass
    return result


def pixels(result: Any) -> numpy.ndarray:
    return numpy.asarray(open_image(files(result)[0]))


@pytest.mark.parametrize("padding", [Padding(), Padding(fixed_rows=4)])
def test_it_decodes_in_place_of_the_models_own(registry: Any, root: Path, padding: Padding) -> None:
    import torch
    from diffusers import AutoencoderKL, DiffusionPipeline

    desk = Desk(root)
    desk.padding = padding
    own, result = pixels(picture(registry, desk)), picture(registry, desk, vae_id="other")
    assert (pixels(result) != own).any()
    assert (pixels(picture(registry, desk)) == own).all()  # the model keeps its own
    recipe = result.data["images"][0]["recipe"]
    assert (recipe["vae_id"], len(recipe["vae_hash"])) == ("other", 64)
    if padding.fixed_rows is None:
        vae = AutoencoderKL.from_pretrained(root / "vaes" / "other")
        pipeline = DiffusionPipeline.from_pretrained(root / "tiny", vae=vae)
        stock = pipeline("a", num_inference_steps=2, generator=torch.Generator().manual_seed(1)).images[0]
        assert (pixels(result) == numpy.asarray(stock)).all()


@pytest.mark.parametrize(
    ("vae_id", "error", "words"),
    [
        ("othr", ModelNotFound, "no VAE"),
        ("../tiny", ModelNotFound, "no VAE"),
        ("wide", ModelInvalid, "8 channels"),
        ("unet", ModelInvalid, "no VAE that is run here"),
        ("short", ModelInvalid, "do not fit together"),
        ("senseless", ModelInvalid, "1 pixels a side"),
    ],
)
def test_what_cannot_be_used_is_told(
    registry: Any, root: Path, vae_id: str, error: type[AtelierError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        picture(registry, Desk(root), vae_id=vae_id)
    assert caught.value.details["vae_id"] == vae_id


@pytest.fixture
def half_root(tmp_path: Path) -> Path:
    """Models in half precision whose VAE is to be run in full, one of them without lanes; and a VAE like theirs."""
    for name in ("one", "offloaded"):
        tiny.build(tmp_path / name, "sdxl")
    shutil.copytree(tmp_path / "one" / "vae", tmp_path / "vaes" / "other")
    (tmp_path / "models.toml").write_text('["*"]\ndtype = "float16"\n[offloaded]\noffload = "group"\n')
    return tmp_path


def test_an_encode_that_fails_leaves_the_vae_as_it_was(
    registry: Any, half_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(half_root)
    before = pixels(picture(registry, desk, model_id="one"))
    [loaded] = desk._loaded.values()
    with monkeypatch.context() as patched:
        patched.setattr(loaded.component("vae"), "encode", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            run(registry, desk, "img2img", [noise()], model_id="one")
    assert (pixels(picture(registry, desk, model_id="one")) == before).all()


def test_models_with_and_without_lanes_decode_with_one_vae_at_once(registry: Any, half_root: Path) -> None:
    desk = Desk(half_root)
    asked = [("one", "other"), ("offloaded", "other")] * 2
    tasks = [make(registry, desk, "text2img", [], model_id=model_id, vae_id=vae_id) for model_id, vae_id in asked]
    pictures, _ = together(tasks)
    assert difference(pictures[0], pictures[2]) == difference(pictures[1], pictures[3]) == 0
