"""Models of the hub: from its cache on this machine, and from a small hub on loopback that fails in all its ways."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructors import fetch
from instructors.catalogue.settings import Hub
from instructors.sources.hub import HubSource, chosen
from protocol.errors import AtelierError, Forbidden, InvalidRequest, ModelInvalid, NotFound, Unavailable
from tests.instructors import tiny
from tests.instructors.fetching import FetchDesk, silent_server
from tests.instructors.hub_server import COMMIT, HubServer, hub_server

URL = "hub://org/tiny"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As they are published: with what is not run here beside what is."""
    folder = tiny.build(tmp_path_factory.mktemp("hub") / "tiny")
    (folder / "README.md").write_text("A card.")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x02a pickle")
    shutil.copyfile(folder / "unet/diffusion_pytorch_model.safetensors", folder / "tiny-pruned.safetensors")
    shutil.copyfile(
        folder / "vae/diffusion_pytorch_model.safetensors", folder / "vae/diffusion_pytorch_model.fp16.safetensors"
    )
    (folder / ".gitattributes").write_text("x")
    return folder


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server({"org/tiny": repository}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as in a worker
        yield server


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[FetchDesk]:
    (tmp_path / "models").mkdir()
    made = FetchDesk(tmp_path / "models")
    yield made
    made.close()


def allow(desk: FetchDesk, **settings: bool) -> None:
    assert desk.models.root is not None
    lines = [f"{name} = {str(value).lower()}" for name, value in settings.items()]
    (desk.models.root / "catalogue.toml").write_text("\n".join(["[hub]", *lines]) + "\n")


def into_cache(repository: Path, home: Path) -> None:
    """As huggingface_hub lays it out: links to blobs."""
    base = home / "hub/models--org--tiny"
    for number, file in enumerate(sorted(file for file in repository.rglob("*") if file.is_file())):
        blob = base / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = base / "snapshots" / COMMIT / file.relative_to(repository)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (base / "refs").mkdir()
    (base / "refs/main").write_text(COMMIT)


def brought(desk: FetchDesk) -> set[str]:
    folder = desk.models.path_of("found:1")
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def assert_whole(desk: FetchDesk, repository: Path) -> None:
    """What is run is there, byte by byte, and nothing else."""
    files = brought(desk)
    assert {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= files
    assert not any(name.endswith(".bin") or ".fp16." in name or "pruned" in name or name[0] == "." for name in files)
    folder = desk.models.path_of("found:1")
    assert all((folder / name).read_bytes() == (repository / name).read_bytes() for name in files)
    assert desk.models.find("found:1").family == "stable_diffusion"


def test_a_model_comes_from_the_hub(hub: HubServer, desk: FetchDesk, repository: Path) -> None:
    allow(desk, download=True)
    told = desk.fetch({"url": URL})
    assert told["tags"] == {"hub": "org/tiny", "revision": COMMIT}
    assert_whole(desk, repository)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_goes_on_where_it_was(
    hub: HubServer, desk: FetchDesk, repository: Path, ranges: bool
) -> None:
    allow(desk, download=True)
    hub.breaks, hub.ranges = 3, ranges
    desk.fetch({"url": URL})
    assert_whole(desk, repository)
    resumed = [part for _, part in hub.asked if part is not None]
    assert len(resumed) >= 1
    assert all(part.startswith("bytes=") and part != "bytes=0-" for part in resumed)


def test_what_is_not_what_the_hub_says_is_refused(hub: HubServer, desk: FetchDesk) -> None:
    allow(desk, download=True)
    hub.tamper = True
    with pytest.raises(ModelInvalid, match="checksum"):
        desk.fetch({"url": URL})
    assert desk.models.names() == []


def test_nothing_is_asked_of_the_hub_unless_it_is_allowed(hub: HubServer, desk: FetchDesk) -> None:
    with pytest.raises(Forbidden, match=r"catalogue\.toml"):
        desk.fetch({"url": URL})
    allow(desk, cache=True)
    with pytest.raises(NotFound, match="no download is allowed"):
        desk.fetch({"url": URL})
    assert hub.asked == []


@pytest.mark.parametrize("url", [URL, f"{URL}@{COMMIT}", f"{URL}@{COMMIT[:8]}"])
def test_a_model_comes_from_the_cache(
    hub: HubServer, desk: FetchDesk, repository: Path, tmp_path: Path, url: str
) -> None:
    into_cache(repository, tmp_path / "hf")
    allow(desk, cache=True)
    assert desk.fetch({"url": url})["tags"]["revision"] == COMMIT
    assert_whole(desk, repository)
    assert hub.asked == []
    with pytest.raises(NotFound):
        desk.fetch({"url": "hub://org/tiny@ffff"}, version="2")


def test_the_cache_helps_where_the_hub_does_not_answer(
    hub: HubServer, desk: FetchDesk, repository: Path, tmp_path: Path
) -> None:
    into_cache(repository, tmp_path / "hf")
    allow(desk, cache=True, download=True)
    hub.refuse = 503
    told = desk.fetch({"url": URL})
    assert "cache" in told["warnings"][0]
    assert_whole(desk, repository)


def test_links_out_of_the_cache_are_refused(hub: HubServer, desk: FetchDesk, repository: Path, tmp_path: Path) -> None:
    into_cache(repository, tmp_path / "hf")
    link = tmp_path / "hf/hub/models--org--tiny/snapshots" / COMMIT / "model_index.json"
    link.unlink()
    link.symlink_to(repository / "model_index.json")
    allow(desk, cache=True)
    with pytest.raises(Forbidden):
        desk.fetch({"url": URL})


@pytest.mark.parametrize(("status", "error"), [(401, Forbidden), (404, NotFound)])
def test_what_the_hub_answers_is_told_in_our_words(
    hub: HubServer, desk: FetchDesk, status: int, error: type[AtelierError]
) -> None:
    allow(desk, download=True)
    hub.refuse = status
    with pytest.raises(error) as caught:
        desk.fetch({"url": URL})
    assert "127.0.0.1" not in f"{caught.value.message} {caught.value.details}"


def test_a_hub_that_is_not_there(desk: FetchDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    allow(desk, download=True)
    with pytest.raises(Unavailable):
        desk.fetch({"url": URL})


def test_a_hub_that_says_nothing_is_given_up(desk: FetchDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "STALL_S", 2.0)
    allow(desk, download=True)
    with silent_server() as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(Unavailable, match="not answered"):
            desk.fetch({"url": URL})


@pytest.mark.parametrize(
    "url", ["hub://tiny", "hub://../x", "hub://org/../x", "hub://org/tiny?x", "hub://org/tiny@a/b/..", "hub:///etc"]
)
def test_names_that_are_none(url: str) -> None:
    with pytest.raises(InvalidRequest):
        HubSource(url, Hub(cache=True, download=True))


def test_a_part_of_a_repository(hub: HubServer, desk: FetchDesk) -> None:
    allow(desk, download=True)
    with pytest.raises(NotFound, match="nothing of this name"):
        desk.fetch({"url": f"{URL}/elsewhere"})
    with pytest.raises(ModelInvalid):  # a component alone is no model
        desk.fetch({"url": f"{URL}/vae"})
    assert not any("unet" in path for path, _ in hub.asked)


A, B = "unet/model-00001-of-00002", "unet/model.fp16-00001-of-00002"


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["a.safetensors", "a.fp16.safetensors"], ["a.safetensors"]),
        (["a.fp16.safetensors"], ["a.fp16.safetensors"]),
        ([f"{A}.safetensors", f"{B}.safetensors"], [f"{A}.safetensors"]),
        (["model.onnx", "config.json", "model.bin"], ["config.json", "model.onnx"]),
        (["model.onnx", "model.onnx_data"], ["model.onnx", "model.onnx_data"]),
        (["model_index.json", "unet/a.safetensors", "unet/model.onnx", "whole.safetensors"],
         ["model_index.json", "unet/a.safetensors"]),
        (["model_index.json", "unet/model.onnx"], ["model_index.json", "unet/model.onnx"]),
        (["pytorch_model.bin", "config.json"], []),
        ([".git/a.safetensors", "flax_model.msgpack"], []),
    ],
)  # fmt: skip
def test_which_files_are_fetched(names: list[str], kept: list[str]) -> None:
    assert chosen(names) == kept
