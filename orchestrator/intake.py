"""From a client's message to the core's Submit: everything that can be refused without asking the core.

Nothing here runs long on the broker thread: attachments above 64 KiB, and all of durable jobs, are hashed and
written by the artifact thread before the core sees the job.
"""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.core import events as e
from orchestrator.core.forecast import forecasts
from orchestrator.core.model import NO_EVENTS, Job
from orchestrator.payload import Payload, cost_of, requirement_of
from orchestrator.ports import Connection
from orchestrator.registry.router import Routed
from orchestrator.store import ArtifactRow, queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error, send_result
from protocol.codec import Buffer, fingerprint
from protocol.errors import (
    AtelierError,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    NoCapableWorker,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    RequestConflict,
    Unavailable,
)
from protocol.ids import new_id
from protocol.limits import ARTIFACT_INLINE_BYTES, PRIORITY_DEFAULT
from protocol.messages import Request
from protocol.schemas import Action, nearest
from protocol.schemas.artifact import ArtifactRef
from protocol.schemas.base import ActionData, validate, with_defaults
from protocol.schemas.controlnet import Preprocess
from protocol.schemas.inference import PictureData, scheduler_key
from protocol.schemas.predict import BatchData, PredictData, check_tensors
from protocol.schemas.values import byte_refs, check_references, put_at

if TYPE_CHECKING:
    from orchestrator.broker import Broker

REFERRING = (PictureData, Preprocess, PredictData, BatchData)  # data that may name attachments and artifacts
INTERNAL = frozenset({"model.fetch"})  # actions of workers that no client may ask for
REMEMBERED_MAX = 1_000_000  # requests of durable jobs
UNSAVED_MAX = 20_000  # groups of rows on their way to the disk, before durable jobs are refused


