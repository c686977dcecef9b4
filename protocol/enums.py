"""Closed sets of words that stand on the wire. With `limits`, all of this package that the pure core imports."""

from enum import StrEnum


class Status(StrEnum):
    """What a user sees of a job."""

    PENDING = "pending"  # accepted, waiting for a worker
    PROCESSING = "processing"  # assigned to a worker
    COMPLETED = "completed"  # it has its result
    FAILED = "failed"  # it has its error
    CANCELLED = "cancelled"  # on request, or because its client went away

    @property
    def terminal(self) -> bool:
        return self not in (Status.PENDING, Status.PROCESSING)


class EventName(StrEnum):
    """The kinds of event a client may stream."""

    STATE = "state"  # the job's status changed
    PROGRESS = "progress"  # how far the job is
    PREVIEW = "preview"  # a small picture of the unfinished latents
    ITEM = "item"  # one of several results is ready
    LOG = "log"  # a line for people


class HeldState(StrEnum):
    """What a worker says of a job it holds."""

    ASSIGNED = "assigned"  # in its mailbox, not begun
    RUNNING = "running"  # begun
    DONE = "done"  # the result waits for its `result_ack`


class ErrorCode(StrEnum):
    """The catalogue of errors: code, meaning, HTTP status, and whether the same request may succeed later."""

    meaning: str
    http_status: int
    retryable: bool

    def __new__(cls, code: str, http_status: int, retryable: bool, meaning: str) -> "ErrorCode":
        member = str.__new__(cls, code)
        member._value_ = code
        member.http_status = http_status
        member.retryable = retryable
        member.meaning = meaning
        return member

    MALFORMED_MESSAGE = "malformed_message", 400, False, "The message cannot be read as frames and a header."
    UNSUPPORTED_PROTOCOL = (
        "unsupported_protocol",
        400,
        False,
        "The peer speaks another version; details.supported lists ours.",
    )
    UNKNOWN_ACTION = "unknown_action", 404, False, "No such action; details.nearest names the closest one."
    INVALID_REQUEST = "invalid_request", 422, False, "A field is missing, unknown or out of range; details.fields."
    UNAUTHORIZED = "unauthorized", 401, False, "The API key or CURVE key is missing or wrong."
    TENANT_SUSPENDED = "tenant_suspended", 403, False, "The tenant may not submit work at present."
    FORBIDDEN = "forbidden", 403, False, "The name or object is outside what the caller may reach."
    NOT_FOUND = "not_found", 404, False, "No such job, session, worker or artifact."
    MODEL_NOT_FOUND = "model_not_found", 404, False, "No worker has this model; details.known lists some."
    MODEL_INVALID = "model_invalid", 422, False, "The model's files are damaged, unsafe or of the wrong kind."
    REQUEST_CONFLICT = "request_conflict", 409, False, "The request_id was used before with another body."
    PAYLOAD_TOO_LARGE = "payload_too_large", 413, False, "Header, attachments or picture exceed a limit."
    QUOTA_EXCEEDED = "quota_exceeded", 429, False, "The tenant's quota is used up."
    RATE_LIMITED = "rate_limited", 429, True, "Too many requests; wait retry_after_ms."
    QUEUE_FULL = "queue_full", 503, True, "A queue is at its limit; wait retry_after_ms."
    NO_CAPABLE_WORKER = "no_capable_worker", 503, True, "Workers are connected, but none can run this request."
    CIRCUIT_OPEN = "circuit_open", 503, True, "The model failed repeatedly and is rested; wait retry_after_ms."
    TIMEOUT_QUEUE = "timeout_queue", 504, True, "queue_timeout_ms passed before a worker took the job."
    TIMEOUT_RUN = "timeout_run", 504, False, "One attempt ran longer than run_timeout_ms."
    DEADLINE_EXCEEDED = "deadline_exceeded", 504, False, "deadline_ms passed before the job ended."
    CANCELLED = "cancelled", 499, False, "The job was cancelled."
    OUT_OF_MEMORY = "out_of_memory", 507, False, "The request does not fit the device, even alone."
    WORKER_LOST = "worker_lost", 503, True, "The worker vanished and no attempts are left."
    POISONED = "poisoned", 500, False, "The job took down three workers, the last time running alone."
    DRAINING = "draining", 503, True, "The server is stopping; submit again after its restart."
    UNAVAILABLE = "unavailable", 503, True, "A service behind the server (its disk, say) fails at present."
    INTERNAL = "internal", 500, False, "A fault of ours; the log has it under the request_id."
