"""The blocking client."""

from collections.abc import Iterator, Mapping, Sequence
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
    RequestOptions,
    split_fields,
    validation,
)
from orchestrator.client.events import JobEvent
from orchestrator.client.job import Job
from orchestrator.client.models import Models
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


class Client:
    """A connection to a server: many requests in flight, safe from several threads.

        with Client() as client:
            client.text2img("a red circle on a white background", seed=7).images[0].save("out.png")

    Every call raises the exception of `protocol.errors` for the code the server answers, TimeoutError after
    `timeout_s` (None: no limit), ServerUnreachable when no server was there for `connect_timeout_s`, and ClientClosed.
    A lost connection is no error: it comes back, open requests are asked again, and no work is done twice.
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
        self.jobs = Jobs(self)
        self.sessions = Sessions(self)
        self.artifacts = Artifacts(self)
        self.models = Models(self)
        self.loras = Loras(self)
        self.controlnets = ControlNets(self)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Break the connection; open calls raise ClientClosed. Durable jobs go on, waiting ones are cancelled."""
        self.core.connection.close()

    def submit(
        self,
        action: str,
        data: Data | None = None,
        *,
        wait: bool = True,
        events: Sequence[EventKind] = (),
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Job:
        """Start a job. `data` is a map or its schema's model; `events` are the kinds to stream.

        Pictures travel as attachments: `attach_pictures` makes them of those in `data`.

        With `wait=False` this returns once the job is accepted, and so on disk; `timeout_s` bounds that wait.
        """
        job = Job.submit(self.core, action, data, wait, events, options)
        if not wait:
            self.core.wait_future(job.accepted, timeout_s)
        return job

    def run(
        self,
        action: str,
        data: Data | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Result:
        """Run a job to its end. It is cancelled when the wait is given up (TimeoutError, Ctrl-C)."""
        job = Job.submit(self.core, action, data, True, (), options)
        try:
            return job.result(timeout_s)
        except (TimeoutError, KeyboardInterrupt):
            job.cancel_soon()
            raise

    def text2img(self, prompt: str, *, timeout_s: float | None = None, **fields: Any) -> Result:
        """Pictures for a prompt: `result.images`. `fields` are those of `Text2ImgData` and of `RequestOptions`.

        With LoRAs and ControlNets, here and in `img2img` and `inpainting`:
        `loras=[{"lora_id": "hollow", "scale": 0.8}]`, `controlnets=[{"controlnet_id": "edges", "image": "house.png"}]`.
        """
        return self._paint("inference.text2img", {"prompt": prompt, **fields}, timeout_s)

    def img2img(self, prompt: str, image: Picture, *, timeout_s: float | None = None, **fields: Any) -> Result:
        """Pictures from a picture (a path, bytes, a PIL image). `fields` are those of `Img2ImgData`: `strength`, …"""
        return self._paint("inference.img2img", {"prompt": prompt, "image": image, **fields}, timeout_s)

    def inpainting(
        self,
        prompt: str,
        image: Picture,
        mask_image: Picture | None = None,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result:
        """The picture with its part repainted where the mask is white, or widened: `outpaint={"right": 64}`.

        `fields` are those of `InpaintingData`.
        """
        data = {"prompt": prompt, "image": image, "mask_image": mask_image, **fields}
        return self._paint("inference.inpainting", data, timeout_s)

    def _paint(self, action: str, fields: dict[str, Any], timeout_s: float | None) -> Result:
        data, options = split_fields(fields)
        return self.run(action, data, timeout_s=timeout_s, **options)

    def predict(
        self,
        model_id: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        images: Sequence[Picture] = (),
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Prediction:
        """Take arrays, or pictures, through a model: `prediction.outputs["y"]`, `prediction.predictions[0]`.

            client.predict("mlp", {"x": numpy.zeros((1, 128), "float32")}).outputs["y"]
            client.predict("classifier", images=["cat.png"], parameters={"k": 3}).predictions[0]["classes"]

        `inputs` and `images` are as `attach_inputs` takes them, `fields` those of `PredictData` (`outputs`, `cache`,
        `routing_key`, `fallbacks`) and of `RequestOptions`. To wait later, `submit` what `attach_inputs` makes, and
        read the result by `prediction_of`.
        """
        given = {"model_id": model_id, "inputs": inputs, "images": images, "parameters": parameters}
        fields |= {name: value for name, value in given.items() if value}  # the session's defaults hold for the rest
        data, options = split_fields(fields, attach_inputs)
        return prediction_of(self.run("inference.predict", data, timeout_s=timeout_s, **options))

    def predict_batch(
        self,
        model_id: str | None,
        requests: Sequence[Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> list[Prediction | AtelierError]:
        """Several predictions of one model in one request, each `{"inputs": …, "images": …, "parameters": …}`.

        The answers come in the same order; one that failed is the error, as an object, and harms no other. `fields` are
        those of `BatchData` and of `RequestOptions`.
        """
        named = {"model_id": model_id} if model_id else {}
        data, options = split_fields({"requests": requests, **named, **fields}, attach_requests)
        return predictions_of(self.run("predict.batch", data, timeout_s=timeout_s, **options))

    def validate(
        self,
        action: str,
        data: Data | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> ValidateResult:
        """Would this request run, where and how long? Nothing is done; a refusal is told in `error`, not raised."""
        asked, header = validation(action, data, options)
        pending = self.core.ask("inference.validate", asked, **header)
        return self.core.wait(pending, timeout_s).parse(ValidateResult)

    def call(
        self, action: str, data: Data | None = None, *, attachments: Sequence[Blob] = (), timeout_s: float | None = None
    ) -> Result:
        """One request, one answer: for what the orchestrator answers itself."""
        return self.core.wait(self.core.ask(action, data, attachments), timeout_s)

    def fetch(self, schema: type[M], action: str, data: Data | None = None, *, timeout_s: float | None = None) -> M:
        """`call`, with the answer's `data` as this model."""
        return self.call(action, data, timeout_s=timeout_s).parse(schema)

    def ping(self, timeout_s: float | None = None) -> PingResult:
        """Raises TimeoutError or ServerUnreachable when no server is there."""
        return self.fetch(PingResult, "system.ping", timeout_s=timeout_s)

    def info(self) -> InfoResult:
        return self.fetch(InfoResult, "system.info")

    def stats(self) -> StatsResult:
        return self.fetch(StatsResult, "system.stats")

    def capabilities(self) -> CapabilitiesResult:
        """The actions, models and schedulers of the connected workers."""
        return self.fetch(CapabilitiesResult, "system.capabilities")

    def workers(self, timeout_s: float | None = None) -> list[WorkerInfo]:
        return self.fetch(WorkerListResult, "worker.list", timeout_s=timeout_s).workers

    def drain_worker(self, worker_id: str) -> WorkerInfo:
        """Let a worker finish what it holds and leave."""
        return self.fetch(WorkerInfo, "worker.drain", {"worker_id": worker_id})


class Jobs:
    """`client.jobs`: jobs by their id, whoever submitted them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, job_id: str) -> JobInfo:
        return self._client.fetch(JobInfo, "job.get", {"job_id": job_id})

    def list(
        self,
        *,
        status: Status | str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> "list[JobInfo]":
        """The newest first. `before` (a job_id) goes on where a page ended."""
        fields = {"status": status, "session_id": session_id, "limit": limit, "before": before}
        return self._client.fetch(JobListResult, "job.list", fields).jobs

    def cancel(self, job_id: str) -> CancelResult:
        """Harmless when the job has ended: then its status is unchanged."""
        return self._client.fetch(CancelResult, "job.cancel", {"job_id": job_id})

    def result(self, job_id: str, timeout_s: float | None = None) -> Result:
        """Wait for the result of a job. Raises the job's error."""
        return Job.existing(self._client.core, job_id).result(timeout_s)

    def events(
        self,
        job_id: str,
        after_seq: int = 0,
        *,
        kinds: Sequence[EventKind] = ALL_EVENTS,
        timeout_s: float | None = None,
    ) -> Iterator[JobEvent]:
        """A job's events from after `after_seq`: those kept, then new ones, until it has ended."""
        following = self._client.core.follow(job_id, after_seq, kinds)
        try:
            while (event := following.stream.get(timeout_s)) is not None:
                yield event
        finally:
            self._client.core.drop(following.call)


class Sessions:
    """`client.sessions`: jobs that belong together. Pass `session_id=` when submitting."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, name: str = "", *, defaults: dict[str, Any] | None = None, **fields: Any) -> SessionInfo:
        """`defaults` are `data` fields for the session's jobs; `fields` those of `SessionCreate`."""
        return self._client.fetch(SessionInfo, "session.create", {"name": name, "defaults": defaults or {}, **fields})

    def get(self, session_id: str) -> SessionInfo:
        """The session with its counts and `analytics`."""
        return self._client.fetch(SessionInfo, "session.get", {"session_id": session_id})

    def list(self, limit: int = 50) -> "list[SessionInfo]":
        return self._client.fetch(SessionListResult, "session.list", {"limit": limit}).sessions

    def cancel(self, session_id: str) -> SessionCancelResult:
        """Cancel all its jobs and close it."""
        return self._client.fetch(SessionCancelResult, "session.cancel", {"session_id": session_id})


class Artifacts:
    """`client.artifacts`: bytes kept by the server for 24 h."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def put(self, content: bytes, media_type: str = "application/octet-stream") -> ArtifactInfo:
        result = self._client.call("artifact.put", attachments=[Blob(content, media_type)])
        return result.parse(ArtifactInfo)

    def get(self, artifact_id: str) -> Blob:
        """Raises MalformedMessage when the answer carries no bytes."""
        return self._client.call("artifact.get", {"artifact_id": artifact_id}).only_attachment()


class Loras:
    """`client.loras`: those of a worker. `worker_id=` names one, where several are connected."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, **options: Unpack[RequestOptions]) -> "list[LoraInfo]":
        return self._client.run("lora.list", **options).parse(LoraListResult).loras

    def load(self, lora_id: str, model_id: str | None = None, **options: Unpack[RequestOptions]) -> LoraInfo:
        """Have it in memory before a request needs it. Raises ModelInvalid where it does not suit the model."""
        return self._client.run("lora.load", {"lora_id": lora_id, "model_id": model_id}, **options).parse(LoraInfo)

    def unload(self, lora_id: str, **options: Unpack[RequestOptions]) -> LoraInfo:
        """Free its memory; harmless when it is not loaded."""
        return self._client.run("lora.unload", {"lora_id": lora_id}, **options).parse(LoraInfo)


class ControlNets:
    """`client.controlnets`: those of a worker. `worker_id=` names one, where several are connected."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, **options: Unpack[RequestOptions]) -> ControlNetListResult:
        """The ControlNets, and the preprocessors that the worker can run."""
        return self._client.run("controlnet.list", **options).parse(ControlNetListResult)

    def preprocess(
        self,
        image: Picture,
        preprocessor: str,
        resolution: int | None = None,
        **options: Unpack[RequestOptions],
    ) -> Image:
        """What a ControlNet would see of a picture."""
        data, blobs = attach_pictures({"image": image, "preprocessor": preprocessor, "resolution": resolution})
        options["attachments"] = blobs
        return self._client.run("controlnet.preprocess", data, **options).only_image()
