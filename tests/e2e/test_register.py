"""`model.register` with a real server and a real worker: fetched, checked, in place, and in the registry."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
import pytest

from instructors.sources import staging
from orchestrator.client import Client
from protocol.errors import Forbidden, InvalidRequest, ModelInvalid, RequestConflict
from protocol.limits import MIB
from tests.e2e.house import House, Worker, eventually
from tests.instructors import onnx_models


@pytest.fixture(scope="module")
def models(house: House) -> Path:
    folder = house.folder / "models"
    onnx_models.affine(folder / "incoming" / "double" / "model.onnx", 2, 0)
    return folder


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House(lease_ms=4000) as started:
        started.start_orchestrator()
        yield started


@pytest.fixture(scope="module")
def worker(house: House, models: Path) -> Worker:
    started = house.start_worker("w", "--models", str(models))
    house.wait_for_workers("w")
    return started


@pytest.fixture
def client(house: House, worker: Worker) -> Client:
    return house.client()


def staged(models: Path) -> list[Path]:
    folder = models / staging.FOLDER
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_a_folder_is_registered(client: Client, models: Path) -> None:
    made = client.models.register("double", "incoming/double", author="ada")
    assert made.version == "1"
    assert made.nbytes == (models / "double" / "1" / "model.onnx").stat().st_size
    info = client.models.info("double:1")
    assert info.registered
    assert info.content_hash == made.content_hash
    assert info.metadata.type == "onnx"
    eventually(lambda: staged(models) == [])


def test_what_is_registered_is_served_at_once(client: Client, tmp_path: Path) -> None:
    """Also by an alias that moved with it, before the worker has looked at its folder again."""
    for factor in (7, 8):
        onnx_models.affine(tmp_path / "model.onnx", factor, 0)
        made = client.models.register("prompt", tmp_path, alias="default")
        for name in ("prompt", "prompt@default", made.model_id):
            answer = client.predict(name, {"x": np.ones((1, 1), np.float32)})
            assert (answer.model_version, answer.outputs["y"].item()) == (made.version, factor)


def test_files_of_the_client_are_registered(client: Client, models: Path, tmp_path: Path) -> None:
    onnx_models.affine(tmp_path / "model.onnx", 3, 0)
    (tmp_path / "model.toml").write_text('license = "MIT"\ntags = ["small"]\n')
    made = client.models.register("triple", tmp_path)
    assert (models / "triple" / "1" / "model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    info = client.models.info(made.model_id)
    assert (info.metadata.license, info.metadata.tags) == ("MIT", ["small"])


def test_what_is_refused_leaves_neither_files_nor_a_row(client: Client, models: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(ModelInvalid):
        client.models.register("bad", tmp_path)
    with pytest.raises(Forbidden):
        client.models.register("bad", "../elsewhere")
    with pytest.raises(Forbidden, match="operator"):
        client.models.register("bad", "s3://bucket/model")
    with pytest.raises(InvalidRequest):
        client.models.register("loras", "incoming/double")
    assert not (models / "bad").exists()
    assert client.models.history("bad") == []
    eventually(lambda: staged(models) == [])


def test_files_that_are_there_under_this_version_stay(client: Client, models: Path, tmp_path: Path) -> None:
    """The registry does not know them: someone put them there by hand."""
    onnx_models.affine(models / "handmade" / "1" / "model.onnx", 5, 0)
    onnx_models.affine(tmp_path / "model.onnx", 6, 0)
    with pytest.raises(RequestConflict, match="other files"):
        client.models.register("handmade", tmp_path, version="1")
    assert client.models.history("handmade") == []


def test_a_worker_that_is_killed_meanwhile_registers_it_once(
    client: Client, house: House, worker: Worker, models: Path
) -> None:
    shutil.copytree(models / "incoming" / "double", models / "incoming" / "large")
    with (models / "incoming" / "large" / "notes.dat").open("wb") as stream:
        stream.truncate(256 * MIB)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.models.register, "large", "incoming/large", timeout_s=50)
        eventually(lambda: bool(glob(f"{models}/{staging.FOLDER}/*/large/1/notes.dat")), 20)
        worker.child.kill()
        assert pending.result().nbytes > 256 * MIB
    assert (models / "large" / "1" / "notes.dat").stat().st_size == 256 * MIB
    assert [change.kind for change in client.models.history("large")] == ["register"]
    eventually(lambda: len(staged(models)) == 1)
    left = staged(models)  # of the first attempt, which nobody could tidy up
    hour_ago = time.time() - staging.OLD_S - 60
    os.utime(left[0], (hour_ago, hour_ago))
    worker.child.kill()
    eventually(lambda: staged(models) == [], 20)
