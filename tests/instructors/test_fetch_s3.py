"""`model.fetch` from S3, against a real server of its API."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from protocol.errors import ModelInvalid, NotFound, Unavailable
from tests.instructors.fetching import FetchDesk, allow, onnx_bytes
from tests.instructors.model_servers import Cutter, needs_servers, put, s3_server

pytestmark = [needs_servers, pytest.mark.timeout(240)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        put(address, "/models")
        yield address


@pytest.fixture(autouse=True)
def credentials(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    allow(path, urls=["s3://models/"])
    return path


@pytest.fixture
def desk(root: Path) -> Iterator[FetchDesk]:
    desk = FetchDesk(root)
    yield desk
    desk.close()


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_folder_of_a_bucket_becomes_a_version(desk: FetchDesk, root: Path, server: str, tmp_path: Path) -> None:
    model, labels, weights = onnx_bytes(tmp_path), b"a\nb\n", os.urandom(20 * MIB)  # in three ranges
    put(server, "/models/net/", b"")  # as some tools mark a folder
    for path, data in (("model.onnx", model), ("data/labels.txt", labels), ("data/notes.dat", weights)):
        put(server, f"/models/net/{path}", data)
    put(server, "/models/network/model.onnx", b"of another model")
    answer = desk.fetch({"url": "s3://models/net"})
    assert names(root) == [
        "catalogue.toml", "found/1/data/labels.txt", "found/1/data/notes.dat", "found/1/model.onnx",
    ]  # fmt: skip
    assert answer["files"] == 3
    assert answer["nbytes"] == len(model) + len(labels) + len(weights)
    assert answer["metadata"]["hashes"]["data/notes.dat"] == hashlib.sha256(weights).hexdigest()
    assert answer["content_hash"] == desk.models.find("found:1").content_hash


def test_a_single_object_can_be_fetched(desk: FetchDesk, root: Path, server: str, tmp_path: Path) -> None:
    put(server, "/models/single/resnet.onnx", onnx_bytes(tmp_path))
    desk.fetch({"url": "s3://models/single/resnet.onnx"})
    assert names(root) == ["catalogue.toml", "found/1/model.onnx"]


@pytest.mark.parametrize("url", ["s3://models/nothing", "s3://models/net/nothing.onnx"])
def test_nothing_there_is_not_found(url: str, desk: FetchDesk, root: Path) -> None:
    with pytest.raises(NotFound):
        desk.fetch({"url": url})
    assert names(root) == ["catalogue.toml"]


def test_a_key_that_leads_elsewhere_is_refused(desk: FetchDesk, root: Path, server: str, tmp_path: Path) -> None:
    put(server, "/models/evil/model.onnx", onnx_bytes(tmp_path))
    put(server, "/models/evil/a/%2E%2E/%2E%2E/%2E%2E/b.onnx", onnx_bytes(tmp_path))
    with pytest.raises(Exception, match="relative and plain"):
        desk.fetch({"url": "s3://models/evil"})
    assert names(root) == ["catalogue.toml"]


def test_it_goes_on_where_connections_break(
    desk: FetchDesk, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = os.urandom(40 * MIB)
    put(server, "/models/large/model.onnx", onnx_bytes(tmp_path))
    put(server, "/models/large/weights.dat", weights)
    cutter = Cutter(server, cuts=3, after_bytes=5 * MIB)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cutter.address)
    answer = desk.fetch({"url": "s3://models/large"})
    cutter.close()
    assert cutter.cut == 3
    assert answer["metadata"]["hashes"]["weights.dat"] == hashlib.sha256(weights).hexdigest()
    assert cutter.passed_bytes < len(weights) + 4 * 8 * MIB  # what was there already was not asked for again


def test_an_object_that_is_replaced_meanwhile_is_refused(
    desk: FetchDesk, root: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, "/models/moving/model.onnx", onnx_bytes(tmp_path))
    put(server, "/models/moving/weights.dat", os.urandom(40 * MIB))
    replaced = partial(put, server, "/models/moving/weights.dat", os.urandom(40 * MIB))
    cutter = Cutter(server, cuts=1, after_bytes=5 * MIB, then=replaced)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cutter.address)
    with pytest.raises(ModelInvalid, match="changed"):
        desk.fetch({"url": "s3://models/moving"})
    cutter.close()
    assert cutter.cut == 1
    assert names(root) == ["catalogue.toml"]


def test_a_server_that_vanishes_meanwhile_is_given_up(
    desk: FetchDesk, root: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, "/models/gone/model.onnx", onnx_bytes(tmp_path))
    put(server, "/models/gone/weights.dat", os.urandom(20 * MIB))
    cutter = Cutter(server, cuts=1_000_000, after_bytes=5 * MIB)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cutter.address)
    task = desk.begin({"url": "s3://models/gone"})
    with pytest.raises(Unavailable):
        desk.finish(task, within_s=100)
    cutter.close()
    assert names(root) == ["catalogue.toml"]
