"""Clients that vanish or freeze: their waiting jobs end, their accepted ones go on, and nobody else notices."""

import signal
import time
from pathlib import Path

import pytest

from orchestrator.client import Client
from tests.e2e.house import House, Process, eventually, lines, told

DETECTION_S = 8.0  # of a frozen peer: a ZMTP heartbeat every 2 s, 6 s for its answer; a closed one is seen at once
STEP_S = 0.5


def start_client(house: House, waiting: Path, accepted: Path) -> Process:
    """A program that submits a waiting and an accepted job, and waits."""
    program = f"""
from orchestrator.client import Client
from tests.e2e.house import told
client = Client({house.endpoint!r})
job = client.submit("system.noop", {{"echo": told(append={str(waiting)!r}), "sleep_ms": 60_000}})
client.submit("system.noop", {{"echo": told(append={str(accepted)!r})}}, wait=False)
job.result()
"""
    return house.run(["-c", program], "client.log")


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_vanished_client(house: House, client: Client, how: str) -> None:
    waiting, accepted = house.file(f"waiting-{how}"), house.file(f"accepted-{how}")
    process = start_client(house, waiting, accepted)
    eventually(lambda: lines(waiting) == 1)  # it runs; the accepted one waits behind it
    eventually(lambda: client.stats().queued == 1)
    jobs = {info.status.value: info.job_id for info in client.jobs.list(limit=2)}
    begun = time.monotonic()
    grace_s = house.settings["reconnect_grace_ms"] / 1000
    if how == "killed":
        process.kill()
        limit_s = grace_s + house.settings["alive_ms"] / 1000 + STEP_S
    else:
        process.signal(signal.SIGSTOP)
        limit_s = DETECTION_S + grace_s + STEP_S
    pings = []
    while client.jobs.get(jobs["processing"]).status != "cancelled":
        sent = time.monotonic()
        client.ping()
        pings.append(time.monotonic() - sent)
        assert time.monotonic() - begun < limit_s
        time.sleep(0.02)
    assert time.monotonic() - begun >= grace_s
    assert sorted(pings)[len(pings) // 2] < 0.1  # the others are served meanwhile
    eventually(lambda: lines(accepted) == 1, STEP_S + 2)  # the worker has left the cancelled one
    assert client.jobs.result(jobs["pending"], 10).data["echo"] == told(append=accepted)
    if how == "frozen":
        process.signal(signal.SIGCONT)
        process.kill()


def test_a_client_that_comes_back_within_the_grace_finds_its_job(house: House) -> None:
    """Its connection breaks; it asks again under the same id, on a new one."""
    file = house.file("back")
    first, second = house.raw(), house.raw()
    data = {"echo": told(append=file), "sleep_ms": 1500}
    first.request("back", "system.noop", data)
    eventually(lambda: lines(file) == 1)
    first.socket.close(linger=0)
    time.sleep(house.settings["reconnect_grace_ms"] / 2000)
    second.request("back", "system.noop", data)
    answer = second.answer()
    assert (answer["status"], answer["attempt"], lines(file)) == ("completed", 1, 1)
