"""`model.discover`: which files it tells of, under which names, and that it reads no file twice."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructors import discover
from instructors.catalogue import content
from instructors.catalogue.index import path_in
from instructors.catalogue.settings import FILE
from instructors.models import ModelFolder
from instructors.registry import Registry
from protocol.errors import AtelierError, InvalidRequest, ModelInvalid
from protocol.schemas.model_files import ModelDiscoverResult
from tests.instructors import onnx_models, tiny
from tests.instructors.conftest import Desk
from tests.instructors.tensor_files import write
from tests.instructors.test_catalogue_judge import CLIP, ESRGAN, VAE, ldm

Run = Callable[..., ModelDiscoverResult]
LORA = {
    "lora_unet_a_attn2_to_k.lora_down.weight": (4, 768),
    "lora_unet_a_attn2_to_k.lora_up.weight": (8, 4),
}
MANY = 10_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def run(root: Path) -> Run:
    return lambda **data: finish(desk_of(root), **data)


def desk_of(root: Path | None, cache_dir: Path | None = None) -> Desk:
    desk = Desk(root)
    desk.cache_dir = cache_dir or (root.parent / "cache" if root else None)
    return desk


def index_of(root: Path) -> Path:
    path = path_in(root.parent / "cache", root)
    assert path is not None
    return path


def finish(desk: Desk, **data: Any) -> ModelDiscoverResult:
    registry = Registry()
    discover.register(registry)
    task = registry.make_task("model.discover", data, desk)
    while (result := task.step()) is None:
        pass
    return ModelDiscoverResult.model_validate(result.data)


def told(result: ModelDiscoverResult) -> dict[str, tuple[str, str | None]]:
    return {model.name: (model.type, model.family) for model in result.models}


def changes(result: ModelDiscoverResult) -> tuple[int, int, int, int]:
    """Added, changed, renamed, removed."""
    found = result.changes
    return found.added, found.changed, found.renamed, found.removed


def test_the_model_folder_with_the_ids_that_requests_use(run: Run, root: Path) -> None:
    tiny.build(root / "tiny")
    shutil.copytree(root / "tiny", root / "twice/1.0")
    shutil.copytree(root / "tiny/vae", root / "vaes/soft")
    write(root / "loras/line.safetensors", LORA)
    write(root / "loras/folder/only.safetensors", LORA)
    write(root / "elsewhere/deep/line.safetensors", LORA)
    write(root / "paint.safetensors", {**ldm(768), **VAE, **CLIP})
    write(root / "alone/1.0/file.safetensors", {**ldm(2048), **VAE, **CLIP})
    onnx_models.mlp(root / "numbers/2/model.onnx", (4, 2))
    (root / "loras/bad.pt").write_bytes(b"\x80\x04anything")
    shutil.copytree(root / "tiny", root / "configs/own", ignore=shutil.ignore_patterns("*.safetensors"))
    (root / "notes.txt").write_text("nothing of a model's")
    found = {model.name: model for model in run().models}
    assert {name: model.id for name, model in found.items()} == {
        "models/alone/1.0/file.safetensors": "alone:1.0",
        "models/elsewhere/deep/line.safetensors": None,
        "models/loras/bad.pt": None,
        "models/loras/folder/only.safetensors": "folder",
        "models/loras/line.safetensors": "line",
        "models/numbers/2/model.onnx": "numbers:2",
        "models/paint.safetensors": "paint",
        "models/tiny": "tiny",
        "models/twice/1.0": "twice:1.0",
        "models/vaes/soft": "soft",
    }
    assert set(ModelFolder(root).names()) == {"alone:1.0", "numbers:2", "paint", "tiny", "twice:1.0"}
    assert found["models/numbers/2/model.onnx"].facts == {"opset": onnx_models.OPSET}
    bad = found["models/loras/bad.pt"]
    assert (bad.type, bad.format) == ("pickle", "pickle")
    assert "safetensors" in (bad.remedy or "")


@pytest.mark.parametrize(
    "layout",
    [
        {"checkpoint": "Stable-diffusion", "lora": "Lora", "vae": "VAE", "upscaler": "ESRGAN"},
        {"checkpoint": "checkpoints", "lora": "loras", "vae": "vae", "upscaler": "upscale_models"},
    ],
    ids=["a1111", "comfyui"],
)  # fmt: skip
def test_layouts_of_other_programs(run: Run, root: Path, tmp_path: Path, layout: dict[str, str]) -> None:
    """What a file is follows from its content: one lies in the wrong folder, one has the wrong suffix."""
    shapes = {"checkpoint": {**ldm(768), **VAE, **CLIP}, "lora": LORA, "vae": VAE, "upscaler": ESRGAN}
    shapes["textual_inversion"] = {"emb_params": (2, 768)}
    layout = {**layout, "textual_inversion": "embeddings"}
    for kind, folder in layout.items():
        write(tmp_path / "other" / folder / f"sub/{kind}.safetensors", shapes[kind])
    write(tmp_path / "other" / layout["vae"] / "misplaced.pt", LORA)
    (root / FILE).write_text(f'[scan]\nother = "{tmp_path / "other"}"\n')
    expected = {f"other/{folder}/sub/{kind}.safetensors": kind for kind, folder in layout.items()}
    expected[f"other/{layout['vae']}/misplaced.pt"] = "lora"
    assert {name: kind for name, (kind, _) in told(run()).items()} == expected
    assert str(tmp_path) not in run().model_dump_json()


def test_the_cache_of_the_hub(run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    repository = tmp_path / "hf/hub/models--org--tiny"
    made = tiny.build(tmp_path / "made")
    for revision in ("aaaa1111", "bbbb2222"):
        for number, file in enumerate(sorted(file for file in made.rglob("*") if file.is_file())):
            blob = repository / "blobs" / f"{number:040x}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blob)
            link = repository / "snapshots" / revision / file.relative_to(made)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("bbbb2222")
    assert told(run()) == {}  # not without leave
    (root / FILE).write_text("[hub]\ncache = true\n")
    assert told(run()) == {"hub/org/tiny": ("pipeline", "sd1"), "hub/org/tiny@aaaa1111": ("pipeline", "sd1")}
    assert told(run(folders=["models"])) == {}


def test_no_link_leads_out(run: Run, root: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside/secret.safetensors", LORA)
    (root / "loras").mkdir()
    (root / "loras/link.safetensors").symlink_to(tmp_path / "outside/secret.safetensors")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "nowhere.safetensors").symlink_to(root / "gone")
    write(root / "real.safetensors", LORA)
    (root / "inner.safetensors").symlink_to(root / "real.safetensors")
    assert sorted(told(run())) == ["models/inner.safetensors", "models/real.safetensors"]


def test_a_pipe_is_not_read(run: Run, root: Path) -> None:
    os.mkfifo(root / "pipe.safetensors")  # opening it would wait for ever
    assert told(run()) == {}


@pytest.mark.parametrize("told", ["\ud800", "x" * 900_000])
def test_a_class_of_no_usual_name_is_not_told(run: Run, root: Path, told: str) -> None:
    """Not to be encoded, or too long: one such file would cost the answer for all."""
    for folder, file in (("a", "config.json"), ("b", "model_index.json")):
        write(root / folder / "model.safetensors", VAE)
        (root / folder / file).write_text(json.dumps({"_class_name": told}))
    assert [found.class_name for found in run().models] == [None, None]


def test_pipelines_hide_what_they_are_made_of(run: Run, root: Path) -> None:
    tiny.build(root / "tiny")
    assert told(run()) == {"models/tiny": ("pipeline", "sd1")}


def test_filters_and_pages(run: Run, root: Path) -> None:
    for number in range(5):
        write(root / f"loras/{number}.safetensors", LORA)
        write(root / f"vae/{number}.safetensors", VAE)
    assert len(run(types=["vae"]).models) == 5
    assert len(run(families=["sd1"]).models) == 5
    first = run(limit=4)
    assert (len(first.models), first.total) == (4, 10)
    second = run(limit=4, after=first.next)
    third = run(limit=4, after=second.next)
    names = [model.name for page in (first, second, third) for model in page.models]
    assert names == sorted(told(run()))
    assert third.next is None


def test_changes_are_noticed_and_only_what_changed_is_read(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    of_file = content.of_file
    monkeypatch.setattr(content, "of_file", lambda path: (read.append(path.name), of_file(path))[1])
    for name in ("a", "b", "c"):
        write(root / f"{name}.safetensors", LORA)
    tiny.build(root / "tiny")
    assert changes(run()) == (4, 0, 0, 0)
    assert changes(run()) == (0, 0, 0, 0)
    assert sorted(read) == ["a.safetensors", "b.safetensors", "c.safetensors"]
    read.clear()
    write(root / "a.safetensors", VAE)
    (root / "b.safetensors").rename(root / "moved.safetensors")
    (root / "c.safetensors").unlink()
    (root / "tiny/vae/config.json").write_text("{}")
    write(root / "new.safetensors", LORA)
    assert changes(run()) == (1, 2, 1, 1)
    assert sorted(read) == ["a.safetensors", "new.safetensors"]
    assert told(run()) == {
        "models/a.safetensors": ("vae", None),
        "models/moved.safetensors": ("lora", "sd1"),
        "models/new.safetensors": ("lora", "sd1"),
        "models/tiny": ("pipeline", "sd1"),
    }


def test_a_folder_that_was_left_out_keeps_its_place_in_the_index(run: Run, root: Path, tmp_path: Path) -> None:
    write(tmp_path / "other/x.safetensors", LORA)
    (root / FILE).write_text(f'[scan]\nother = "{tmp_path / "other"}"\n')
    run()
    assert changes(run(folders=["models"])) == (0, 0, 0, 0)
    assert changes(run()) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"form": 1, "seen": {"models/a": [1]}}', b'{"form":1,"seen":{"x":["s",{"y":1}]}}']
)
def test_a_damaged_index_costs_only_time(run: Run, root: Path, damage: bytes) -> None:
    write(root / "a.safetensors", LORA)
    run()
    index_of(root).write_bytes(damage)
    assert changes(run()) == (1, 0, 0, 0)
    assert changes(run()) == (0, 0, 0, 0)


def test_an_index_that_cannot_be_written_does_no_harm(root: Path) -> None:
    desk = desk_of(root, Path("/dev/null/none"))
    write(root / "a.safetensors", LORA)
    assert changes(finish(desk)) == changes(finish(desk)) == (1, 0, 0, 0)


def test_unknown_labels_and_wrong_settings_are_told(run: Run, root: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        run(folders=["model"])
    assert caught.value.details == {"known": ["models"], "nearest": "models"}
    for wrong, match in (
        ("[scan]\nhub = '/x'", "'hub' is no label"),
        ("[scan]\n'../x' = '/x'", "scan"),
        ("[hub]\ndownlaod = true", "hub.downlaod"),
        ("[[", "cannot be read"),
    ):
        (root / FILE).write_text(wrong)
        with pytest.raises(ModelInvalid, match=match):
            run()


def test_without_a_model_folder_there_is_nothing() -> None:
    registry = Registry()
    discover.register(registry)
    result = registry.make_task("model.discover", {}, desk_of(None)).step()
    assert result is not None
    assert result.data["models"] == []


@pytest.mark.parametrize("data", [{"limit": 501}, {"types": ["model"]}, {"folders": []}, {"folders": "models"}])
def test_wrong_data_is_refused(root: Path, data: dict[str, Any]) -> None:
    with pytest.raises(AtelierError):
        finish(desk_of(root), **data)


def test_ten_thousand_files_in_short_steps(root: Path) -> None:
    """Real files, each with a header of its own. Bounds are several times what it takes."""
    for number in range(MANY):
        write(root / f"{number % 40}/{number}.safetensors", {**LORA, f"lora_unet_{number}.alpha": ()})
    registry = Registry()
    discover.register(registry)
    cold, longest = _timed(registry, root)
    assert cold < 20
    assert longest < 1
    warm, _ = _timed(registry, root)
    assert warm < 3
    stored = json.loads(index_of(root).read_bytes())["seen"]
    assert len(stored) == MANY


def _timed(registry: Registry, root: Path) -> tuple[float, float]:
    """Seconds that a scan took, and its longest step."""
    desk = desk_of(root)
    start = time.perf_counter()
    task, longest = registry.make_task("model.discover", {}, desk), 0.0
    while True:
        begun = time.perf_counter()
        result = task.step()
        longest = max(longest, time.perf_counter() - begun)
        if result is not None:
            assert result.data["total"] == MANY
            return time.perf_counter() - start, longest
