"""Several pictures in one running batch, through the real server and worker: lost, urgent and cancelled ones."""

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from orchestrator.client import Client, Job
from protocol.enums import Status
from protocol.errors import Cancelled
from scripts.demo_model.judge import judge
from tests.e2e.house import ROOT, House, eventually

pytestmark = pytest.mark.timeout(180)
COLOURS = ("red", "green", "blue", "yellow", "black", "purple")


@pytest.fixture
def house() -> Iterator[House]:
    with House() as house:
        house.start_orchestrator()
        house.start_worker("w", "--models", str(ROOT / "models"), "--slots", "6")
        house.wait_for_workers("w")
        yield house


def paint(client: Client, colour: str, steps: int, **options: Any) -> Job:
    data = {"prompt": f"a {colour} circle on a white background", "steps": steps, "seed": 3, "guidance_scale": 4.0}
    return client.submit("inference.text2img", data, **options)


def at_work(client: Client, jobs: list[Job]) -> bool:
    return all((client.jobs.get(job.job_id).progress or 0) > 0 for job in jobs if job.job_id)


def colour_of(job: Job) -> str | None:
    [picture] = job.result(120).attachments
    return judge(Image.open(io.BytesIO(picture.content))).shape_colour


def test_a_killed_worker_loses_no_picture_of_the_batch(house: House) -> None:
    client = house.client(timeout_s=120)
    jobs = [paint(client, colour, 25, wait=False) for colour in COLOURS]
    eventually(lambda: at_work(client, jobs), 60)
    house.workers[0].child.kill()
    assert [colour_of(job) for job in jobs] == list(COLOURS)
    for job in jobs:
        info = client.jobs.get(job.job_id)
        assert (info.status, info.attempt) == (Status.COMPLETED, 2)


def test_an_urgent_picture_overtakes_a_full_worker_and_a_cancelled_one_leaves_at_once(house: House) -> None:
    client = house.client(timeout_s=120)
    jobs = [paint(client, colour, 600, wait=False) for colour in COLOURS]
    eventually(lambda: at_work(client, jobs), 60)
    assert colour_of(paint(client, "orange", 12, priority=9)) == "orange"
    assert not any(client.jobs.get(job.job_id).status.terminal for job in jobs)
    begun = time.monotonic()
    jobs[0].cancel()
    with pytest.raises(Cancelled):
        jobs[0].result(30)
    assert time.monotonic() - begun < 10
    before = [client.jobs.get(job.job_id).progress or 0 for job in jobs[1:]]
    eventually(lambda: [client.jobs.get(job.job_id).progress or 0 for job in jobs[1:]] > before, 30)
    for job in jobs[1:]:
        job.cancel()
