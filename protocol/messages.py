"""The messages of both planes. One model per message; unknown fields are ignored, so peers may be newer.

A number field takes an int or an integral float, because some languages cannot tell them apart.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from protocol import PROTOCOL_VERSION
from protocol.enums import EventName, HeldState, Status
from protocol.errors import InvalidRequest, MalformedMessage, UnsupportedProtocol
from protocol.histogram import BUCKET_MAX
from protocol.limits import (
    HEARTBEAT_MODELS_MAX,
    INT_MAX,
    NAME_LENGTH_MAX,
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    REQUEST_ID_PATTERN,
    SPAN_MS_MAX,
    TIME_MS_MAX,
)


def _integral(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() and abs(value) <= INT_MAX else value


Int = Annotated[int, BeforeValidator(_integral)]
Count = Annotated[int, Field(ge=0, le=INT_MAX), BeforeValidator(_integral)]
TimeMs = Annotated[int, Field(ge=0, le=TIME_MS_MAX), BeforeValidator(_integral)]
SpanMs = Annotated[int, Field(ge=1, le=SPAN_MS_MAX), BeforeValidator(_integral)]
Priority = Annotated[int, Field(ge=0, le=PRIORITY_MAX), BeforeValidator(_integral)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH_MAX)]
Fingerprint = Annotated[bytes, Field(min_length=32, max_length=32)]
Data = dict[str, Any]
FIELD_ERRORS_MAX, FIELD_TEXT_MAX = 16, 200  # of an error's details
EMPTY_LIST: Any = Field(default_factory=list)  # a literal one would be deep-copied for each message
EMPTY_MAP: Any = Field(default_factory=dict)
FIRST_FAULT = Field(fail_fast=True)  # a list of 16,384 wrong entries is one fault, not 16,384 error records


class Message(BaseModel):
    """Base of all. The comment at a field is its meaning in SPEC.md, which is generated from here."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    def to_wire(self) -> dict[str, Any]:
        """The header map."""
        return self.model_dump()


class Attachment(Message):
    """One attachment frame of a message."""

    media_type: Name  # e.g. `image/png`
    nbytes: Count  # of the frame


Attachments = Annotated[list[Attachment], FIRST_FAULT]


class Request(Message):
    """What a client sends."""

    protocol: Int = PROTOCOL_VERSION  # 1
    request_id: Annotated[str, Field(pattern=REQUEST_ID_PATTERN)]  # made by the client; the idempotency key
    action: Name  # `domain.operation`, see Actions
    data: Data = {}  # the action's own fields, see Actions
    session_id: Name | None = None  # a session this job belongs to; null: none
    priority: Priority | None = None  # 9 most urgent; null: the session's, else 4
    wait: bool = True  # true: the result answers this request; false: a durable job, answered `accepted`
    events: Annotated[list[Literal["state", "progress", "preview", "item", "log"]], Field(max_length=5)] = EMPTY_LIST
    # which events to stream; ignored on REQ
    queue_timeout_ms: SpanMs | None = None  # from receipt to the start of the first attempt; null: no limit
    run_timeout_ms: SpanMs | None = None  # for one attempt; null: no limit
    deadline_ms: SpanMs | None = None  # from receipt to the end; null: no limit
    device_id: Name | None = None  # run on this device only, e.g. `cuda:0`
    worker_id: Name | None = None  # run on this worker only
    api_key: Name | None = None  # names the tenant; null: the tenant `default`
    traceparent: Name | None = None  # W3C trace context, handed on to the worker
    attachments: Attachments = EMPTY_LIST  # one entry per attachment frame, in order


class Timing(Message):
    """Where a job's time went."""

    queued_ms: Count = 0  # from receipt to the first attempt
    running_ms: Count = 0  # of the last attempt
    total_ms: Count = 0  # from receipt to the end, or until now


class Response(Message):
    """The one answer to a request."""

    protocol: Int = PROTOCOL_VERSION
    kind: Literal["response"] = "response"
    request_id: str | None = None  # of the request answered; null where it could not be read
    job_id: str | None = None  # null: there is no job
    session_id: str | None = None
    success: bool  # false: `error` is set
    status: Status | None = Field(default=None, strict=False)  # of the job; null: there is no job
    data: Data = {}  # the action's result, see Actions; empty where `success` is false
    error: Data | None = None  # see Errors
    timing: Timing | None = None  # null: there is no job, or it was only accepted
    worker_id: str | None = None  # who ran the last attempt
    device_id: str | None = None  # where
    attempt: Count | None = None  # number of the last attempt, from 1
    attachments: Attachments = EMPTY_LIST