class Intake:
    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._preparing_nbytes = 0
        self._on_disk: dict[tuple[str, str], None] = {}  # requests of durable jobs

    def submit(self, connection: Connection, tenant: str, request: Request, action: Action, frames: list[Any]) -> None:
        """Take in one request for work. Raises AtelierError where it is refused."""
        job, model = self.job_for(tenant, request, action, frames)
        events = NO_EVENTS if connection.is_req else frozenset(request.events)
        event = e.Submit(job, connection, events, not connection.is_req)
        stored = self._stored_inputs(model, request) if isinstance(model, REFERRING) else {}
        if stored:
            self._fetch_inputs(event, request, stored)
        else:
            self._identify(event, request)

    def job_for(self, tenant: str, request: Request, action: Action, frames: list[Any]) -> tuple[Job, ActionData]:
        """The job that a request would make, which nobody knows yet, and its data as the action's model.

        Raises AtelierError where the request is refused, whatever the core would say.
        """
        data, priority = self.data_for(tenant, request, action)
        model = validate(action.data, data)
        self._check_scheduler(data)
        routed = self._routed(tenant, request, action, data)
        data = routed.data
        attachments = [entry.to_wire() for entry in request.attachments]
        need = requirement_of(action.name, data, request.worker_id, request.device_id)
        cost = cost_of(action.name, data)
        job = Job(new_id(), tenant, request.request_id, b"", need, cost, priority, durable=not request.wait)
        job.session_id, job.traceparent = request.session_id, request.traceparent
        job.queue_timeout_ms, job.run_timeout_ms = request.queue_timeout_ms, request.run_timeout_ms
        job.deadline_ms = request.deadline_ms
        job.payload = Payload(action.name, data, attachments, frames, shadow=routed.shadow)
        job.payload_nbytes = sum([entry["nbytes"] for entry in attachments])
        if routed.device_ids is not None:
            self._pin(job, routed.device_ids)
        if job.durable and self._broker.store.queued_writes > UNSAVED_MAX:
            raise Unavailable("The disk is behind with accepted jobs.", retry_after_ms=1000)
        return job, model

    def _routed(self, tenant: str, request: Request, action: Action, data: dict[str, Any]) -> Routed:
        """The data with the model that is to answer it. A request that is known is not asked for a model again: it is
        the same job, whatever became of the names since."""
        if action.name in INTERNAL:
            raise Forbidden("This action is the server's own; use model.register.")
        try:
            return self._broker.router.route(tenant, request, action, data)
        except (ModelNotFound, NoCapableWorker):
            key = tenant, request.request_id
            if key in self._broker.core.jobs_by_request or key in self._on_disk:
                return Routed({**data, "model_id": None})
            raise

    def _pin(self, job: Job, device_ids: list[str]) -> None:
        """A policy names devices: take the one of them that would end the job soonest."""
        found = forecasts(self._broker.core, job, self._broker.clock.now_ms())
        best = next((each.worker.device_id for each in found if each.worker.device_id in device_ids), device_ids[0])
        job.requirement = job.requirement._replace(device_pin=best)

    def _stored_inputs(self, model: ActionData, request: Request) -> dict[str, str]:
        """The artifacts that the data names in place of attachments: path in the data -> artifact_id."""
        check_references(model, len(request.attachments))
        check_tensors(model, [attachment.nbytes for attachment in request.attachments])
        return {path: ref.artifact_id for path, ref in byte_refs(model) if isinstance(ref, ArtifactRef)}

    def _fetch_inputs(self, event: e.Submit, request: Request, stored: dict[str, str]) -> None:
        """Put the artifacts beside the request's attachments, as the worker wants them, and go on."""
        connection, job = event.connection, event.job
        artifact_ids = list(dict.fromkeys(stored.values()))
        broker = self._broker

        def fetched(rows: list[ArtifactRow], completion: Completion) -> None:
            self.let_go(sum(row.nbytes for row in rows))
            try:
                if completion.error is not None:
                    raise disk_error(completion.error)
                _attach(job, stored, rows, completion.value)
                self._identify(event, request)
            except AtelierError as error:
                broker.reject(connection, job.request_id, error)

        def found(completion: Completion) -> None:
            try:
                if completion.error is not None:
                    raise disk_error(completion.error)
                rows = self._check_stored(artifact_ids, completion.value, job)
                self.hold(sum(row.nbytes for row in rows))
                broker.artifacts.get(artifact_ids, broker.expect(partial(fetched, rows)))
            except AtelierError as error:
                broker.reject(connection, job.request_id, error)

        queried = [queries.artifact_by_id(job.tenant, artifact_id) for artifact_id in artifact_ids]
        broker.store.read(lambda connection: [query(connection) for query in queried], broker.expect(found))

    def _check_stored(self, artifact_ids: list[str], rows: list[ArtifactRow | None], job: Job) -> list[ArtifactRow]:
        there = [row for row in rows if row is not None]
        if len(there) < len(artifact_ids):
            raise NotFound("There is no artifact of an id that the data names; it may have been cleaned.")
        limits = self._broker.limits
        if len(there) + len(job.payload.attachments) > limits.attachments_max:
            raise PayloadTooLarge(f"A request may have {limits.attachments_max} attachments and artifacts.")
        if sum(row.nbytes for row in there) + job.payload_nbytes > limits.attachment_bytes_max:
            raise PayloadTooLarge(
                f"A request may have {limits.attachment_bytes_max} bytes of attachments and artifacts."
            )
        return there

    def data_for(self, tenant: str, request: Request, action: Action) -> tuple[dict[str, Any], int]:
        """The request's data with the session's defaults and the default model, and its priority."""
        data, fields = request.data, action.data.__pydantic_fields__
        session = self._broker.core.session(tenant, request.session_id) if request.session_id else None
        if session is not None and session.defaults:
            data = with_defaults(action.data, data, session.defaults)
        if "model_id" in fields and data.get("model_id") is None:
            default_model_id = self._broker.offers.default(action.name)
            if default_model_id is not None:
                data = {**data, "model_id": default_model_id}
        priority = request.priority
        if priority is None:
            priority = session.priority if session is not None else None
        return data, PRIORITY_DEFAULT if priority is None else priority

    def _check_scheduler(self, data: dict[str, Any]) -> None:
        known = self._broker.schedulers
        name = data.get("scheduler")
        if name is not None and known and scheduler_key(name) not in known:
            near = nearest(scheduler_key(name), known)
            field = {"field": "scheduler", "problem": "unknown scheduler", "nearest": known.get(near or "")}
            raise InvalidRequest("No worker knows this scheduler.", details={"fields": [field]})

    def _identify(self, event: e.Submit, request: Request) -> None:
        """Find the fingerprint and, for a durable job, put its attachments on disk; then let the core decide."""
        job, payload = event.job, event.job.payload
        frames = payload.frames
        if not frames:
            self._hand_over(event, request, ())
            return
        large = any(entry["nbytes"] > ARTIFACT_INLINE_BYTES for entry in payload.attachments)
        if not (large or job.durable):
            self._hand_over(event, request, [hashlib.sha256(frame).digest() for frame in frames])
            return
        nbytes = job.payload_nbytes
        self.hold(nbytes)

        def identified(completion: Completion) -> None:
            self.let_go(nbytes)
            if completion.error is not None:
                self._broker.reject(event.connection, job.request_id, disk_error(completion.error))
            else:
                self._hand_over(event, request, completion.value)

        buffers: list[Buffer] = [memoryview(frame) for frame in frames]
        if job.durable or self._broker.core.payload_nbytes + nbytes > self._broker.settings.payload_bytes_max:
            payload.artifact_ids = [new_id() for _ in buffers]
            payload.frames, job.payload_nbytes = None, 0  # read back when a worker gets the job
            items = list(zip(payload.artifact_ids, buffers, strict=True))
            self._broker.artifacts.put(items, self._broker.expect(identified))
        else:
            self._broker.artifacts.hash(buffers, self._broker.expect(identified))

    def hold(self, nbytes: int) -> None:
        """Count attachments that wait for the artifact thread, until `let_go`. Raises QueueFull."""
        if self._preparing_nbytes + nbytes > self._broker.settings.payload_bytes_max:
            raise QueueFull("Too many attachments are being taken in.", retry_after_ms=1000)
        self._preparing_nbytes += nbytes

    def let_go(self, nbytes: int) -> None:
        self._preparing_nbytes -= nbytes

    def _hand_over(self, event: e.Submit, request: Request, digests: Sequence[bytes]) -> None:
        job, payload = event.job, event.job.payload
        payload.digests = digests
        own = len(request.attachments)  # what artifacts were added is told by their ids in the data
        job.fingerprint = fingerprint(
            request.action, request.session_id, request.data, payload.attachments[:own], digests[:own]
        )
        if not job.durable and job.key in self._on_disk and job.key not in self._broker.core.jobs_by_request:
            self._answer_from_disk(event)
        else:
            self._feed(event)

    def _feed(self, event: e.Submit) -> None:
        payload = event.job.payload
        self._broker.feed(event)
        if payload.artifact_ids or payload.shadow is not None:
            job = self._broker.core.jobs_by_request.get(event.job.key)
            if job is None or job.payload is not payload:  # refused, or the same request once more
                self._drop_files(payload)
            elif payload.shadow is not None:
                self._broker.shadows.follow(job, payload.shadow)

    def _drop_files(self, payload: Payload) -> None:
        if payload.artifact_ids:
            self._broker.artifacts.delete(payload.artifact_ids)

    def remember(self, key: tuple[str, str]) -> None:
        """The (tenant, request_id) of a durable job; the oldest is forgotten when there are too many."""
        self._on_disk[key] = None
        if len(self._on_disk) > REMEMBERED_MAX:
            del self._on_disk[next(iter(self._on_disk))]

    def _answer_from_disk(self, event: e.Submit) -> None:
        """Now with `wait: true`, a request whose accepted job has ended, and which the core has forgotten."""
        connection, job = event.connection, event.job
        request_id = job.request_id

        def found(completion: Completion) -> None:
            record = completion.value
            if completion.error is None and (record is None or record.result is None):
                self._feed(event)  # past its retention, or live again meanwhile
                return
            self._drop_files(job.payload)
            if completion.error is not None:
                self._broker.reject(connection, request_id, disk_error(completion.error))
            elif record.row.fingerprint != job.fingerprint:
                self._broker.reject(connection, request_id, RequestConflict(details={"job_id": record.row.job_id}))
            else:
                send_result(self._broker, connection, request_id, record)

        self._broker.store.read(queries.job_by_request(job.tenant, request_id), self._broker.expect(found))


def _attach(job: Job, stored: dict[str, str], rows: list[ArtifactRow], frames: list[bytes]) -> None:
    """Let the job's data name attachments in place of artifacts."""
    payload: Payload = job.payload
    first = len(payload.attachments)
    places = {row.artifact_id: first + index for index, row in enumerate(rows)}
    payload.data = deepcopy(payload.data)
    for path, artifact_id in stored.items():
        put_at(payload.data, path, {"attachment": places[artifact_id]})
    added = [{"media_type": row.media_type, "nbytes": row.nbytes} for row in rows]
    payload.attachments = [*payload.attachments, *added]
    payload.frames = [*(payload.frames or ()), *frames]
    job.payload_nbytes += sum(row.nbytes for row in rows)
