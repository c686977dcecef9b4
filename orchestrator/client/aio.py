"""The client for asyncio: the same connection and the same names as `sync`, awaited."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, Unpack

from pydantic import BaseModel

from orchestrator.client.core import (
    ALL_EVENTS,
    CONNECT_TIMEOUT_S,
    DEFAULT_ENDPOINT,
    ClientCore,
    Data,
    EventKind,
    Pending,
    RequestOptions,
    split_fields,
    validation,
)
from orchestrator.client.events import EventStream, JobEvent
from orchestrator.client.job import Job
from orchestrator.client.models import AsyncModels
from orchestrator.client.pictures import Picture, attach_pictures
from orchestrator.client.results import Blob, Image, Result
from orchestrator.client.tensors import Prediction, attach_inputs, attach_requests, prediction_of, predictions_of
from protocol.enums import Status
from protocol.errors import AtelierError
from protocol.schemas.artifact import ArtifactInfo
from protocol.schemas.controlnet import ControlNetListResult
from protocol.schemas.inference import ValidateResult
from protocol.schemas.job import CancelResult, JobInfo, JobListResult
from protocol.schemas.lora import LoraInfo, LoraListResult
from protocol.schemas.session import SessionCancelResult, SessionInfo, SessionListResult
from protocol.schemas.system import CapabilitiesResult, InfoResult, PingResult, StatsResult
from protocol.schemas.worker import WorkerInfo, WorkerListResult

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody reads any more
        loop.call_soon_threadsafe(woken.set)


async def read_stream(stream: EventStream, timeout_s: float | None) -> AsyncIterator[JobEvent]:
    """The stream's events; waits without a thread."""
    loop = asyncio.get_running_loop()
    while True:
        woken = asyncio.Event()
        there, event = stream.get_or_wake(partial(_wake, loop, woken))
        if not there:
            try:
                await asyncio.wait_for(woken.wait(), timeout_s)
            except TimeoutError:
                raise TimeoutError(f"No event came within {timeout_s} s.") from None
        elif event is None:
            return
        else:
            yield event


class AsyncJob:
    """A handle on one job, as `Job`."""

    def __init__(self, job: Job, client: "AsyncClient") -> None:
        self._job = job
        self._client = client

    @property
    def request_id(self) -> str | None:
        return self._job.request_id

    @property
    def job_id(self) -> str | None:
        """The server's name for the job; None until its first message about it."""
        return self._job.job_id

    @property
    def estimated_completion_ms(self) -> int | None:
        return self._job.estimated_completion_ms

    def done(self) -> bool:
        return self._job.done()

    async def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end. Raises the job's error, or TimeoutError (the job goes on)."""
        self._job.fetch()
        return await self._client.wait(self._job.outcome, timeout_s)

    async def events(self, timeout_s: float | None = None) -> AsyncIterator[JobEvent]:
        """The events asked for at submission, as they come, until the job has ended."""
        async for event in read_stream(self._job.stream, timeout_s):
            yield event

    async def cancel(self, timeout_s: float | None = None) -> None:
        """Ask the server to end the job; harmless when it has ended."""
        await self._client.wait(self._job.cancel_soon(), timeout_s)


