"""Versions, aliases and traffic through a real server and a real worker: each answer is of the version it claims."""

import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.client import Client
from protocol.errors import ModelInvalid
from tests.e2e.house import ROOT, House, eventually
from tests.instructors import onnx_models

DEMO = ROOT / "models" / "demo"
PROMPT = "a red circle on a white background"
PREDICT = "inference.predict"
OFFSETS = {"1": 100.0, "2": 200.0, "3": 300.0, "4": 400.0, "5": 500.0, "6": 600.0, "10": 1000.0}


def add(models: Path, name: str, version: str, offset: float) -> None:
    """A version that adds `offset` to what it gets."""
    file = models / name / version / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx_models.affine(file, 1, offset)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """One worker with the demo model, and versions of `adder` whose answers tell them apart."""
    with House() as started:
        models = started.folder / "models"
        shutil.copytree(DEMO, models / "demo")
        for version, offset in OFFSETS.items():
            add(models, "adder", version, offset)
        broken = models / "adder" / "0-broken" / "model.onnx"
        broken.parent.mkdir()
        broken.write_bytes(b"no model at all")
        started.start_worker("w1", "--models", str(models), "--slots", "4")
        started.start_orchestrator()
        started.wait_for_workers("w1")
        yield started


def ask(client: Client, model_id: str | None, value: float, **more: object) -> tuple[str, float]:
    """(the version that the answer claims, the answer)."""
    tensor = {"name": "x", "dtype": "float32", "shape": [1, 1], "data": struct.pack("<f", value)}
    result = client.run(PREDICT, {"model_id": model_id, "inputs": [tensor], **more}, timeout_s=30)
    [output] = result.data["outputs"]
    data = output["data"] if output["data"] is not None else result.attachments[output["attachment"]].content
    return result.data["model_version"], struct.unpack("<f", data)[0]


def test_a_request_that_names_no_model_gets_the_one_that_can(client: Client) -> None:
    result = client.text2img(PROMPT, steps=2, seed=7)
    assert result.images[0].recipe is not None
    assert result.images[0].recipe["model_id"] == "demo"
    assert ask(client, None, 1.0) == ("10", 1001.0)
    told = client.models.list()
    assert told.default_model_id == told.default_model_ids["inference.img2img"] == "demo"
    assert told.default_model_ids["inference.predict"] == "adder"


def test_each_name_is_answered_by_its_version(client: Client) -> None:
    client.models.set_alias("adder", "prod", "1")
    for name, version in (("adder", "10"), ("adder:2", "2"), ("adder@prod", "1"), ("models:/adder@prod", "1")):
        assert ask(client, name, 5.0) == (version, 5.0 + OFFSETS[version])


def test_every_answer_under_a_split_and_moving_aliases_is_of_the_version_it_claims(client: Client) -> None:
    client.models.set_alias("adder", "live", "1")
    client.models.set_traffic("adder", {"1": 50, "2": 50})

    def one(number: int) -> tuple[str, float, float]:
        name = "adder" if number % 2 else "adder@live"
        return *ask(client, name, float(number), routing_key=str(number)), float(number)

    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(one, range(300))
        for version in ("2", "10", "1", "2"):
            client.models.set_alias("adder", "live", version)
        found = list(answers)
    client.models.set_traffic("adder")
    assert len(found) == 300
    for version, result, value in found:
        assert result == value + OFFSETS[version]
    assert {version for version, _, _ in found} >= {"1", "2"}


def test_a_version_is_in_memory_when_its_alias_leads_there(client: Client) -> None:
    client.models.set_alias("adder", "stable", "3")
    assert ask(client, "adder@stable", 1.0) == ("3", 301.0)
    eventually(lambda: "w1" in client.models.info("adder:3").resident_on)
    assert client.models.set_alias("adder", "stable", "4").loaded_on == ["w1"]
    eventually(lambda: "w1" in client.models.info("adder:4").resident_on)
    with pytest.raises(ModelInvalid, match="The alias stays: w1 could not load adder:0-broken"):
        client.models.set_alias("adder", "stable", "0-broken")
    assert ask(client, "adder@stable", 1.0) == ("4", 401.0)
    assert client.models.rollback("adder", "stable").version == "3"


def test_a_fallback_takes_over_where_a_version_cannot_be_loaded(client: Client) -> None:
    with pytest.raises(ModelInvalid):
        ask(client, "adder:0-broken", 1.0)
    assert ask(client, "adder:0-broken", 1.0, fallbacks=["adder@gone", "adder:2"]) == ("2", 201.0)
    client.models.set_traffic("adder", {"0-broken": 100}, fallbacks=["adder:1"])
    assert ask(client, "adder", 1.0) == ("1", 101.0)
    client.models.set_traffic("adder")


def test_a_shadow_is_compared_with_what_was_answered(client: Client) -> None:
    client.models.set_traffic("adder", {"1": 100}, shadow={"version": "2", "fraction": 1.0})
    for number in range(5):
        assert ask(client, "adder", float(number)) == ("1", number + 100.0)
    eventually(lambda: (shadow := client.models.info("adder:2").shadow) is not None and shadow.compared > 0)
    client.models.set_traffic("adder")
    shadow = client.models.info("adder:2").shadow
    assert shadow is not None
    assert (shadow.equal, shadow.max_abs_diff, shadow.equal_share) == (0, 100.0, 0.0)


def test_figures_are_kept_version_by_version(client: Client) -> None:
    for number in range(4):
        ask(client, "adder:5", float(number))
    ask(client, "adder:6", 1.0)

    def counts() -> list[int]:
        return [client.models.info(f"adder:{version}").totals.inference_count for version in ("5", "6")]

    eventually(lambda: counts() == [4, 1])