class Event(Message):
    """What happens to a job while it is under way."""

    protocol: Int = PROTOCOL_VERSION
    kind: Literal["event"] = "event"
    request_id: str  # of the request that asked for events
    job_id: str
    seq: Count  # rises strictly within a job; gaps are normal
    event: EventName = Field(strict=False)  # see Events
    data: Data = {}  # by `event`, see Events
    attachments: Attachments = EMPTY_LIST


class HeldJob(Message):
    """A job a worker holds: assigned, running, or done with its result not yet acknowledged."""

    job_id: Name
    attempt: Count
    state: HeldState = Field(strict=False)  # see below
    tenant: Name  # this and the rest as in `assign`: enough to adopt the job after a restart
    request_id: Name
    fingerprint: Fingerprint
    action: Name
    durable: bool = False  # as in `assign`


Held = Annotated[list[HeldJob], FIRST_FAULT]


class DeviceFacts(Message):
    """What a worker's device is."""

    device_id: Name  # as the worker's machine names it, e.g. `cuda:0`
    kind: Name  # groups devices of equal speed, e.g. `cpu`, `NVIDIA H200`
    memory_total: Count  # bytes
    memory_free: Count  # bytes


class Capabilities(Message):
    """What a worker can run."""

    actions: Annotated[list[Name], FIRST_FAULT]  # that it runs
    models: Annotated[list[Data], FIRST_FAULT] | None = None  # {model_id, family, actions, content_hash, nbytes,
    # kept}; `nbytes`: what the weights take on the device, null: not known; `kept`: it stays loaded; null in place of
    # the list: any model
    schedulers: Annotated[list[Name], FIRST_FAULT] = []  # names that `scheduler` takes


class Hello(Message):
    """First message of a worker on a connection."""

    kind: Literal["hello"] = "hello"
    protocol: Int = PROTOCOL_VERSION
    worker_id: Name  # the operator's name for it
    instance_id: Name  # new for each start of the worker; kept when it starts its own device process again
    device: DeviceFacts
    capabilities: Capabilities
    slots: Annotated[int, Field(ge=1, le=4096), BeforeValidator(_integral)] = 1
    # jobs it takes at a time; with more than 1, two beyond it may be jobs of priority 9
    light_slots: Annotated[int, Field(ge=0, le=4096), BeforeValidator(_integral)] = 0
    # light jobs it takes at a time beside its slots, see Working; 0: they take slots
    resident_models: Annotated[list[Name], FIRST_FAULT] = []  # loaded now
    held: Held = []  # jobs from before a lost connection
    draining: bool = False  # true: assign nothing


class Welcome(Message):
    """The worker is in."""

    kind: Literal["welcome"] = "welcome"
    protocol: Int = PROTOCOL_VERSION
    worker_id: Name
    orchestrator_epoch: Name  # new at each start of the orchestrator
    heartbeat_ms: Count  # send a heartbeat this often
    lease_ms: Count  # silent for so long, the worker counts as lost


class Refused(Message):
    """The answer to a hello that cannot be taken (version, a second instance of a living name)."""

    kind: Literal["refused"] = "refused"
    error: Data  # see Errors


def _in_known_buckets(times: list[list[int]]) -> list[list[int]]:
    buckets = [bucket for bucket, _ in times]
    if buckets != sorted(set(buckets)) or (buckets and buckets[-1] > BUCKET_MAX):
        raise ValueError(f"the buckets rise, up to {BUCKET_MAX}")
    return times


Times = Annotated[
    list[Annotated[list[Count], Field(min_length=2, max_length=2)]],
    Field(max_length=BUCKET_MAX + 1),
    FIRST_FAULT,
    AfterValidator(_in_known_buckets),
]


class ModelFigures(Message):
    """What a worker ran of one model since `since_ms`."""

    model_id: Name  # resolved: `name` or `name:version`
    since_ms: TimeMs  # when counting began, ms since 1970: another one, and all figures began anew
    inference_count: Count = 0  # requests that went through it well, or pictures
    failures: Count = 0  # requests that it failed, not those that were wrong
    items: Count = 0  # of those that went well
    batches: Count = 0  # computed, where items of several requests may be computed together
    batched_items: Count = 0  # in them
    cache_hits: Count = 0  # answered without computing
    cache_misses: Count = 0
    loads: Count = 0  # into the device's memory
    load_ms: Count | None = None  # the last of them took
    loaded_at_ms: TimeMs | None = None  # the last of them ended, ms since 1970
    reloaded_at_ms: TimeMs | None = None  # it last took over from what had been loaded under its name
    nbytes: Count | None = None  # it takes on the device, while it is loaded
    total_us: Count = 0  # all inference times together, µs
    times: Times = []  # [bucket, count] of them, rising: bucket 0 up to 1 µs, b above 1.08^(b-1) µs, up to 1.08^b