class AsyncClient:
    """As `Client`, for one or several event loops:

    async with AsyncClient() as client:
        result = await client.text2img("a red circle on a white background", seed=7)
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        connect_timeout_s: float | None = CONNECT_TIMEOUT_S,
    ) -> None:
        self.core = ClientCore(endpoint, api_key, timeout_s, connect_timeout_s)
        self.jobs = AsyncJobs(self)
        self.sessions = AsyncSessions(self)
        self.artifacts = AsyncArtifacts(self)
        self.models = AsyncModels(self)
        self.loras = AsyncLoras(self)
        self.controlnets = AsyncControlNets(self)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Break the connection; open calls raise ClientClosed. Durable jobs go on, waiting ones are cancelled."""
        await asyncio.to_thread(self.core.connection.close)

    async def wait(self, future: "Future[T]", timeout_s: float | None) -> T:
        """Await what the connection's thread will end."""
        limit = self.core.timeout_s if timeout_s is None else timeout_s
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), limit)
        except TimeoutError:
            raise TimeoutError(f"No answer came within {limit} s.") from None

    async def submit(
        self,
        action: str,
        data: Data | None = None,
        *,
        wait: bool = True,
        events: Sequence[EventKind] = (),
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncJob:
        """Start a job; with `wait=False` it is on disk when this returns."""
        job = Job.submit(self.core, action, data, wait, events, options)
        if not wait:
            await self.wait(job.accepted, timeout_s)
        return AsyncJob(job, self)

    async def run(
        self,
        action: str,
        data: Data | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Result:
        """Run a job to its end. It is cancelled when the wait is given up (TimeoutError, a cancelled task)."""
        job = Job.submit(self.core, action, data, True, (), options)
        try:
            return await self.wait(job.outcome, timeout_s)
        except (TimeoutError, asyncio.CancelledError):
            job.cancel_soon()
            raise

    async def text2img(self, prompt: str, *, timeout_s: float | None = None, **fields: Any) -> Result:
        """Pictures for a prompt: `result.images`. `fields` are those of `Text2ImgData` and of `RequestOptions`."""
        return await self._paint("inference.text2img", {"prompt": prompt, **fields}, timeout_s)

    async def img2img(self, prompt: str, image: Picture, *, timeout_s: float | None = None, **fields: Any) -> Result:
        """Pictures from a picture (a path, bytes, a PIL image). `fields` are those of `Img2ImgData`: `strength`, …"""
        return await self._paint("inference.img2img", {"prompt": prompt, "image": image, **fields}, timeout_s)

    async def inpainting(
        self,
        prompt: str,
        image: Picture,
        mask_image: Picture | None = None,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result:
        """The picture with its part repainted where the mask is white, or widened, as `Client.inpainting`."""
        data = {"prompt": prompt, "image": image, "mask_image": mask_image, **fields}
        return await self._paint("inference.inpainting", data, timeout_s)

    async def _paint(self, action: str, fields: dict[str, Any], timeout_s: float | None) -> Result:
        data, options = await asyncio.to_thread(split_fields, fields)  # it reads files and encodes
        return await self.run(action, data, timeout_s=timeout_s, **options)

    async def predict(
        self,
        model_id: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        images: Sequence[Picture] = (),
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Prediction:
        """Take arrays, or pictures, through a model, as `Client.predict`."""
        given = {"model_id": model_id, "inputs": inputs, "images": images, "parameters": parameters}
        fields |= {name: value for name, value in given.items() if value}  # the session's defaults hold for the rest
        split = partial(split_fields, fields, attach_inputs)
        data, options = await asyncio.to_thread(split) if images else split()  # a thread to read files and encode
        return prediction_of(await self.run("inference.predict", data, timeout_s=timeout_s, **options))

    async def predict_batch(
        self,
        model_id: str | None,
        requests: Sequence[Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> list[Prediction | AtelierError]:
        """Several predictions of one model in one request, as `Client.predict_batch`."""
        named = {"model_id": model_id} if model_id else {}
        given = {"requests": requests, **named, **fields}
        data, options = await asyncio.to_thread(split_fields, given, attach_requests)
        return predictions_of(await self.run("predict.batch", data, timeout_s=timeout_s, **options))

    async def validate(
        self,
        action: str,
        data: Data | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> ValidateResult:
        """Would this request run, where and how long? Nothing is done; a refusal is told in `error`, not raised."""
        asked, header = await asyncio.to_thread(validation, action, data, options)
        result = await self.answer(self.core.ask("inference.validate", asked, **header), timeout_s)
        return result.parse(ValidateResult)

    async def call(
        self, action: str, data: Data | None = None, *, attachments: Sequence[Blob] = (), timeout_s: float | None = None
    ) -> Result:
        """One request, one answer: for what the orchestrator answers itself."""
        return await self.answer(self.core.ask(action, data, attachments), timeout_s)

    async def answer(self, pending: Pending, timeout_s: float | None) -> Result:
        """Await the answer of a request that was sent; it is dropped where the wait is given up."""
        try:
            return await self.wait(pending.future, timeout_s)
        except BaseException:
            self.core.drop(pending.call)
            raise

    async def fetch(
        self, schema: type[M], action: str, data: Data | None = None, *, timeout_s: float | None = None
    ) -> M:
        """`call`, with the answer's `data` as this model."""
        return (await self.call(action, data, timeout_s=timeout_s)).parse(schema)

    async def ping(self, timeout_s: float | None = None) -> PingResult:
        return await self.fetch(PingResult, "system.ping", timeout_s=timeout_s)

    async def info(self) -> InfoResult:
        return await self.fetch(InfoResult, "system.info")

    async def stats(self) -> StatsResult:
        return await self.fetch(StatsResult, "system.stats")

    async def capabilities(self) -> CapabilitiesResult:
        return await self.fetch(CapabilitiesResult, "system.capabilities")

    async def workers(self, timeout_s: float | None = None) -> list[WorkerInfo]:
        return (await self.fetch(WorkerListResult, "worker.list", timeout_s=timeout_s)).workers

    async def drain_worker(self, worker_id: str) -> WorkerInfo:
        return await self.fetch(WorkerInfo, "worker.drain", {"worker_id": worker_id})


class AsyncJobs:
    """`client.jobs`, as `Jobs`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, job_id: str) -> JobInfo:
        return await self._client.fetch(JobInfo, "job.get", {"job_id": job_id})

    async def list(
        self,
        *,
        status: Status | str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> "list[JobInfo]":
        fields = {"status": status, "session_id": session_id, "limit": limit, "before": before}
        return (await self._client.fetch(JobListResult, "job.list", fields)).jobs

    async def cancel(self, job_id: str) -> CancelResult:
        return await self._client.fetch(CancelResult, "job.cancel", {"job_id": job_id})

    async def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        return await AsyncJob(Job.existing(self._client.core, job_id), self._client).result(timeout_s)

    async def events(
        self,
        job_id: str,
        after_seq: int = 0,
        *,
        kinds: Sequence[EventKind] = ALL_EVENTS,
        timeout_s: float | None = None,
    ) -> AsyncIterator[JobEvent]:
        following = self._client.core.follow(job_id, after_seq, kinds)
        try:
            async for event in read_stream(following.stream, timeout_s):
                yield event
        finally:
            self._client.core.drop(following.call)


class AsyncSessions:
    """`client.sessions`, as `Sessions`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(self, name: str = "", *, defaults: dict[str, Any] | None = None, **fields: Any) -> SessionInfo:
        return await self._client.fetch(
            SessionInfo, "session.create", {"name": name, "defaults": defaults or {}, **fields}
        )

    async def get(self, session_id: str) -> SessionInfo:
        return await self._client.fetch(SessionInfo, "session.get", {"session_id": session_id})

    async def list(self, limit: int = 50) -> "list[SessionInfo]":
        return (await self._client.fetch(SessionListResult, "session.list", {"limit": limit})).sessions

    async def cancel(self, session_id: str) -> SessionCancelResult:
        return await self._client.fetch(SessionCancelResult, "session.cancel", {"session_id": session_id})


class AsyncArtifacts:
    """`client.artifacts`, as `Artifacts`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def put(self, content: bytes, media_type: str = "application/octet-stream") -> ArtifactInfo:
        result = await self._client.call("artifact.put", attachments=[Blob(content, media_type)])
        return result.parse(ArtifactInfo)

    async def get(self, artifact_id: str) -> Blob:
        return (await self._client.call("artifact.get", {"artifact_id": artifact_id})).only_attachment()


class AsyncLoras:
    """`client.loras`, as `Loras`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, **options: Unpack[RequestOptions]) -> "list[LoraInfo]":
        return (await self._client.run("lora.list", **options)).parse(LoraListResult).loras

    async def load(self, lora_id: str, model_id: str | None = None, **options: Unpack[RequestOptions]) -> LoraInfo:
        data = {"lora_id": lora_id, "model_id": model_id}
        return (await self._client.run("lora.load", data, **options)).parse(LoraInfo)

    async def unload(self, lora_id: str, **options: Unpack[RequestOptions]) -> LoraInfo:
        return (await self._client.run("lora.unload", {"lora_id": lora_id}, **options)).parse(LoraInfo)


class AsyncControlNets:
    """`client.controlnets`, as `ControlNets`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, **options: Unpack[RequestOptions]) -> ControlNetListResult:
        return (await self._client.run("controlnet.list", **options)).parse(ControlNetListResult)

    async def preprocess(
        self,
        image: Picture,
        preprocessor: str,
        resolution: int | None = None,
        **options: Unpack[RequestOptions],
    ) -> Image:
        fields = {"image": image, "preprocessor": preprocessor, "resolution": resolution}
        data, options["attachments"] = await asyncio.to_thread(attach_pictures, fields)
        return (await self._client.run("controlnet.preprocess", data, **options)).only_image()
