"""The client against a scripted server: lost connections, late, doubled and unknown messages, limits, threads."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orchestrator.client import Client, ClientClosed, ServerUnreachable
from orchestrator.client import connection as connection_module
from orchestrator.client.connection import Connection
from protocol import errors
from protocol.codec import pack
from protocol.enums import ErrorCode
from tests.client.scripted import Received, ScriptedServer


def echo(server: ScriptedServer, count: int) -> None:
    for _ in range(count):
        received = server.receive()
        received.respond({"echo": received.request.data.get("echo")})


def in_background(work: Callable[[], Any]) -> "threading.Thread":
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def receive_by_echo(server: ScriptedServer, count: int) -> dict[Any, Received]:
    received = [server.receive() for _ in range(count)]
    return {item.request.data.get("echo"): item for item in received}


def test_answers_in_any_order_find_their_requests(server: ScriptedServer, client: Client) -> None:
    jobs = [client.submit("system.noop", {"echo": n}) for n in range(5)]
    received = receive_by_echo(server, 5)
    for n in (3, 0, 4, 1, 2):
        received[n].respond({"echo": n})
    assert [job.result().data["echo"] for job in jobs] == list(range(5))


def test_many_threads_each_get_their_own_answer(server: ScriptedServer, client: Client) -> None:
    per_thread, threads = 40, 8

    def work(thread: int) -> bool:
        names = [f"{thread}-{n}" for n in range(per_thread)]
        return all(client.call("system.noop", {"echo": name}).data["echo"] == name for name in names)

    answering = in_background(lambda: echo(server, per_thread * threads))
    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(work, range(threads)))
    answering.join()


def test_a_lost_connection_is_survived_and_requests_are_sent_again_under_their_ids(
    server: ScriptedServer, client: Client
) -> None:
    job = client.submit("system.noop", {"echo": 1})
    first = server.receive()
    server.restart()
    second = server.receive()
    assert second.request == first.request
    assert second.identity != first.identity
    second.respond({"echo": 1})
    assert job.result().data == {"echo": 1}
    assert server.silent()


def test_requests_made_while_the_server_is_away_are_sent_once_when_it_is_back(
    server: ScriptedServer, client: Client
) -> None:
    in_background(lambda: echo(server, 1)).join(0)
    client.call("system.noop", {"echo": 0})
    server.stop()
    time.sleep(0.2)
    jobs = [client.submit("system.noop", {"echo": n}) for n in range(3)]
    time.sleep(0.2)
    server.start()
    received = receive_by_echo(server, 3)
    assert sorted(received) == [0, 1, 2]
    assert server.silent()
    for n, item in received.items():
        item.respond({"echo": n})
    assert [job.result().data["echo"] for job in jobs] == [0, 1, 2]


def test_a_silent_server_costs_the_connection_not_the_request(server: ScriptedServer) -> None:
    connection = Connection(server.endpoint, connect_timeout_s=10, silence_s=0.3)
    client = Client(server.endpoint, timeout_s=20)
    client.core.connection.close()
    client.core.connection = connection
    with client:
        job = client.submit("system.noop", {"echo": 1})
        first = server.receive()
        second = server.receive()  # over a fresh connection
        assert second.request == first.request
        assert second.identity != first.identity
        for _ in range(8):  # while it says that it is alive, nothing is sent again
            server.send_raw(second.identity, pack({"kind": "alive"}))
            assert server.silent(100)
        second.respond({"echo": 1})
        assert job.result().data == {"echo": 1}


def test_unknown_garbled_and_doubled_messages_do_no_harm(server: ScriptedServer, client: Client) -> None:
    job = client.submit("system.noop", {"echo": 1})
    received = server.receive()
    for frames in (
        [b""],
        [b"\xc1"],
        [b"", pack({})],
        [pack({"kind": "new"})],
        [pack({"kind": "response"})],
        [b"x"] * 99,
    ):
        server.send_raw(received.identity, *frames)
    received.respond({"echo": 1})
    received.respond({"echo": 2})
    received.event(1, "progress", {"step": 1})
    assert job.result().data == {"echo": 1}
    in_background(lambda: echo(server, 1))
    assert client.call("system.noop", {"echo": 3}).data == {"echo": 3}


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_is_raised_as_its_class(server: ScriptedServer, client: Client, code: ErrorCode) -> None:
    in_background(lambda: server.receive().fail(code.value, details={"limit": 7}, retry_after_ms=250))
    with pytest.raises(errors.AtelierError) as raised:
        client.call("system.noop")
    assert type(raised.value) is errors.AtelierError.by_code[code]
    assert (raised.value.details, raised.value.retry_after_ms) == ({"limit": 7}, 250)


def test_without_a_server_a_call_fails_in_time_and_names_the_remedy(server: ScriptedServer) -> None:
    server.stop()
    with Client(server.endpoint, connect_timeout_s=0.3) as client:
        began = time.monotonic()
        with pytest.raises(ServerUnreachable, match="atelier up"):
            client.ping()
        assert 0.2 < time.monotonic() - began < 5


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://127.0.0.1", "ipc:///tmp/" + 200 * "x"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="cannot be connected to"):
        Client(endpoint)


def test_a_local_timeout_raises_and_the_late_answer_is_dropped(server: ScriptedServer, client: Client) -> None:
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        client.ping(timeout_s=0.2)
    late = server.receive()
    late.respond({"time": "now"})
    in_background(lambda: echo(server, 1))
    assert client.call("system.noop", {"echo": 1}).data == {"echo": 1}
    assert client.core.connection.in_flight == 0


def test_giving_up_a_run_cancels_its_job(server: ScriptedServer, client: Client) -> None:
    def script() -> None:
        server.receive().state(1, "pending")

    in_background(script)
    with pytest.raises(TimeoutError):
        client.text2img("a red circle", timeout_s=0.4)
    cancel = server.receive()
    assert (cancel.action, cancel.request.data) == ("job.cancel", {"job_id": "job-1"})


def test_closing_ends_every_wait(server: ScriptedServer) -> None:
    client = Client(server.endpoint)
    waiting, streaming = client.submit("system.noop"), client.submit("system.noop", events=["progress"])
    raised: list[BaseException] = []

    def wait(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [
        in_background(lambda: wait(waiting.result)),
        in_background(lambda: wait(lambda: list(streaming.events()))),
        in_background(lambda: wait(client.ping)),
    ]
    for _ in range(3):
        server.receive()
    client.close()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in raised] == [ClientClosed] * 3
    with pytest.raises(ClientClosed):
        client.ping()
    client.close()


def test_too_many_requests_in_flight_are_refused_with_a_clear_error(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "IN_FLIGHT_MAX", 3)
    jobs = [client.submit("system.noop", {"echo": n}) for n in range(3)]
    with pytest.raises(errors.QueueFull, match="3 requests in flight"):
        client.submit("system.noop")
    for received in receive_by_echo(server, 3).values():
        received.respond()
    for job in jobs:
        job.result()
    in_background(lambda: echo(server, 1))
    client.call("system.noop")


def test_a_callback_that_would_wait_for_itself_is_told_so(server: ScriptedServer, client: Client) -> None:
    job = client.submit("system.noop")
    outcome: list[Any] = []
    heard = threading.Event()

    def callback(done: Any) -> None:
        outcome.append(done.result().data)
        try:
            client.ping()
        except RuntimeError as error:
            outcome.append(str(error))
        heard.set()

    job.add_done_callback(callback)
    server.receive().respond({"echo": 5})
    assert heard.wait(10)
    assert outcome[0] == {"echo": 5}
    assert "callback must not wait" in outcome[1]


def test_a_client_that_is_not_closed_does_not_keep_the_program(server: ScriptedServer) -> None:
    import subprocess
    import sys

    code = f"from orchestrator.client import Client; c = Client({server.endpoint!r}); c.submit('system.noop')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