class Heartbeat(Message):
    """The worker lives, and this is what it holds."""

    kind: Literal["heartbeat"] = "heartbeat"
    held: Held = []  # all jobs it holds
    memory_free: Count  # bytes
    resident_models: Annotated[list[Name], FIRST_FAULT] = []
    quantum_age_ms: Count  # since the device thread last came up for air
    models: Annotated[list[ModelFigures], Field(max_length=HEARTBEAT_MODELS_MAX), FIRST_FAULT] = []
    # figures of models that changed since those that were acknowledged, the longest ago first
    models_upto: Count = 0  # the worker's own number of what `models` told; it comes back in the acknowledgement


class HeartbeatAck(Message):
    """The orchestrator lives."""

    kind: Literal["heartbeat_ack"] = "heartbeat_ack"
    orchestrator_epoch: Name
    models_upto: Count = 0  # of the heartbeat


class Rehello(Message):
    """To a peer the orchestrator does not know (any more): say hello again."""

    kind: Literal["rehello"] = "rehello"
    orchestrator_epoch: Name


class Assign(Message):
    """Run this attempt."""

    kind: Literal["assign"] = "assign"
    job_id: Name
    attempt: Count  # from 1
    action: Name
    data: Data  # as the client sent it, with the session's defaults, and the model's id as this worker offers it
    tenant: Name
    request_id: Name
    fingerprint: Fingerprint  # see Idempotency
    durable: bool = False  # `wait: false`
    exclusive: bool = False  # alone on the worker
    priority: Priority = PRIORITY_DEFAULT  # 9 most urgent; between two steps the worker turns to the most urgent job
    traceparent: str | None = None
    attachments: Attachments = EMPTY_LIST  # the client's frames, untouched


class WorkerEvent(Message):
    """An event of a running attempt; the orchestrator numbers it and hands it on."""

    kind: Literal["event"] = "event"
    job_id: Name
    attempt: Count
    event: EventName = Field(strict=False)
    data: Data = {}
    attachments: Attachments = EMPTY_LIST


class WorkerResult(Message):
    """How an attempt ended."""

    kind: Literal["result"] = "result"
    job_id: Name
    attempt: Count
    success: bool
    data: Data = {}  # the action's result
    error: Data | None = None  # see Errors; set where `success` is false
    load_ms: Count = 0  # spent loading the model; feeds the estimates
    running_ms: Count = 0  # spent on the job, without loading
    attachments: Attachments = EMPTY_LIST


class AttemptRef(Message):
    job_id: Name
    attempt: Count


class ResultAck(Message):
    """These results are safe (on disk or handed on): the worker may forget them."""

    kind: Literal["result_ack"] = "result_ack"
    results: Annotated[list[AttemptRef], FIRST_FAULT]  # {job_id, attempt} of each


class Cancel(AttemptRef):
    """Stop this attempt at the next step."""

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
        return Request.__pydantic_validator__.validate_python(header)  # `model_validate` does no more
    except ValidationError as error:
        raise InvalidRequest("The request's fields are not valid.", details=field_errors(error)) from None


def parse_message(header: dict[str, Any], known: dict[str, type[Message]]) -> Message | None:
    """The message in a header, None where its kind is unknown (peers may be newer)."""
    kind = header.get("kind")
    model = known.get(kind) if isinstance(kind, str) else None
    if model is None:
        return None
    try:
        return model.__pydantic_validator__.validate_python(header)
    except ValidationError as error:
        raise MalformedMessage(f"The {kind} message is not valid.", details=field_errors(error)) from None


def field_errors(error: ValidationError) -> dict[str, Any]:
    """`details` of an error: at most 16 fields, each with what is wrong; never the value itself."""
    items = error.errors(include_url=False, include_input=False, include_context=False)[:FIELD_ERRORS_MAX]
    return {"fields": [{"field": _field_path(item), "problem": item["msg"][:FIELD_TEXT_MAX]} for item in items]}


def _field_path(item: Any) -> str:
    """`images.0.width`. Pydantic puts a type's label behind a field with alternatives; it is no part of the path."""
    unknown = item["type"] == "extra_forbidden"  # then the last part is the sender's own word
    *path, last = item["loc"] or ("data",)
    parts = [part for part in path if isinstance(part, int) or not _is_type_label(part)]
    if unknown or isinstance(last, int) or not _is_type_label(last):
        parts.append(last)
    return ".".join(str(part) for part in parts)[:FIELD_TEXT_MAX] or "data"


def _is_type_label(part: str) -> bool:
    return part in ("int", "str", "float", "bool") or not part.isidentifier()
