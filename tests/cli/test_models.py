"""`atelier models` against a real server, with a worker made for tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import cli
from tests.e2e.house import House
from tests.e2e.peer import Peer

PREDICTS = ["inference.predict"]
MODELS = {"m:1": PREDICTS, "m:2": PREDICTS, "demo": ["inference.text2img"]}
FETCHED = {"content_hash": "abc", "nbytes": 2048, "metrics": {"error_m": 4.5}, "metadata": {"family": "onnx"}}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        started.start_orchestrator()
        yield started


@pytest.fixture(scope="module", autouse=True)
def peer(house: House) -> Iterator[Peer]:
    with Peer(house, "w1", MODELS, {"model.fetch": lambda data, frames: FETCHED}, resident=["m:1"]) as started:
        yield started


def run(house: House, *arguments: str, code: int = 0) -> str:
    """What it prints."""
    done = CliRunner().invoke(cli, ["models", *arguments, "--connect", house.endpoint])
    assert done.exit_code == code, done.output
    return done.output


def told(house: House, *arguments: str) -> Any:
    return json.loads(run(house, *arguments, "--json"))


def test_a_version_from_its_registration_to_its_end(house: House, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    made = told(house, "register", "m", str(tmp_path), "--alias", "prod", "--meta", "license=MIT", "--author", "ada")
    assert (made["version"], made["aliases"]) == ("3", ["prod"])
    shown = run(house, "show", "m@prod")
    for text in ("m:3", "2.0 KiB", "license", "MIT", "error_m", "4.5"):
        assert text in shown
    assert "prod" in run(house, "list")
    assert run(house, "alias", "m", "prod", "1").split() == ["m@prod", "3", "->", "1"]
    assert told(house, "rollback", "m", "prod")["version"] == "3"
    assert run(house, "alias", "m", "prod", "--delete").split() == ["m@prod", "3", "->", "nothing"]
    assert "m:3" in run(house, "delete", "m", "3")
    peer.offer(MODELS)  # its files were taken away, too
    lines = told(house, "history", "m")
    assert [line["kind"] for line in lines] == ["delete_version", "alias", "rollback", "alias", "alias", "register"]
    assert lines[-1]["author"] == "ada"
    assert "rollback" in run(house, "history", "m", "--limit", "3")


def test_the_list_marks_what_is_the_default(house: House) -> None:
    lines = {line.split()[0]: line for line in run(house, "list").splitlines()}
    assert "demo *" in lines["demo"]
    assert "w1" in lines["m:1"]
    assert {entry["model_id"] for entry in told(house, "list")["models"]} == {"demo", "m:1", "m:2"}


def test_traffic_is_set_shown_and_cleared(house: House) -> None:
    options = ["--split", "1=90", "--split", "2=10", "--shadow", "2=0.25", "--fallback", "demo", "--device", "cpu"]
    shown = run(house, "traffic", "m", *options)
    for text in ("m:1", "90 %", "10 %", "shadow, 25%", "fallback", "devices", "cpu"):
        assert text in shown
    assert told(house, "traffic", "m")["splits"] == [
        {"version": "1", "weight": 90.0},
        {"version": "2", "weight": 10.0},
    ]
    assert "no traffic of its own" in run(house, "traffic", "m", "--clear")
    assert "must sum to 100" in run(house, "traffic", "m", "--split", "1=90", code=1)


def test_metadata_is_changed_and_shown(house: House) -> None:
    assert "revision" in run(house, "metadata", "m", "--set", "license=MIT", "--set", 'tags=["a", "b"]')
    found = told(house, "metadata", "m", "--unset", "license", "--revision", "1")
    assert (found["revision"], found["metadata"]["tags"], found["metadata"]["license"]) == (2, ["a", "b"], None)
    assert "its revision is 2" in run(house, "metadata", "m", "--set", "license=BSD", "--revision", "1", code=1)
    assert told(house, "metadata", "m:1", "--set", "cost=2.5")["metadata"]["cost"] == 2.5


def test_the_state_of_each_worker(house: House) -> None:
    shown = run(house, "status", "m")
    assert "loaded" in next(line for line in shown.splitlines() if "m:1" in line)
    assert "on disk" in next(line for line in shown.splitlines() if "m:2" in line)
    assert "demo" not in shown


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["alias", "m", "prod"], 2, "--delete"),
        (["alias", "m", "prod", "1", "--delete"], 2, "--delete"),
        (["alias", "m", "prod", "11"], 1, "Did you mean m:1"),
        (["traffic", "m", "--split", "1"], 2, "NUMBER"),
        (["traffic", "m", "--split", "1=all"], 2, "VERSION=NUMBER"),
        (["traffic", "m", "--clear", "--split", "1=100"], 2, "--clear"),
        (["metadata", "m", "--set", "license"], 2, "FIELD=VALUE"),
        (["metadata", "m", "--set", "licence=MIT"], 1, "license"),
        (["metadata", "m", "--set", f'user={{"x": {2**64}}}'], 1, "error: malformed_message: An integer"),
        (["show", "nothing"], 1, "No worker has this model"),
        (["rollback", "m", "canary"], 1, "has not pointed to another"),
    ],
)
def test_what_is_wrong_is_said(house: House, arguments: list[str], code: int, hint: str) -> None:
    assert hint in run(house, *arguments, code=code)
