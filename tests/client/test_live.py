"""The client against the real orchestrator and worker."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image as PillowImage
from PIL import ImageChops, ImageStat

from orchestrator.client import AsyncClient, Blob, Client, LocalServer, StartFailed, attach_pictures
from orchestrator.client.sync import Jobs
from protocol.errors import Cancelled, InvalidRequest, NotFound, RequestConflict, TimeoutRun, UnknownAction
from protocol.ids import new_id
from protocol.recipe import read, request_data
from protocol.schemas.inference import Text2ImgData
from protocol.schemas.system import NoopData, NoopResult

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle on a white background"
NOOP = "system.noop"

pytestmark = pytest.mark.timeout(180)  # workers load their libraries, which takes long on a busy machine


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LocalServer(devices=["cpu"], models=ROOT / "models") as connected:
        yield connected


def test_a_picture_with_its_recipe(client: Client, tmp_path: Path) -> None:
    result = client.text2img(PROMPT, steps=4, seed=7, num_images=2)
    assert [image.seed for image in result.images] == [7, 8]
    first = result.images[0]
    assert first.pil.size == (64, 64)
    recipe = read(first.save(tmp_path / "out.png").read_bytes())
    assert recipe == first.recipe
    assert recipe is not None
    assert (recipe["prompt"], recipe["steps"], recipe["seed"]) == (PROMPT, 4, 7)
    assert (result.attempt, result.worker_id) == (1, client.workers()[0].worker_id)
    again = client.run("inference.text2img", Text2ImgData(prompt=PROMPT, steps=4, seed=7))
    assert again.images[0].bytes == first.bytes


def test_a_picture_is_changed_a_little_and_its_recipe_knows_from_what(client: Client) -> None:
    first = client.text2img(PROMPT, steps=8, seed=7).images[0]
    changed = client.img2img(PROMPT, first.pil, strength=0.15, steps=8, seed=3).images[0]
    before, after = first.pil.convert("RGB"), changed.pil
    differences = ImageChops.difference(before, after).convert("L")
    assert 0 < ImageStat.Stat(differences).mean[0] < 16
    assert changed.recipe is not None
    sent = attach_pictures({"image": first.pil})[1][0].content
    assert changed.recipe["inputs"] == {"image": hashlib.sha256(sent).hexdigest()}
    data = request_data(changed.recipe, {"image": {"attachment": 0}})
    again = client.run("inference.img2img", data, attachments=[Blob(sent, "image/png")])
    assert again.images[0].bytes == changed.bytes


def test_a_mask_keeps_the_rest(client: Client) -> None:
    first = client.text2img(PROMPT, steps=8, seed=7).images[0]
    mask = PillowImage.new("L", first.pil.size)
    mask.paste(255, (0, 0, 32, 64))
    painted = client.inpainting("a blue square on a white background", first, mask, mask_blur=0, steps=8).images[0]
    half = (32, 0, 64, 64)
    assert painted.pil.crop(half).tobytes() == first.pil.convert("RGB").crop(half).tobytes()
    assert painted.pil.crop((0, 0, 32, 64)).tobytes() != first.pil.convert("RGB").crop((0, 0, 32, 64)).tobytes()


def test_events_of_a_picture(client: Client) -> None:
    data = {"prompt": PROMPT, "steps": 6, "preview": {"every_steps": 2}}
    job = client.submit("inference.text2img", data, events=["state", "progress", "preview", "item"])
    events = list(job.events())
    assert [event.data["status"] for event in events if event.kind == "state"] == ["pending", "processing", "completed"]
    assert [event.data["step"] for event in events if event.kind == "progress"][-1] == 6
    previews = [event.image for event in events if event.kind == "preview"]
    assert previews
    assert all(image is not None and image.pil.width > 0 for image in previews)
    item = next(event for event in events if event.kind == "item")
    assert item.image is not None
    assert item.image.bytes == job.result().images[0].bytes


def test_data_and_attachments_are_echoed(client: Client) -> None:
    blobs = [Blob(b"small"), Blob(os.urandom(300_000), "image/png"), Blob(b"")]
    result = client.run(NOOP, NoopData(echo={"a": [1, None, "x"]}), attachments=blobs)
    assert result.parse(NoopResult).echo == {"a": [1, None, "x"]}
    assert result.attachments == blobs


def test_threads_share_a_connection_and_get_their_own_answers(client: Client) -> None:
    def work(thread: int) -> list[str]:
        return [client.run(NOOP, {"echo": f"{thread}-{n}"}).data["echo"] for n in range(25)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(8)))
    assert answers == [[f"{thread}-{n}" for n in range(25)] for thread in range(8)]


def test_futures_end_and_call_back(client: Client) -> None:
    ended: list[object] = []
    jobs = [client.submit(NOOP, {"echo": n}) for n in range(20)]
    for job in jobs:
        job.add_done_callback(ended.append)
    assert [job.result().data["echo"] for job in jobs] == list(range(20))
    assert sorted(map(id, ended)) == sorted(map(id, jobs))


def test_a_durable_job_its_events_and_its_result_by_id(client: Client) -> None:
    job = client.submit(NOOP, {"echo": "kept"}, wait=False, events=["state"])
    assert job.job_id is not None
    assert job.estimated_completion_ms is not None
    assert [event.data["status"] for event in job.events()] == ["pending", "processing", "completed"]
    assert job.result().data == {"echo": "kept"}
    assert client.jobs.result(job.job_id).data == {"echo": "kept"}
    assert client.jobs.get(job.job_id).status == "completed"
    assert job.job_id in [item.job_id for item in client.jobs.list(status="completed", limit=5)]


def test_events_are_replayed_from_any_point(client: Client) -> None:
    job = client.submit(NOOP, {"sleep_ms": 50}, wait=False)
    job.result()
    assert job.job_id
    seen = [event.seq for event in client.jobs.events(job.job_id)]
    assert seen == sorted(set(seen))
    for position, seq in enumerate(seen):
        assert [event.seq for event in client.jobs.events(job.job_id, after_seq=seq)] == seen[position + 1 :]


def test_a_durable_picture_comes_with_its_bytes(client: Client) -> None:
    job = client.submit("inference.text2img", {"prompt": PROMPT, "steps": 2}, wait=False)
    assert job.result().images[0].pil.size == (64, 64)


def test_cancel(client: Client) -> None:
    running = client.submit(NOOP, {"sleep_ms": 60_000}, events=["state"])
    waiting = client.submit(NOOP, {"sleep_ms": 60_000}, wait=False)
    events = running.events(timeout_s=20)
    while next(events).data["status"] != "processing":
        pass
    running.cancel(timeout_s=10)
    waiting.cancel(timeout_s=10)
    for job in (running, waiting):
        with pytest.raises(Cancelled):
            job.result(timeout_s=10)


def test_a_local_timeout_cancels_what_nobody_waits_for(client: Client) -> None:
    with pytest.raises(TimeoutError):
        client.run(NOOP, {"sleep_ms": 60_000}, timeout_s=0.3)
    began = time.monotonic()
    assert client.run(NOOP, {"echo": 1}, timeout_s=20).data == {"echo": 1}  # the worker is free again
    assert time.monotonic() - began < 10


def test_errors_of_the_server_are_exceptions(client: Client) -> None:
    with pytest.raises(UnknownAction) as unknown:
        client.run("inference.text2imgg")
    assert unknown.value.details["nearest"] == "inference.text2img"
    with pytest.raises(InvalidRequest, match="did you mean steps"):
        client.text2img(PROMPT, step=3)
    with pytest.raises(NotFound):
        client.jobs.get("nope")
    with pytest.raises(NotFound):
        list(client.jobs.events("nope"))
    with pytest.raises(TimeoutRun):
        client.run(NOOP, {"sleep_ms": 60_000}, run_timeout_ms=100)


def test_one_request_id_is_one_job_however_often_it_is_asked(client: Client) -> None:
    request_id = new_id()
    with Client(client.core.endpoint) as other:
        jobs = [asker.submit(NOOP, {"echo": 1, "sleep_ms": 200}, request_id=request_id) for asker in (client, other)]
        assert [job.result().data["echo"] for job in jobs] == [1, 1]
        assert len({job.job_id for job in jobs}) == 1
        with pytest.raises(RequestConflict):
            other.run(NOOP, {"echo": 2}, request_id=request_id)


def test_sessions_and_their_defaults(client: Client) -> None:
    session = client.sessions.create("posters", defaults={"steps": 3, "seed": 5}, priority=7)
    result = client.text2img(PROMPT, session_id=session.session_id)
    assert result.images[0].recipe is not None
    assert (result.images[0].recipe["steps"], result.images[0].seed) == (3, 5)
    found = client.sessions.get(session.session_id)
    assert (found.name, found.priority, found.jobs["completed"]) == ("posters", 7, 1)
    assert session.session_id in [item.session_id for item in client.sessions.list()]
    slow = client.submit(NOOP, {"sleep_ms": 60_000}, session_id=session.session_id)
    while slow.job_id is None:
        time.sleep(0.01)
    assert client.sessions.cancel(session.session_id).cancelled_jobs == 1
    with pytest.raises(Cancelled):
        slow.result(timeout_s=10)


def test_artifacts(client: Client) -> None:
    content = os.urandom(100_000)
    info = client.artifacts.put(content, "image/png")
    assert info.nbytes == len(content)
    assert client.artifacts.get(info.artifact_id) == Blob(content, "image/png")
    with pytest.raises(NotFound):
        client.artifacts.get("nope")


def test_what_the_server_says_of_itself(client: Client) -> None:
    assert client.ping(timeout_s=5).time
    assert client.info().protocol == 1
    assert client.stats().workers == 1
    assert "inference.text2img" in client.capabilities().actions
    assert client.models.list().default_model_id == "demo"
    assert isinstance(client.jobs, Jobs)


async def test_the_same_with_await(client: Client) -> None:
    async with AsyncClient(client.core.endpoint, timeout_s=30) as aclient:
        results = await asyncio.gather(*(aclient.run(NOOP, {"echo": n}) for n in range(30)))
        assert [result.data["echo"] for result in results] == list(range(30))
        picture = await aclient.text2img(PROMPT, steps=2)
        assert picture.images[0].pil.size == (64, 64)
        job = await aclient.submit(NOOP, {"sleep_ms": 30}, wait=False, events=["state"])
        assert [event.data["status"] async for event in job.events()] == ["pending", "processing", "completed"]
        assert job.job_id
        assert (await aclient.jobs.result(job.job_id)).data == {"echo": None}
        session = await aclient.sessions.create(defaults={"echo": "d"})
        assert (await aclient.run(NOOP, session_id=session.session_id)).data == {"echo": "d"}
        info = await aclient.artifacts.put(b"abc")
        assert (await aclient.artifacts.get(info.artifact_id)).content == b"abc"
        assert len(await aclient.workers()) == 1
        task = asyncio.create_task(aclient.run(NOOP, {"sleep_ms": 60_000}))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await aclient.run(NOOP, {"echo": 1}, timeout_s=10)).data == {"echo": 1}


def test_a_killed_orchestrator_is_started_again_and_those_who_waited_get_their_results(tmp_path: Path) -> None:
    server = LocalServer(devices=["cpu"], models=tmp_path)
    with server as client:
        waiting = client.submit(NOOP, {"echo": "waited", "sleep_ms": 1500})
        durable = client.submit(NOOP, {"echo": "kept", "sleep_ms": 100}, wait=False, events=["state"])
        orchestrator = server._stack.orchestrator
        assert orchestrator is not None
        orchestrator.kill()
        assert waiting.result(timeout_s=90).data == {"echo": "waited"}
        assert durable.result(timeout_s=90).data == {"echo": "kept"}
        seen = [event.seq for event in durable.events(timeout_s=20)]
        assert seen == sorted(set(seen))
        assert len(client.jobs.list()) >= 1


PROGRAM = """
import sys, time
from orchestrator.client import LocalServer
with LocalServer(devices=["cpu"], models="/nowhere") as client:
    client.submit("system.noop", {"sleep_ms": 600000}, events=["state"])
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_program(how: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="atl") as folder:  # a killed program leaves its temporary files
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": folder},
        )
        assert program.stdout is not None
        with program.stdout:
            assert program.stdout.readline() == b"up\n"
            children = psutil.Process(program.pid).children(recursive=True)
            assert len(children) == 3  # the orchestrator, the worker and the worker's child
            program.send_signal(how)
            program.wait(20)
            assert psutil.wait_procs(children, timeout=20)[1] == []
        if how is signal.SIGINT:
            assert list(Path(folder).iterdir()) == []


def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="atelier doctor"), LocalServer(devices=["cuda:99"], models=tmp_path):
        pass
    monkeypatch.setenv("ATELIER_LEASE_MS", "1")
    with pytest.raises(StartFailed, match="lease_ms"), LocalServer(devices=["cpu"], models=tmp_path):
        pass
