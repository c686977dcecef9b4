"""The messages of both planes. One model a message; unknown fields are ignored, so peers may be newer.

A number field takes an int or an integral float, because some languages cannot tell them apart.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from protocol import PROTOCOL_VERSION
from protocol.enums import EventName, HeldState, Status
from protocol.errors import InvalidRequest, MalformedMessage, UnsupportedProtocol
from protocol.limits import NAME_LENGTH_MAX, PRIORITY_DEFAULT, PRIORITY_MAX, REQUEST_ID_PATTERN, SPAN_MS_MAX


def _integral(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_integral)]
SpanMs = Annotated[int, BeforeValidator(_integral), Field(ge=1, le=SPAN_MS_MAX)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH_MAX)]
Data = dict[str, Any]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    def to_wire(self) -> dict[str, Any]:
        """The header map."""
        return self.model_dump()


class Attachment(Message):
    media_type: Name
    nbytes: Int


class Request(Message):
    """A client's request; see SPEC.md for each field."""

    protocol: Int = PROTOCOL_VERSION
    request_id: Annotated[str, Field(pattern=REQUEST_ID_PATTERN)]
    action: Name
    data: Data = {}
    session_id: Name | None = None
    priority: Annotated[int, BeforeValidator(_integral), Field(ge=0, le=PRIORITY_MAX)] | None = None
    wait: bool = True
    events: list[Literal["state", "progress", "preview", "item", "log"]] = []
    queue_timeout_ms: SpanMs | None = None
    run_timeout_ms: SpanMs | None = None
    deadline_ms: SpanMs | None = None
    device_id: Name | None = None
    worker_id: Name | None = None
    api_key: Name | None = None
    traceparent: Name | None = None
    attachments: list[Attachment] = []

    @property
    def effective_priority(self) -> int:
        return PRIORITY_DEFAULT if self.priority is None else self.priority


class Timing(Message):
    queued_ms: Int = 0
    running_ms: Int = 0
    total_ms: Int = 0


class Response(Message):
    """The one answer to a request."""

    protocol: Int = PROTOCOL_VERSION
    kind: Literal["response"] = "response"
    request_id: str | None = None
    job_id: str | None = None
    session_id: str | None = None
    success: bool
    status: Status | None = Field(default=None, strict=False)
    data: Data = {}
    error: Data | None = None
    timing: Timing | None = None
    worker_id: str | None = None
    device_id: str | None = None
    attempt: Int | None = None
    attachments: list[Attachment] = []


class Event(Message):
    protocol: Int = PROTOCOL_VERSION
    kind: Literal["event"] = "event"
    request_id: str
    job_id: str
    seq: Int
    event: EventName = Field(strict=False)
    data: Data = {}
    attachments: list[Attachment] = []


class HeldJob(Message):
    """A job a worker holds: assigned, running, or done with its result not yet acknowledged."""

    job_id: Name
    attempt: Int
    state: HeldState = Field(strict=False)
    tenant: Name
    request_id: Name
    fingerprint: bytes
    action: Name


class DeviceFacts(Message):
    """What a worker's device is. Memory in bytes; `kind` groups devices of equal speed."""

    device_id: Name  # as the worker's machine names it, e.g. "cuda:0"
    kind: Name  # e.g. "cpu", "NVIDIA H200"
    memory_total: Int
    memory_free: Int


class Capabilities(Message):
    """What a worker can run. A model list that is null means: any name; the worker will judge."""

    actions: list[Name]
    models: list[Data] | None = None  # {model_id, family, actions, content_hash}
    schedulers: list[Name] = []


class Hello(Message):
    kind: Literal["hello"] = "hello"
    protocol: Int = PROTOCOL_VERSION
    worker_id: Name
    instance_id: Name
    device: DeviceFacts
    capabilities: Capabilities
    slots: Annotated[int, BeforeValidator(_integral), Field(ge=1, le=4096)] = 1
    resident_models: list[Name] = []
    held: list[HeldJob] = []
    draining: bool = False


class Welcome(Message):
    kind: Literal["welcome"] = "welcome"
    protocol: Int = PROTOCOL_VERSION
    worker_id: Name
    orchestrator_epoch: Name
    heartbeat_ms: Int
    lease_ms: Int


