"""Results, events and artifacts that outlive the server's memory, the server itself, and at last nothing."""

import os
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from orchestrator.client import Blob
from protocol.errors import NotFound
from protocol.limits import KIB
from tests.e2e.house import House, eventually, told

KEEP_MS = 200


@pytest.fixture(scope="module")
def server() -> Iterator[House]:
    with House(result_keep_ms=KEEP_MS) as house:
        house.start_worker("w1")
        house.start_orchestrator()
        house.wait_for_workers("w1")
        yield house


def restart(server: House) -> None:
    assert server.orchestrator is not None
    server.orchestrator.kill()
    server.start_orchestrator()
    server.wait_for_workers("w1")


def test_results_with_attachments(server: House) -> None:
    """Byte for byte: from memory, from the disk once memory has forgotten it, and after a kill."""
    client = server.client()
    blobs = [Blob(os.urandom(size), f"application/x-{size}") for size in (0, 1, 65 * KIB, 1024 * KIB)]
    job = client.submit("system.noop", {"echo": {"ä": [1, None, 2.5]}}, wait=False, attachments=blobs)
    fresh = job.result(10)
    assert job.job_id is not None
    time.sleep(2 * KEEP_MS / 1000)
    stored = client.jobs.result(job.job_id, 10)
    restart(server)
    after = client.jobs.result(job.job_id, 10)
    for result in (fresh, stored, after):
        assert result.data == {"echo": {"ä": [1, None, 2.5]}}
        assert result.attachments == blobs
        assert (result.job_id, result.worker_id, result.attempt) == (job.job_id, "w1", 1)
        assert result.timing == fresh.timing


def test_attachments_of_a_job_that_waits_across_a_restart(server: House) -> None:
    client = server.client()
    block = client.submit("system.noop", {"sleep_ms": 1500}, wait=False)
    blob = Blob(os.urandom(200 * KIB), "image/png")
    job = client.submit("system.noop", wait=False, attachments=[blob])
    restart(server)
    assert job.result(10).attachments == [blob]
    block.result(10)


def test_failures_are_kept_too(server: House) -> None:
    client = server.client()
    job = client.submit("system.noop", {"sleep_ms": 5000}, wait=False, run_timeout_ms=50)
    eventually(lambda: job.job_id is not None and client.jobs.get(job.job_id).status == "failed")
    time.sleep(2 * KEEP_MS / 1000)
    assert job.job_id is not None
    info = client.jobs.get(job.job_id)
    assert info.error is not None
    assert (info.status, info.error["code"]) == ("failed", "timeout_run")
    assert info.finished_at is not None


def test_a_waiting_job_leaves_its_summary(server: House) -> None:
    client = server.client()
    result = client.run("system.noop", {"echo": "secret"})
    time.sleep(2 * KEEP_MS / 1000)
    assert result.job_id is not None
    assert client.jobs.get(result.job_id).status == "completed"
    with pytest.raises(NotFound):
        client.jobs.result(result.job_id, 5)
    database = (server.data_dir / "atelier.db").read_bytes() + (server.data_dir / "atelier.db-wal").read_bytes()
    assert result.job_id.encode() in database
    assert b"secret" not in database


def test_events_go_on_rising_after_a_restart(server: House) -> None:
    client = server.client()
    job = client.submit("system.noop", {"echo": told(steps=300)}, wait=False, events=["state", "progress"])
    stream = job.events(10)
    before = [next(stream) for _ in range(5)]
    time.sleep(0.3)
    restart(server)
    events = before + list(stream)
    assert all(earlier.seq < later.seq for earlier, later in pairwise(events))
    assert events[-1].data["status"] == "completed"
    assert [event.data["step"] for event in events if event.kind == "progress"][-1] == 300
    time.sleep(2 * KEEP_MS / 1000)
    assert job.job_id is not None
    replayed = list(client.jobs.events(job.job_id))
    assert [event.data["status"] for event in replayed][-1] == "completed"
    assert {event.seq for event in replayed} <= {event.seq for event in events}
    later = list(client.jobs.events(job.job_id, after_seq=replayed[-2].seq))
    assert [event.seq for event in later] == [replayed[-1].seq]


def test_artifacts(server: House) -> None:
    client, content = server.client(), os.urandom(300 * KIB)
    stored = client.artifacts.put(content, "image/png")
    assert (stored.nbytes, stored.media_type) == (len(content), "image/png")
    restart(server)
    assert client.artifacts.get(stored.artifact_id) == Blob(content, "image/png")
    with pytest.raises(NotFound):
        client.artifacts.get(stored.artifact_id[:-1] + "x")


def test_retention(server: House) -> None:
    """Past it, a job's row, its files and uploads are gone. The cleaning runs at a start, and every minute."""
    client = server.client()
    upload = client.artifacts.put(b"upload")
    job = client.submit("system.noop", wait=False, attachments=[Blob(b"x" * 1000)])
    job.result(10)
    assert job.job_id is not None
    files = [file for file in (server.data_dir / "artifacts").rglob("*") if file.is_file()]
    assert len(files) >= 3
    assert server.orchestrator is not None
    server.orchestrator.kill()
    time.sleep(0.2)
    server.start_orchestrator(retention_ms=100)
    eventually(lambda: not any(file.exists() for file in files))
    for gone in (lambda: client.jobs.get(job.job_id), lambda: client.artifacts.get(upload.artifact_id)):
        with pytest.raises(NotFound):
            gone()
