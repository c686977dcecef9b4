"""`client.models.discover` and `validate`, and their commands, with a real worker."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import cli
from orchestrator.client import AsyncClient, Client, LocalServer
from protocol.errors import InvalidRequest, ModelNotFound
from tests.instructors.tensor_files import write
from tests.instructors.test_discover import LORA

ROOT = Path(__file__).parents[2]
MANY = 600  # more than a page holds


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """With a worker whose models are the demo model, a broken one, and many LoRAs."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "models" / "demo", folder / "models" / "demo")
    shutil.copytree(ROOT / "models" / "demo", folder / "models" / "broken")
    weights = folder / "models/broken/vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for number in range(MANY):
        write(folder / f"models/many/{number:03}.safetensors", LORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with LocalServer(devices=["cpu"], models=folder / "models") as connected:
            yield connected


def test_all_pages_of_what_is_there(client: Client) -> None:
    found = {model.name: model for model in client.models.discover()}
    assert len(found) == MANY + 2
    assert (found["models/demo"].family, found["models/demo"].id) == ("sd1", "demo")
    assert "after the file" in (found["models/broken"].problem or "")
    assert [model.name for model in client.models.discover(types=["pipeline"])] == ["models/broken", "models/demo"]
    with pytest.raises(InvalidRequest, match="no folder with the label"):
        client.models.discover(folders=["elsewhere"])


def test_what_is_sound_and_what_is_not(client: Client) -> None:
    assert client.models.validate("demo", deep=True).validation_details["deep"]["ran"] == "one step"
    found = client.models.validate("broken", values=False)
    assert (found.is_valid, found.issues[0].code) == (False, "tensor_bounds")
    assert client.models.validate("models/many/000.safetensors").type == "lora"
    for name in ("../demo", "models/../demo", "models/nothing", "nothing"):
        with pytest.raises(ModelNotFound):
            client.models.validate(name)


async def test_the_same_with_await(client: Client) -> None:
    async with AsyncClient(client.core.endpoint, timeout_s=30) as aclient:
        assert len(await aclient.models.discover(families=["sd1"], folders=["models"])) == MANY + 1
        assert (await aclient.models.validate("demo")).is_valid


def test_the_commands(client: Client) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["models", *arguments, "--connect", client.core.endpoint])
        return done.exit_code, done.output

    code, told = run("discover", "--type", "pipeline", "--family", "sd1")
    assert code == 0
    assert "models/demo" in told
    assert "v_prediction" in told
    assert "many" not in told
    code, told = run("discover", "--json", "--folder", "models")
    assert len(json.loads(told)) == MANY + 2
    code, told = run("validate", "demo")
    assert code == 0
    assert "passed" in told
    code, told = run("validate", "broken", "--no-values")
    assert code == 1
    assert "tensor_bounds" in told
    assert "cannot be used as it is" in told
    code, told = run("validate", "broken", "--json")
    assert code == 1
    assert "tensor_bounds" in told
