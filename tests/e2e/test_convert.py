"""Conversions by a real worker, which goes on answering meanwhile, and ends one that nobody wants any more."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator.client import Client
from protocol.errors import Cancelled, ModelNotFound, RequestConflict
from tests.e2e.house import ROOT, House, Worker, eventually
from tests.instructors.converting import classifier

pytestmark = pytest.mark.timeout(180)
NOOP_S = 5.0  # on a busy machine; one that waited for the conversion would take longer


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        classifier(started.folder / "models/topics")
        started.start_orchestrator()
        yield started


@pytest.fixture(scope="module")
def worker(house: House) -> Worker:
    worker = house.start_worker("converts", "--models", str(house.folder / "models"), "--slots", "2")
    house.wait_for_workers("converts")
    return worker


@pytest.fixture
def client(house: House, worker: Worker) -> Iterator[Client]:
    with Client(house.endpoint, timeout_s=60) as connected:
        yield connected


def converters(worker: Worker) -> list[psutil.Process]:
    """The processes that convert for this worker."""
    children = psutil.Process(worker.pid).children(recursive=True)
    return [child for child in children if "instructors.pipelines.convert" in child.cmdline()]


def test_the_worker_answers_others_meanwhile(house: House, worker: Worker, client: Client) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "models", "convert", "topics", "--name", "new", "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, env=house.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as cli:
        longest, answered = 0.0, 0
        while cli.poll() is None:
            begun = time.monotonic()
            client.run("system.noop", {"echo": answered})
            longest, answered = max(longest, time.monotonic() - begun), answered + 1
            time.sleep(0.05)
        out, err = cli.communicate()
    assert cli.returncode == 0, err
    made = json.loads(out)
    assert made["model_id"] == "new:1"
    assert made["components"]["model"]["max_rel_error"] < 1e-4
    assert (house.folder / "models/new/1/model.onnx").stat().st_size < made["nbytes"]
    assert answered > 5
    assert longest < NOOP_S
    told = subprocess.run(command[:-1], cwd=ROOT, env=house.environment(), capture_output=True, text=True, timeout=60)
    assert told.stdout.splitlines()[-1].startswith("new:1: 3 files, "), told.stderr
    again = client.models.convert("topics", "new")
    assert (again.model_id, again.components) == ("new:1", made["components"])


def test_what_was_made_is_served_at_once(client: Client) -> None:
    """The model of the test before, without a restart of the worker."""
    eventually(lambda: "new:1" in {entry["model_id"] for entry in client.models.list().models}, 20)
    ids = np.arange(10).reshape(2, 5)
    made = client.predict("new", {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert made.model_version == "1"
    assert made.outputs["logits"].shape == (2, 3)
    assert np.isfinite(made.outputs["logits"]).all()


def test_cancelling_ends_the_process_and_leaves_nothing(house: House, worker: Worker, client: Client) -> None:
    job = client.submit("model.convert", {"source": "topics", "name": "unwanted", "precision": "float16"})
    eventually(lambda: converters(worker))
    (process,) = converters(worker)
    job.cancel(timeout_s=10)
    with pytest.raises(Cancelled):
        job.result(timeout_s=10)
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    models = house.folder / "models"
    eventually(lambda: not list((models / ".staging").iterdir()))
    assert not (models / "unwanted").exists()


def test_what_goes_wrong_is_told_to_the_client(client: Client, house: House) -> None:
    with pytest.raises(ModelNotFound):
        client.models.convert("nowhere", "new")
    taken = house.folder / "models/taken/1"
    taken.mkdir(parents=True)
    with pytest.raises(RequestConflict) as told:
        client.models.convert("topics", "taken", version="1")
    assert str(Path(house.folder)) not in str(told.value.to_wire())
