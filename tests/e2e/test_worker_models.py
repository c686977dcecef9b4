"""What a worker has loaded, and what it offers, while models come, change and go."""

import asyncio
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.cli.group import cli
from orchestrator.client import AsyncClient, Client, Prediction
from protocol.errors import ModelNotFound
from tests.e2e.house import House, Worker, eventually, told
from tests.instructors import onnx_models

ASKERS = 100
NO_CACHE = "[cache]\nenabled = false\n"


def put(folder: Path, factor: float) -> None:
    """A model that multiplies, in place of what is there: the file is whole at once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(NO_CACHE)
    onnx_models.affine(folder / "new.part", factor, 0)
    os.replace(folder / "new.part", folder / "model.onnx")


@pytest.fixture(scope="module")
def models(house: House) -> Path:
    models = house.folder / "models"
    for name, factor in (("first", 2), ("second", 3), ("versioned/1", 1)):
        put(models / name, factor)
    (models / "models.toml").write_text("[first]\nkeep = true\n")
    return models


@pytest.fixture(scope="module")
def worker(house: House, models: Path) -> Worker:
    worker = house.start_worker("changing", "--models", str(models))
    house.wait_for_workers("changing")
    return worker


@pytest.fixture
def server(worker: Worker, client: Client) -> Iterator[Client]:
    return client


def status(server: Client, model_id: str) -> tuple[bool, bool | None]:
    """Whether the worker has it loaded, and whether it is kept."""
    [worker] = [worker for worker in server.models.status() if worker.worker_id == "changing"]
    found = next((model for model in worker.models if model.model_id == model_id), None)
    return (False, None) if found is None else (found.resident, found.kept)


def factor(server: Client, model_id: str) -> float:
    return float(server.predict(model_id, {"x": np.ones((1, 1), np.float32)}).outputs["y"][0, 0])


def test_what_is_to_be_kept_is_there_before_anybody_asks(server: Client, worker: Worker) -> None:
    eventually(lambda: status(server, "first") == (True, True), 20)
    assert status(server, "second") == (False, False)
    assert len(worker.runners()) == 1


def test_a_signal_takes_up_files_and_settings(server: Client, worker: Worker, models: Path) -> None:
    put(models / "first", 5)
    (models / "models.toml").write_text("[second]\nkeep = true\n")
    worker.signal(signal.SIGHUP)
    eventually(lambda: (status(server, "first"), status(server, "second")) == ((True, False), (True, True)), 20)
    assert factor(server, "first") == 5
    assert len(worker.runners()) == 2
    (models / "models.toml").write_text("[second]\nkept = true\n")  # no such setting
    worker.signal(signal.SIGHUP)
    eventually(lambda: "what is kept stays" in worker.log)
    assert (factor(server, "second"), status(server, "second")) == (3, (True, True))
    (models / "models.toml").unlink()


def test_models_come_and_go_beside_a_running_job(server: Client, worker: Worker, models: Path, house: House) -> None:
    job = server.submit("system.noop", {"echo": told(until=house.file("enough"))}, events=["state"])
    assert factor(server, "versioned") == 1
    before = worker.runners()
    put(models / ".staging/coming/2", 99)
    put(models / "versioned/2", 2)
    eventually(lambda: factor(server, "versioned") == 2, 10)
    assert factor(server, "versioned:1") == 1
    shutil.rmtree(models / "versioned/1")

    def refused() -> bool:
        try:
            factor(server, "versioned:1")
        except ModelNotFound:
            return True
        return False

    eventually(refused, 10)
    eventually(lambda: len(worker.runners()) == len(before), 10)  # version 1 left, version 2 came
    assert not any("coming" in entry["model_id"] for entry in server.models.list().models)
    assert factor(server, "first") == 5
    assert server.jobs.get(job.job_id).status == "processing"  # all the while
    house.file("enough").touch()
    job.result(timeout_s=20)
    assert server.jobs.get(job.job_id).attempt == 1
    assert worker.log.count('"event": "welcome"') >= 3  # it said hello with other models, and once at the start


def test_reload_under_a_hundred_askers_drops_none(server: Client, worker: Worker, models: Path) -> None:
    """Each answer is that of the version it claims."""
    put(models / "first", 1)
    server.run("model.reload", {"model_id": "first"})
    first = server.predict("versioned", {"x": np.ones((1, 1), np.float32)}).model_version
    answers: list[float] = []
    claims: list[tuple[str | None, float]] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        value = float(number + 1)
        while not stop.is_set():
            try:
                answer: Prediction = server.predict("first", {"x": np.full((1, 1), value, np.float32)})
                answers.append(float(answer.outputs["y"][0, 0]) / value)
                answer = server.predict("versioned", {"x": np.full((1, 1), value, np.float32)})
                claims.append((answer.model_version, float(answer.outputs["y"][0, 0]) / value))
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        for number in (2, 3, 4):
            put(models / f"versioned/{number + 1}", number + 1)
            put(models / "first", number)
            answer = server.run("model.reload", {"model_id": "first"}, timeout_s=20).data
            assert (answer["reloaded"] + answer["unchanged"], answer["failed"]) == (["first"], [])  # perhaps by itself
            assert factor(server, "first") == number  # from the answer on
            newest = str(number + 1)
            eventually(lambda newest=newest: bool(claims) and claims[-1][0] == newest)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert set(answers) == {1.0, 2.0, 3.0, 4.0}
    assert all(str(round(factor)) == claimed for claimed, factor in claims)
    assert {claimed for claimed, _ in claims} == {first, "3", "4", "5"}
    assert len(answers) > 10 * ASKERS


def test_unloading_frees_the_process(server: Client, worker: Worker) -> None:
    factor(server, "first")
    before = len(worker.runners())
    assert server.run("model.unload", {"model_id": "first"}).data["was_loaded"]
    eventually(lambda: len(worker.runners()) == before - 1)
    eventually(lambda: status(server, "first") == (False, False))


def test_clients_load_take_apart_and_measure(server: Client, worker: Worker, models: Path) -> None:
    put(models / "second", 3)
    loaded = server.models.load("second", keep=True, worker_id="changing")
    assert (loaded.model_id, loaded.kept, loaded.device) == ("second", True, "cpu")
    graph = server.models.components("second").graph
    assert graph is not None
    assert (graph.inputs[0].name, graph.providers) == ("x", ["CPUExecutionProvider"])
    assert server.models.reload("second").unchanged == ["second"]
    first = server.models.benchmark("second", batch_sizes=[1, 2], runs=5)
    second = server.models.benchmark("second", batch_sizes=[1, 2], runs=5)
    assert [batch.runs for batch in first.batches] == [5, 5]
    kept = server.models.benchmarks("second")
    assert [one.batches for one in kept] == [second.batches, first.batches]  # the newest first
    assert (kept[0].worker_id, kept[0].content_hash) == ("changing", loaded.content_hash)
    assert [one.job_id for one in server.models.benchmarks("second", before=kept[0].job_id)] == [kept[1].job_id]
    outcomes = server.models.everywhere("unload", "second")
    assert {name: outcome.was_loaded for name, outcome in outcomes.items()} == {"changing": True}  # type: ignore[union-attr]
    with pytest.raises(ModelNotFound):
        server.models.load("nobody")


async def _with_async_client(endpoint: str) -> None:
    async with AsyncClient(endpoint) as client:
        assert (await client.models.load("second")).model_id == "second"
        assert (await client.models.components("second")).loaded
        assert (await client.models.reload()).failed == []
        assert (await client.models.benchmark("second", runs=2, batch_sizes=[3])).batches[0].batch_size == 3
        assert (await client.models.benchmarks("second", limit=1))[0].batches[0].batch_size == 3
        assert (await client.models.everywhere("load", "second", keep=True))["changing"].kept  # type: ignore[union-attr]
        assert (await client.models.unload("second")).was_loaded


def test_the_async_client_does_the_same(server: Client, house: House) -> None:
    asyncio.run(_with_async_client(house.endpoint))


def test_the_command_line_does_the_same(server: Client, house: House) -> None:
    def atelier(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["models", *arguments, "--connect", house.endpoint], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "loaded in" in atelier("load", "second", "--keep", "--all")
    assert "kept" in json.loads(atelier("load", "second", "--worker", "changing", "--json"))["changing"]
    shown = atelier("components", "second")
    assert "x float32 [batch, width]" in shown
    assert "CPUExecutionProvider" in shown
    assert "unchanged" in atelier("reload")
    atelier("benchmark", "second", "--runs", "3", "--axis", "width=4")
    table = atelier("benchmark", "second", "--runs", "3", "--axis", "width=4")
    assert "█" in table
    assert "compared" in table
    assert "%" in table.splitlines()[-1]
    made = json.loads(atelier("benchmark", "second", "--history", "--json"))
    assert [one["settings"] for one in made[:2]] == [{"axes": {"width": 4}}] * 2
    assert "unloaded" in atelier("unload", "second")
    assert "was not loaded" in atelier("unload", "second")
