"""`inference.validate`: what a request would be answered, and where it would run, asked of a real server."""

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from orchestrator.client import Client
from protocol.errors import AtelierError, InvalidRequest
from protocol.schemas.inference import ValidateResult
from tests.e2e.house import ROOT, House, eventually, lines, told

PICTURE = {"prompt": "a red circle on a white background", "steps": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[House]:
    """A worker with the model that is shipped, and one without any model."""
    with House(models_dir=ROOT / "models", queue_jobs_max=3) as house:
        house.start_worker("painter", "--models", str(ROOT / "models"), "--slots", "1")
        house.start_worker("plain", "--slots", "1")
        house.start_orchestrator()
        house.wait_for_workers("painter", "plain")
        yield house


@pytest.fixture
def client(server: House) -> Iterator[Client]:
    with Client(server.endpoint, timeout_s=60) as connected:
        yield connected


@pytest.mark.timeout(120)
def test_estimates_become_what_was_measured(server: House, client: Client) -> None:
    before = client.stats().jobs
    cold = client.validate("inference.text2img", PICTURE)
    [worker] = cold.workers
    assert (cold.runs, cold.error, cold.estimate_measured) == (True, None, False)
    assert cold.data == {**PICTURE, "model_id": "demo"}
    assert (worker.worker_id, worker.device_id, worker.start_ms, worker.warm) == ("painter", "cpu", 0, False)
    assert worker.load_ms > 0
    assert client.stats().jobs == before, "nothing was made for it"
    assert all(not each.resident_models for each in client.workers()), "nothing was loaded for it"

    ran = client.run("inference.text2img", PICTURE)
    log = server.workers[0].log
    loaded = re.search(r'"nbytes": (\d+), "load_ms": (\d+)', log)
    assert loaded is not None
    eventually(lambda: client.validate("inference.text2img", PICTURE).workers[0].warm)  # with the next heartbeat
    warm = client.validate("inference.text2img", PICTURE)
    [worker] = warm.workers
    assert (warm.estimate_measured, worker.start_ms, worker.load_ms) == (True, 0, 0)
    assert ran.timing is not None
    assert 0 < worker.run_ms <= ran.timing.running_ms - int(loaded[2]) + 1
    assert worker.memory_bytes == pytest.approx(int(loaded[1]), rel=0.01)
    longer = client.validate("inference.text2img", {**PICTURE, "steps": 20, "num_images": 2}).workers[0]
    assert longer.run_ms == pytest.approx(20 * worker.run_ms, abs=20)


def test_any_action_of_workers(server: House, client: Client) -> None:
    found = client.validate("system.noop", {"echo": 7})
    facts = {at.worker_id: (at.device_id, at.start_ms, at.load_ms, at.memory_bytes, at.warm) for at in found.workers}
    assert facts == dict.fromkeys(("painter", "plain"), ("cpu", 0, 0, None, True))
    assert [at.worker_id for at in client.validate("system.noop", worker_id="plain").workers] == ["plain"]
    with pytest.raises(InvalidRequest) as caught:
        client.validate("job.list")
    assert caught.value.details["fields"][0]["field"] == "action"


def test_a_busy_worker_begins_later(server: House, client: Client) -> None:
    file = server.file("busy")
    job = client.submit("system.noop", {"echo": told(append=file, steps=100)}, worker_id="plain")
    eventually(lambda: lines(file) == 1)
    first, second = client.validate("system.noop", {"echo": 7}).workers
    assert (first.worker_id, first.start_ms, second.worker_id) == ("painter", 0, "plain")
    waiting = client.submit("system.noop", {"echo": "waits"}, worker_id="plain")
    eventually(lambda: client.stats().queued == 1)
    [then] = client.validate("system.noop", {"echo": 7}, worker_id="plain").workers
    assert then.start_ms > 0
    [urgent] = client.validate("system.noop", {"echo": 7}, worker_id="plain", priority=9).workers
    assert urgent.start_ms <= then.start_ms
    assert job.result(20).data["echo"] is not None
    assert waiting.result(20).data == {"echo": "waits"}


def same_error(client: Client, action: str, data: dict[str, Any], **options: Any) -> ValidateResult:
    """What validate tells is what the request itself is answered."""
    found = client.validate(action, data, **options)
    assert not found.runs
    assert found.error is not None
    with pytest.raises(AtelierError) as caught:
        client.submit(action, data, **options).result(20)
    assert found.error == caught.value.to_wire()
    assert found.workers == []
    return found


@pytest.mark.parametrize(
    ("code", "action", "data", "options"),
    [
        ("invalid_request", "inference.text2img", {"promt": "x"}, {}),
        ("invalid_request", "inference.text2img", {**PICTURE, "steps": 0}, {}),
        ("invalid_request", "inference.text2img", {**PICTURE, "scheduler": "eulr"}, {}),
        ("invalid_request", "inference.lora", PICTURE, {}),
        ("model_not_found", "inference.text2img", {**PICTURE, "model_id": "dmo"}, {}),
        ("no_capable_worker", "inference.text2img", PICTURE, {"worker_id": "nobody"}),
        ("no_capable_worker", "inference.text2img", PICTURE, {"device_id": "cuda:7"}),
        ("not_found", "system.noop", {}, {"session_id": "01934b2e-7c00-7000-8000-0000000000aa"}),
        ("unknown_action", "inference.text2image", PICTURE, {}),
    ],
)
def test_a_refusal_is_told_word_for_word(
    client: Client, code: str, action: str, data: dict[str, Any], options: dict[str, Any]
) -> None:
    found = same_error(client, action, data, **options)
    assert found.error is not None
    assert found.error["code"] == code
    assert bool(found.data) == (code in ("model_not_found", "no_capable_worker"))  # where the fields were right


def test_sessions_count(client: Client) -> None:
    session = client.sessions.create(defaults={"steps": 2, "prompt": "by default", "sleep_ms": 5}, priority=7)
    found = client.validate("inference.text2img", {"steps": 3}, session_id=session.session_id)
    assert found.data == {"steps": 3, "prompt": "by default", "model_id": "demo"}
    wrong = client.sessions.create(defaults={"steps": "two"}).session_id
    same_error(client, "inference.text2img", {"prompt": "x"}, session_id=wrong)
    client.sessions.cancel(session.session_id)
    ended = same_error(client, "system.noop", {}, session_id=session.session_id)
    assert ended.error is not None
    assert ended.error["code"] == "not_found"


def test_pictures_need_not_be_sent(client: Client) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    data = {**PICTURE, "image": stream.getvalue(), "strength": 0.5}
    found = client.validate("inference.img2img", data)
    assert (found.runs, found.data["image"]) == (True, {"attachment": 0})
    gone = {**PICTURE, "image": {"artifact_id": "01934b2e-7c00-7000-8000-0000000000bb"}}
    assert client.validate("inference.img2img", gone).runs  # they are not looked at


def test_a_full_queue_and_a_draining_worker(server: House, client: Client) -> None:
    file = server.file("full")
    jobs = [client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 800}, worker_id="plain")]
    eventually(lambda: lines(file) == 1)
    jobs += [client.submit("system.noop", {"echo": number}, worker_id="plain") for number in range(3)]
    eventually(lambda: client.stats().queued == 3)
    full = same_error(client, "system.noop", {})
    assert full.error is not None
    assert (full.error["code"], full.error["retryable"]) == ("queue_full", True)
    for job in jobs:
        job.result(20)
    file = server.file("leaving")
    server.start_worker("leaving", "--slots", "1")
    server.wait_for_workers("leaving")
    last = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 800}, worker_id="leaving")
    eventually(lambda: lines(file) == 1)
    client.drain_worker("leaving")
    found = client.validate("system.noop", worker_id="leaving")
    assert (found.runs, found.workers) == (True, [])  # it would wait for this worker to come back
    last.result(20)


