"""Big attachments, and readers that do not read."""

import os
import time
from collections.abc import Iterator

import psutil
import pytest
import zmq

from orchestrator.client import Blob, Client
from protocol.limits import MIB
from tests.e2e.house import House, told

BOUND = 16 * MIB


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """A server that lets little wait for one connection and keeps few results."""
    with House(outbox_bytes_max=BOUND, result_keep_bytes_max=BOUND) as started:
        started.start_worker("w1")
        started.start_orchestrator()
        started.wait_for_workers("w1")
        yield started


@pytest.mark.parametrize("sizes", [[1], [60], [20, 20, 20]])
@pytest.mark.parametrize("wait", [True, False])
def test_round_trip(client: Client, sizes: list[int], wait: bool) -> None:
    blobs = [Blob(os.urandom(size * MIB), "application/octet-stream") for size in sizes]
    job = client.submit("system.noop", wait=wait, attachments=blobs)
    assert job.result(30).attachments == blobs


def test_a_slow_reader(client: Client, house: House) -> None:
    """It asks for 256 MiB and reads nothing: memory stays bounded, others are served, the last result can be had."""
    assert house.orchestrator is not None
    orchestrator = psutil.Process(house.orchestrator.pid)
    before = orchestrator.memory_info().rss
    session = client.sessions.create("slow").session_id
    slow = house.raw(high_water_mark=1)
    for number in range(32):
        while not slow.socket.poll(100, zmq.POLLOUT):
            pass
        slow.request(f"slow-{number}", "system.noop", {"echo": told(reply_bytes=8 * MIB)}, session_id=session)
    pings, largest = [], 0
    while client.sessions.get(session).jobs["completed"] < 32:
        sent = time.monotonic()
        client.ping()
        pings.append(time.monotonic() - sent)
        largest = max(largest, orchestrator.memory_info().rss)
        time.sleep(0.01)
    assert sorted(pings)[len(pings) // 2] < 0.1
    assert largest - before < 4 * BOUND  # the outbox, kept results, and what is on its way
    last = next(info for info in client.jobs.list(session_id=session) if info.request_id == "slow-31")
    (blob,) = client.jobs.result(last.job_id, 10).attachments
    assert len(blob.content) == 8 * MIB
    told_behind = house.orchestrator.log.count("too far behind")
    assert told_behind >= 24
