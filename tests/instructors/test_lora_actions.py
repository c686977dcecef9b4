"""`lora.list`, `lora.load` and `lora.unload`, and the LoRAs of a request under a budget of bytes."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from instructors import lora
from instructors.pipelines import loading
from instructors.registry import Registry
from instructors.task import R
from protocol.errors import AtelierError, InvalidRequest, ModelInvalid, ModelNotFound
from protocol.schemas.lora import LoraInfo, LoraListResult, LoraUse
from tests.instructors import tiny, tiny_lora
from tests.instructors.conftest import Desk
from worker.residency import Residency


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of SD's kind, one of SDXL's, LoRAs for the first, and files that are none."""
    root = tmp_path_factory.mktemp("models")
    tiny.build(root / "tiny")
    tiny.build(root / "tiny-xl", "sdxl")
    pipeline = DiffusionPipeline.from_pretrained(root / "tiny")
    for name, seed in (("first", 1), ("second", 2), ("third", 3)):
        tensors = tiny_lora.kohya(tiny_lora.layers(pipeline, seed=seed))
        tiny_lora.write(root / "loras" / f"{name}.safetensors", tensors, {"modelspec.trigger_phrase": name})
    wrong = tiny_lora.kohya(tiny_lora.layers(pipeline)) | {"lora_unet_no.lora_down.weight": torch.zeros(4, 4)}
    tiny_lora.write(root / "loras" / "wrong.safetensors", wrong)
    (root / "loras" / "pickle.pt").write_bytes(b"\x80\x04anything")
    return root


@pytest.fixture
def desk(root: Path) -> Desk:
    gc.collect()  # what earlier tests had loaded
    return Desk(root)


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(desk: Desk) -> Run:
    registry = Registry()
    lora.register(registry)

    def run(action: str, **data: Any) -> dict[str, Any]:
        task = registry.make_task(action, data, desk)
        while (result := task.step()) is None:
            pass
        return result.data

    return run


def test_list_tells_of_every_file(run: Run) -> None:
    found = {info.lora_id: info for info in LoraListResult.model_validate(run("lora.list")).loras}
    assert list(found) == ["first", "pickle", "second", "third", "wrong"]
    assert found["first"].trigger_words == ["first"]
    assert (found["first"].rank, found["first"].targets) == (4, ["text_encoder", "unet"])
    assert "pickle" in (found["pickle"].problem or "")
    assert "is missing" in (found["wrong"].problem or "")
    assert not any(info.loaded for info in found.values())


def test_load_tells_what_it_loaded_and_list_that_it_is(run: Run) -> None:
    assert LoraInfo.model_validate(run("lora.load", lora_id="second", model_id="tiny")).loaded
    assert [info["lora_id"] for info in run("lora.list")["loras"] if info["loaded"]] == ["second"]


def test_unload_frees_it_and_says_so(run: Run, desk: Desk) -> None:
    run("lora.load", lora_id="first", model_id="tiny")
    run("lora.load", lora_id="second", model_id="tiny")
    told = LoraInfo.model_validate(run("lora.unload", lora_id="first"))
    assert (told.lora_id, told.loaded) == ("first", False)
    assert [info["lora_id"] for info in run("lora.list")["loras"] if info["loaded"]] == ["second"]
    assert not run("lora.unload", lora_id="first")["loaded"]  # once more is no error


@pytest.mark.parametrize(
    ("lora_id", "model_id", "error"),
    [
        ("secnd", "tiny", ModelNotFound),
        ("second", "tiny-x", ModelNotFound),
        ("second", "tiny-xl", ModelInvalid),
        ("wrong", "tiny", ModelInvalid),
        ("pickle", "tiny", ModelInvalid),
        ("../tiny", "tiny", ModelNotFound),
    ],
)
def test_what_cannot_be_loaded(run: Run, desk: Desk, lora_id: str, model_id: str, error: type[AtelierError]) -> None:
    with pytest.raises(error):
        run("lora.load", lora_id=lora_id, model_id=model_id)
    assert not any(info["loaded"] for info in run("lora.list")["loras"])


def test_a_mistyped_name_in_a_request_is_told(desk: Desk) -> None:
    loaded = loading.resident("tiny", desk)
    with pytest.raises(ModelNotFound) as caught:
        lora.mix([LoraUse(lora_id="first"), LoraUse(lora_id="thrid")], loaded, desk)
    assert caught.value.details["nearest"] == "third"
    assert caught.value.details["lora_id"] == "thrid"


def test_a_family_whose_loras_are_not_applied_says_so(tmp_path: Path, root: Path) -> None:
    tiny.build(tmp_path / "tiny3", "sd3")
    shutil.copytree(root / "loras", tmp_path / "loras")
    elsewhere = Desk(tmp_path)
    with pytest.raises(InvalidRequest, match="of another family"):
        lora.mix([LoraUse(lora_id="first")], loading.resident("tiny3", elsewhere), elsewhere)


class Budgeted(Desk):
    """A desk whose LoRAs stay in memory under the worker's own rules."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        super().__init__(root)
        self.residency = Residency(budget_bytes, lambda: None)

    def resident(self, key: str, nbytes: int, load: Callable[[], R]) -> R:
        if not key.startswith("lora "):
            return super().resident(key, nbytes, load)
        found: Any = self.residency.get(key)
        return found if found is not None else self.residency.load(key, nbytes, load)


def test_the_least_recently_used_lora_goes_first_and_none_in_use(root: Path) -> None:
    desk = Desk(root)
    loaded = loading.resident("tiny", desk)
    nbytes = lora.load("first", loaded, desk).nbytes
    desk = Budgeted(root, budget_bytes=2 * nbytes + nbytes // 2)
    keys = {}
    for name in ("first", "second"):
        adapter = lora.load(name, loaded, desk)
        assert adapter.nbytes == nbytes
        keys[name] = f"lora {adapter.content_hash} {loaded.model.content_hash}"
        desk.residency.unpin(keys[name])
    assert lora.load("first", loaded, desk) is lora.load("first", loaded, desk)  # in use from now on
    lora.load("third", loaded, desk)
    assert desk.residency.names == ["lora/first", "lora/third"]
    with pytest.raises(AtelierError, match="larger than the memory"):
        lora.load("second", loaded, Budgeted(root, budget_bytes=nbytes - 1))