def validate(house: House, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "orchestrator.cli", "validate", *arguments]
    return subprocess.run(command, cwd=ROOT, env=house.environment(), capture_output=True, text=True, timeout=30)


def test_from_the_command_line(server: House) -> None:
    done = validate(server, "a red circle", "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert [at["worker_id"] for at in json.loads(done.stdout)["workers"]] == ["painter"]
    done = validate(server, "a red circle", "--steps", "2")
    assert done.stdout.splitlines()[1].split()[:2] == ["painter", "cpu"]
    assert "MiB" in done.stdout
    done = validate(server, "a red circle", "--model", "dmo")
    assert (done.returncode, done.stdout) == (1, "")
    assert "model_not_found" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_drains(server: House, client: Client) -> None:
    """The last one here: the server is gone after it."""
    file = server.file("draining")
    job = client.submit("system.noop", {"echo": told(append=file), "sleep_ms": 1500}, worker_id="plain")
    eventually(lambda: lines(file) == 1)
    assert server.orchestrator is not None
    server.orchestrator.signal(signal.SIGTERM)
    eventually(lambda: client.stats().draining)
    refused = same_error(client, "system.noop", {})
    assert refused.error is not None
    assert (refused.error["code"], refused.error["retryable"]) == ("draining", True)
    assert job.result(20).attempt == 1
    assert server.orchestrator.wait() == 0