class Refused(Message):
    """The answer to a hello that cannot be taken (version, a second instance of a living name)."""

    kind: Literal["refused"] = "refused"
    error: Data


class Heartbeat(Message):
    kind: Literal["heartbeat"] = "heartbeat"
    held: list[HeldJob] = []
    memory_free: Int
    resident_models: list[Name] = []
    quantum_age_ms: Int


class HeartbeatAck(Message):
    kind: Literal["heartbeat_ack"] = "heartbeat_ack"
    orchestrator_epoch: Name


class Rehello(Message):
    """To a peer the orchestrator does not know (any more): say hello again."""

    kind: Literal["rehello"] = "rehello"
    orchestrator_epoch: Name


class Assign(Message):
    kind: Literal["assign"] = "assign"
    job_id: Name
    attempt: Int
    action: Name
    data: Data
    tenant: Name
    request_id: Name
    fingerprint: bytes
    exclusive: bool = False
    traceparent: str | None = None
    attachments: list[Attachment] = []


class WorkerEvent(Message):
    kind: Literal["event"] = "event"
    job_id: Name
    attempt: Int
    event: EventName = Field(strict=False)
    data: Data = {}
    attachments: list[Attachment] = []


class WorkerResult(Message):
    """How an attempt ended. `load_ms` and `running_ms` feed the estimates of completion."""

    kind: Literal["result"] = "result"
    job_id: Name
    attempt: Int
    success: bool
    data: Data = {}
    error: Data | None = None
    load_ms: Int = 0
    running_ms: Int = 0
    attachments: list[Attachment] = []


class _AboutJob(Message):
    job_id: Name
    attempt: Int


class ResultAck(_AboutJob):
    """The result is safe (on disk or handed on): the worker may forget it."""

    kind: Literal["result_ack"] = "result_ack"


class Cancel(_AboutJob):
    """Stop this attempt at the next step and forget it; no result is wanted."""

    kind: Literal["cancel"] = "cancel"


class Drain(Message):
    """Finish what is held, then say goodbye and exit."""

    kind: Literal["drain"] = "drain"


class Goodbye(Message):
    """The worker leaves on purpose; what it still held is queued again and counts as no loss."""

    kind: Literal["goodbye"] = "goodbye"


FROM_WORKER: dict[str, type[Message]] = {
    model.model_fields["kind"].default: model for model in (Hello, Heartbeat, WorkerEvent, WorkerResult, Goodbye)
}
TO_WORKER: dict[str, type[Message]] = {
    model.model_fields["kind"].default: model
    for model in (Welcome, Refused, HeartbeatAck, Rehello, Assign, ResultAck, Cancel, Drain)
}
TO_CLIENT: dict[str, type[Message]] = {"response": Response, "event": Event}


def parse_request(header: dict[str, Any]) -> Request:
    """The request in a header. Raises UnsupportedProtocol, InvalidRequest (naming the fields) or MalformedMessage."""
    version = header.get("protocol")
    if version != PROTOCOL_VERSION:
        raise UnsupportedProtocol(
            f"This server speaks protocol {PROTOCOL_VERSION}.", details={"supported": [PROTOCOL_VERSION]}
        )
    if "kind" in header and header["kind"] != "request":
        raise MalformedMessage("Only requests are taken on this port.")
    try:
        return Request.model_validate(header)
    except ValidationError as error:
        raise InvalidRequest("The request's fields are not valid.", details=field_errors(error)) from None


def parse_message(header: dict[str, Any], known: dict[str, type[Message]]) -> Message | None:
    """The message in a header, None where its kind is unknown (peers may be newer)."""
    kind = header.get("kind")
    model = known.get(kind) if isinstance(kind, str) else None
    if model is None:
        return None
    try:
        return model.model_validate(header)
    except ValidationError as error:
        raise MalformedMessage(f"The {kind} message is not valid.", details=field_errors(error)) from None


def field_errors(error: ValidationError) -> dict[str, Any]:
    """`details` of an error: at most 16 fields, each with what is wrong; never the value itself."""
    return {
        "fields": [
            {"field": ".".join(str(part) for part in item["loc"]) or "data", "problem": item["msg"]}
            for item in error.errors(include_url=False, include_input=False, include_context=False)[:16]
        ]
    }
