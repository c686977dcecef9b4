"""A model's files change while it answers: no request is lost, and each answer is the claimed version's own."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.client import Client, Prediction
from protocol.errors import ModelNotFound
from tests.e2e.house import House, Worker, eventually
from tests.instructors import onnx_models

ASKERS = 16
NO_CACHE = "[cache]\nenabled = false\n"


@pytest.fixture(scope="module")
def models(house: House) -> Path:
    models = house.folder / "models"
    put(models / "plain", 1)
    put(models / "doomed", 2)
    return models


@pytest.fixture(scope="module")
def worker(house: House, models: Path) -> Worker:
    worker = house.start_worker("onnx", "--models", str(models))
    house.wait_for_workers("onnx")
    return worker


@pytest.fixture
def server(worker: Worker, client: Client) -> Iterator[Client]:
    return client


def put(folder: Path, factor: float) -> None:
    """A model that multiplies, in place of what is there, as a careful operator would: the file is whole at once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(NO_CACHE)
    onnx_models.affine(folder / "new.part", factor, 0)
    os.replace(folder / "new.part", folder / "model.onnx")


class Askers:
    """Threads that ask without a pause, and remember what they were answered."""

    def __init__(self, client: Client, model_id: str) -> None:
        self.answers: list[tuple[float, Prediction]] = []  # (what was asked, answer)
        self.latencies: list[tuple[float, float]] = []  # (when it was asked, how long it took), seconds
        self.errors: list[BaseException] = []
        self._client, self._model_id = client, model_id
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(ASKERS)]

    def _run(self, number: int) -> None:
        value = float(number)
        while not self._stop.is_set():
            value += ASKERS
            begun = time.monotonic()
            try:
                answer = self._client.predict(self._model_id, {"x": np.full((1, 1), value, np.float32)})
                self.answers.append((value, answer))
                self.latencies.append((begun, time.monotonic() - begun))
            except BaseException as error:
                self.errors.append(error)

    def __enter__(self) -> "Askers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def factors_of_last(self) -> set[float]:
        return {float(answer.outputs["y"][0, 0]) / value for value, answer in self.answers[-ASKERS:] if value}

    def factors(self) -> set[float]:
        return {float(answer.outputs["y"][0, 0]) / value for value, answer in self.answers if value}


def test_changed_files_take_over_without_a_lost_request(server: Client, worker: Worker, models: Path) -> None:
    with Askers(server, "plain") as askers:
        eventually(lambda: len(askers.answers) > 200, 20)
        put(models / "plain", 3)
        eventually(lambda: 3.0 in askers.factors(), 30)
    assert askers.errors == []
    assert askers.factors() == {1.0, 3.0}
    assert askers.factors_of_last() == {3.0}
    eventually(lambda: len(worker.runners()) == 1)  # the old one left when nobody used it any more


def test_a_new_model_that_fails_leaves_the_old_one_serving(server: Client, worker: Worker, models: Path) -> None:
    put(models / "plain", 5)
    eventually(lambda: server.predict("plain", {"x": [[1.0]]}).outputs["y"] == 5, 30)
    (models / "plain/model.onnx").write_bytes(b"rubbish")
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert server.predict("plain", {"x": [[2.0]]}).outputs["y"] == 10
    assert "the old model stays" in worker.log
    put(models / "plain", 7)
    eventually(lambda: server.predict("plain", {"x": [[1.0]]}).outputs["y"] == 7, 30)


def test_a_model_that_is_deleted_while_it_is_loaded_answers_or_is_not_found(server: Client, models: Path) -> None:
    """It goes on until the worker has noticed, and then leaves."""
    assert server.predict("doomed", {"x": [[1.0]]}).outputs["y"] == 2
    shutil.rmtree(models / "doomed")
    answers: list[float] = []

    def ask_on() -> None:
        while len(answers) < 100_000:
            answers.append(float(server.predict("doomed", {"x": [[3.0]]}).outputs["y"][0, 0]))

    with pytest.raises(ModelNotFound):
        ask_on()
    assert len(answers) > 10
    assert set(answers) == {6.0}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_reloads_under_load(server: Client, worker: Worker, models: Path) -> None:
    """Nothing is lost, memory stays flat, and the 99th percentile within twice what it was."""
    put(models / "plain", 1)
    with Askers(server, "plain") as askers:
        eventually(lambda: len(askers.answers) > 2000, 60)
        begun, memory = time.monotonic(), rss(worker)
        for number in range(2, 52):
            put(models / "plain", number)
            eventually(lambda number=number: float(number) in askers.factors_of_last(), 30)
    assert askers.errors == []
    before = [latency for at, latency in askers.latencies if at < begun]
    during = [latency for at, latency in askers.latencies if at >= begun]
    assert np.percentile(during, 99) <= 2 * np.percentile(before, 99)
    assert rss(worker) < memory + 32 * 2**20
    eventually(lambda: len(worker.runners()) <= 2)


def rss(worker: Worker) -> int:
    """Bytes of the worker and of its models' processes."""
    return sum(process.memory_info().rss for process in [worker.child, *worker.runners()])
