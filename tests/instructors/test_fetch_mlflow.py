"""`model.fetch` from a real MLflow server, where a real client registered the models."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import Forbidden, InvalidRequest, ModelInvalid, NotFound
from tests.instructors.fetching import FetchDesk, allow, onnx_bytes
from tests.instructors.model_servers import BIN, mlflow_server, needs_servers, put, s3_server

pytestmark = [needs_servers, pytest.mark.timeout(300)]
REGISTER = Path(__file__).with_name("register_in_mlflow.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture(scope="module")
def registered(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client was told: `run_id` and the SHA-256 of the model's file, by version."""
    folder = tmp_path_factory.mktemp("register")
    done = subprocess.run(
        [BIN / "python", REGISTER, server], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def desk(server: str, tmp_path: Path) -> Iterator[FetchDesk]:
    allow(tmp_path, mlflow=server)
    desk = FetchDesk(tmp_path)
    yield desk
    desk.close()


@pytest.mark.parametrize(("uri", "version"), [("models:/net@champion", "1"), ("models:/net/2", "2")])
def test_a_version_comes_with_its_run(uri: str, version: str, desk: FetchDesk, registered: dict[str, Any]) -> None:
    answer = desk.fetch({"mlflow": uri}, name="net", version=version)
    known = registered[version]
    assert answer["metadata"]["hashes"]["model.onnx"] == known["sha256"]
    assert answer["run_id"] == known["run_id"]
    assert answer["metrics"] == {"rmse_m": known["rmse_m"]}
    assert answer["tags"] == {"site": "north", "checked": "yes"}
    assert answer["warnings"] == []
    assert desk.models.find("net").model_id == f"net:{version}"
    assert (desk.models.find("net").path / "MLmodel").is_file()


def test_a_stage_is_taken_with_a_warning(desk: FetchDesk, registered: dict[str, Any]) -> None:
    answer = desk.fetch({"mlflow": "models:/net/Staging"})
    assert answer["run_id"] == registered["2"]["run_id"]
    assert "deprecated" in answer["warnings"][0]


@pytest.mark.parametrize("uri", ["models:/nobody/1", "models:/net/99", "models:/net@nobody", "models:/net/Production"])
def test_what_is_not_there_is_not_found(uri: str, desk: FetchDesk, registered: dict[str, Any]) -> None:
    with pytest.raises(NotFound):
        desk.fetch({"mlflow": uri})


@pytest.mark.parametrize(
    "uri", ["net", "models:/net", "models:/a/b/c", "runs:/1/net", "models:/net@", "models:/../x/1"]
)
def test_what_is_no_name_of_a_model_is_refused(uri: str, desk: FetchDesk) -> None:
    with pytest.raises(InvalidRequest, match="models:/name"):
        desk.fetch({"mlflow": uri})


def test_a_model_of_pickles_is_refused(desk: FetchDesk, registered: dict[str, Any]) -> None:
    with pytest.raises(ModelInvalid):
        desk.fetch({"mlflow": "models:/pickled/1"})
    assert desk.models.names() == []


def test_files_that_lie_elsewhere_are_fetched_from_where_the_operator_allows(
    desk: FetchDesk, registered: dict[str, Any], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {"mlflow": "models:/elsewhere/1"}
    with pytest.raises(Forbidden, match="operator"):
        desk.fetch(elsewhere)
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as address:
        put(address, "/models")
        put(address, "/models/elsewhere/model.onnx", onnx_bytes(tmp_path))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "nobody")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        allow(tmp_path, urls=["s3://models/"], mlflow=server)
        answer = desk.fetch(elsewhere)
    assert answer["content_hash"] == desk.models.find("found:1").content_hash
