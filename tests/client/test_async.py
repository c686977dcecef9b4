"""The asyncio client against a scripted server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator.client import AsyncClient, ClientClosed
from protocol.errors import Cancelled, NotFound
from tests.client.scripted import Received, ScriptedServer

NOOP = "system.noop"


@pytest_asyncio.fixture
async def aclient(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.endpoint, timeout_s=20) as connected:
        yield connected


async def receive(server: ScriptedServer) -> Received:
    return await asyncio.to_thread(server.receive)


async def test_many_at_once_each_get_their_own_answer(server: ScriptedServer, aclient: AsyncClient) -> None:
    asking = [asyncio.create_task(aclient.call(NOOP, {"echo": n})) for n in range(50)]
    for received in [await receive(server) for _ in range(50)][::-1]:
        received.respond({"echo": received.request.data["echo"]})
    assert [result.data["echo"] for result in await asyncio.gather(*asking)] == list(range(50))


async def test_events_are_iterated_and_end(server: ScriptedServer, aclient: AsyncClient) -> None:
    job = await aclient.submit(NOOP, events=["progress"])
    received = await receive(server)

    async def script() -> None:
        for seq in (1, 2, 3):
            await asyncio.sleep(0.02)
            received.event(seq, "progress", {"step": seq})
        received.respond({"echo": 1}, status="completed")

    scripted = asyncio.create_task(script())
    assert [event.seq async for event in job.events()] == [1, 2, 3]
    assert (await job.result()).data == {"echo": 1}
    await scripted


async def test_a_durable_job_and_its_events_survive_a_lost_connection(
    server: ScriptedServer, aclient: AsyncClient
) -> None:
    submitting = asyncio.create_task(aclient.submit(NOOP, wait=False, events=["state"]))
    (await receive(server)).accept()
    job = await submitting
    assert (job.job_id, job.estimated_completion_ms) == ("job-1", 1234)
    server.restart()
    again = await receive(server)
    assert again.action == "job.events"
    again.respond({"oldest_seq": 1, "status": "completed"}, job_id="job-1", status="completed")
    again.state(1, "pending")
    again.state(2, "completed")
    assert [event.seq async for event in job.events()] == [1, 2]


async def test_a_cancelled_task_cancels_its_job(server: ScriptedServer, aclient: AsyncClient) -> None:
    task = asyncio.create_task(aclient.text2img("a red circle"))
    (await receive(server)).state(1, "pending")
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await receive(server)).action == "job.cancel"


async def test_timeouts_errors_and_cancel(server: ScriptedServer, aclient: AsyncClient) -> None:
    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        await aclient.ping(timeout_s=0.1)
    await receive(server)
    job = await aclient.submit(NOOP, events=["state"])
    received = await receive(server)
    with pytest.raises(TimeoutError):
        await anext(job.events(timeout_s=0.1))
    received.state(1, "pending")
    cancelling = asyncio.create_task(job.cancel())
    (await receive(server)).respond({"job_id": "job-1", "status": "cancelled"})
    await cancelling
    received.fail("cancelled")
    with pytest.raises(Cancelled):
        await job.result()
    following = asyncio.create_task(anext(aclient.jobs.events("nope")))
    (await receive(server)).fail("not_found")
    with pytest.raises(NotFound):
        await following


async def test_closing_ends_every_wait(server: ScriptedServer) -> None:
    client = AsyncClient(server.endpoint)
    job = await client.submit(NOOP, events=["state"])
    waits = [asyncio.create_task(job.result()), asyncio.create_task(anext(job.events()))]
    await receive(server)
    await asyncio.sleep(0.05)
    await client.close()
    for wait in waits:
        with pytest.raises(ClientClosed):
            await wait
