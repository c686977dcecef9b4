"""Jobs and their events against a scripted server."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.client import Blob, Client, Job
from orchestrator.client import events as events_module
from protocol.errors import Cancelled, InvalidRequest, NotFound
from protocol.schemas.inference import Text2ImgData
from tests.client.scripted import ScriptedServer

NOOP = "system.noop"


def in_background(work: Callable[[], Any]) -> None:
    threading.Thread(target=work, daemon=True).start()


def submit_durable(server: ScriptedServer, client: Client, **options: Any) -> tuple[Job, Any]:
    received: list[Any] = []

    def script() -> None:
        received.append(server.receive())
        received[0].accept()

    in_background(script)
    job = client.submit(NOOP, wait=False, **options)
    return job, received[0]


def test_only_what_was_said_is_sent(server: ScriptedServer, client: Client) -> None:
    client.submit("inference.text2img", Text2ImgData(prompt="x", seed=3), priority=9, deadline_ms=500, session_id="s")
    request = server.receive().request
    assert request.data == {"prompt": "x", "seed": 3}
    assert (request.priority, request.deadline_ms, request.session_id, request.wait) == (9, 500, "s", True)


def test_a_seed_of_64_bits_travels_as_a_string(server: ScriptedServer, client: Client) -> None:
    client.submit("inference.text2img", {"prompt": "x", "seed": 2**64 - 1})
    assert server.receive().request.data["seed"] == "18446744073709551615"


def test_attachments_go_and_come_beside_the_message(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP, attachments=[Blob(b"one", "text/plain"), Blob(b"")])
    received = server.receive()
    assert received.blobs == [b"one", b""]
    assert [(entry.media_type, entry.nbytes) for entry in received.request.attachments] == [
        ("text/plain", 3),
        ("application/octet-stream", 0),
    ]
    received.respond({}, [b"back"])
    assert job.result().attachments == [Blob(b"back", "image/png")]


def test_events_come_in_order_and_end_with_the_result(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP, events=["progress"])
    received = server.receive()
    assert sorted(received.request.events) == ["progress", "state"]
    received.state(1, "pending")
    for seq in (2, 3):
        received.event(seq, "progress", {"step": seq - 1, "steps": 2})
    received.state(4, "completed")
    received.respond({"echo": 1}, job_id="job-1", status="completed")
    assert [(event.kind, event.seq, event.data["step"]) for event in job.events()] == [
        ("progress", 2, 1),
        ("progress", 3, 2),
    ]
    assert job.result().data == {"echo": 1}
    assert job.job_id == "job-1"


def test_events_of_a_failed_job_end_and_the_result_raises(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP, events=["state"])
    received = server.receive()
    received.state(1, "failed")
    received.fail("invalid_request")
    assert [event.data["status"] for event in job.events()] == ["failed"]
    with pytest.raises(InvalidRequest):
        job.result()


def test_events_that_were_not_asked_for_are_an_error_of_the_caller(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP)
    with pytest.raises(ValueError, match="events="):
        next(job.events())


def test_an_event_stream_has_a_timeout(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP, events=["progress"])
    with pytest.raises(TimeoutError):
        next(job.events(timeout_s=0.1))


def test_a_durable_submission_returns_when_accepted_and_fetches_its_result(
    server: ScriptedServer, client: Client
) -> None:
    job, received = submit_durable(server, client)
    assert (received.request.wait, received.request.events) == (False, [])
    assert (job.job_id, job.estimated_completion_ms, job.done()) == ("job-1", 1234, False)

    def script() -> None:
        for status in ("pending", "processing", "completed"):
            asked = server.receive()
            assert asked.action == "job.result"
            asked.respond({"echo": status}, job_id="job-1", status=status)

    in_background(script)
    assert job.result().data == {"echo": "completed"}
    assert job.result().data == {"echo": "completed"}
    assert server.silent()


def test_a_refused_durable_submission_raises_at_once(server: ScriptedServer, client: Client) -> None:
    in_background(lambda: server.receive().fail("invalid_request"))
    with pytest.raises(InvalidRequest):
        client.submit(NOOP, wait=False, events=["state"])


def test_a_durable_job_told_of_an_end_by_its_result(server: ScriptedServer, client: Client) -> None:
    job, _ = submit_durable(server, client)
    in_background(lambda: server.receive().fail("cancelled"))
    with pytest.raises(Cancelled):
        job.result()


def test_events_of_a_durable_job_are_replayed_exactly_once_after_a_lost_connection(
    server: ScriptedServer, client: Client
) -> None:
    job, received = submit_durable(server, client, events=["progress", "state"])
    received.state(1, "pending")
    received.event(2, "progress", {"step": 1})
    events = job.events()
    assert [next(events).seq, next(events).seq] == [1, 2]
    server.restart()
    again = server.receive()
    assert (again.action, again.request.data) == ("job.events", {"job_id": "job-1", "after_seq": 2})
    assert sorted(again.request.events) == ["progress", "state"]
    again.respond({"oldest_seq": 1, "status": "processing"}, job_id="job-1", status="processing")
    for seq in (1, 2, 3, 3, 5):
        again.event(seq, "progress", {"step": seq})
    again.state(6, "completed")
    assert [event.seq for event in events] == [3, 5, 6]


def test_waiting_jobs_reattach_and_see_each_event_once(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP, events=["progress"])
    first = server.receive()
    first.event(1, "progress")
    events = job.events()
    assert next(events).seq == 1
    server.restart()
    again = server.receive()
    assert again.id == first.id
    for seq in (1, 2):
        again.event(seq, "progress")
    again.respond(status="completed")
    assert [event.seq for event in events] == [2]


def test_cancel_waits_for_the_jobs_id_and_is_sent_under_it(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP)
    received = server.receive()
    cancelled = job.cancel_soon()
    assert server.silent()
    received.state(1, "pending")
    cancel = server.receive()
    assert (cancel.action, cancel.request.data) == ("job.cancel", {"job_id": "job-1"})
    cancel.respond({"job_id": "job-1", "status": "cancelled"})
    received.fail("cancelled")
    cancelled.result(10)
    with pytest.raises(Cancelled):
        job.result()
    job.cancel()  # harmless, and nothing is sent
    assert server.silent()


def test_a_job_that_a_server_began_anew_is_cancelled_under_its_new_id(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP)
    server.receive().state(1, "pending", job="before")
    server.restart()
    server.receive().state(1, "pending", job="after")
    while job.job_id != "after":
        time.sleep(0.01)
    job.cancel_soon()
    assert server.receive().request.data == {"job_id": "after"}


def test_cancelling_what_never_became_a_job_sends_nothing(server: ScriptedServer, client: Client) -> None:
    job = client.submit(NOOP)
    received = server.receive()
    cancelled = job.cancel_soon()
    received.fail("invalid_request")
    cancelled.result(10)
    assert server.silent()


def test_following_a_job_by_its_id(server: ScriptedServer, client: Client) -> None:
    def script() -> None:
        received = server.receive()
        assert (received.action, received.request.data) == ("job.events", {"job_id": "job-1", "after_seq": 3})
        received.respond({"oldest_seq": 1, "status": "processing"}, job_id="job-1", status="processing")
        received.event(4, "log", {"line": "seen before"})
        received.event(5, "log", {"line": "hello"})
        received.state(6, "completed")

    in_background(script)
    assert [event.seq for event in client.jobs.events("job-1", after_seq=4)] == [5, 6]


def test_following_an_unknown_job_raises(server: ScriptedServer, client: Client) -> None:
    in_background(lambda: server.receive().fail("not_found"))
    with pytest.raises(NotFound):
        list(client.jobs.events("nope"))


def test_leaving_a_stream_early_frees_its_place(server: ScriptedServer, client: Client) -> None:
    def script() -> None:
        received = server.receive()
        received.respond({"oldest_seq": 1, "status": "processing"}, job_id="job-1")
        received.event(1, "progress")

    in_background(script)
    events = client.jobs.events("job-1")
    assert next(events).seq == 1
    events.close()  # type: ignore[attr-defined]
    in_background(lambda: server.receive().respond({"time": "now"}))
    client.ping()
    assert client.core.connection.in_flight == 0


def test_a_reader_that_does_not_read_loses_old_previews_and_progress_first(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "UNREAD_MAX", 6)
    job = client.submit(NOOP, events=["state", "progress", "preview", "item", "log"])
    received = server.receive()
    received.state(1, "pending")
    received.event(2, "item", {"index": 0})
    received.event(3, "log", {"line": "x"})
    for seq in range(4, 40):
        received.event(seq, "preview" if seq % 2 else "progress")
    received.state(40, "completed")
    received.respond(status="completed")
    job.result()
    assert [event.seq for event in job.events()] == [1, 2, 3, 38, 39, 40]
