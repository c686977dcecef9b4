"""One exception per error code: raised by the server's parts, and raised again in the client from the wire."""

from typing import Any, ClassVar

from protocol.enums import ErrorCode


class AtelierError(Exception):
    """Base of all errors with a code from the catalogue.

    `message` is for people and never holds a path, a socket, a pid or a traceback; `details` is a small map
    for programs; `retry_after_ms` a span to wait, where one is known.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    by_code: ClassVar[dict[str, type["AtelierError"]]] = {}

    def __init__(
        self, message: str = "", *, details: dict[str, Any] | None = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message or self.code.meaning)
        self.details = details or {}
        self.retry_after_ms = retry_after_ms

    def __init_subclass__(cls) -> None:
        AtelierError.by_code[cls.code] = cls

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def retryable(self) -> bool:
        return self.code.retryable

    def to_wire(self) -> dict[str, Any]:
        """The `error` map of a response."""
        return error_map(self.code, self.message, self.details, self.retry_after_ms)

    @staticmethod
    def from_wire(error: dict[str, Any]) -> "AtelierError":
        """The exception for a response's `error` map; an unknown code (a newer server) becomes `InternalError`."""
        cls = AtelierError.by_code.get(str(error.get("code")), InternalError)
        details, retry_after_ms = error.get("details") or {}, error.get("retry_after_ms")
        return cls(str(error.get("message", "")), details=details, retry_after_ms=retry_after_ms)


def error_map(
    code: ErrorCode, message: str = "", details: dict[str, Any] | None = None, retry_after_ms: int | None = None
) -> dict[str, Any]:
    """The wire form of an error; without a message, the catalogue's meaning."""
    return {
        "code": code.value,
        "message": message or code.meaning,
        "details": details or {},
        "retryable": code.retryable,
        "retry_after_ms": retry_after_ms,
    }


class MalformedMessage(AtelierError):
    code = ErrorCode.MALFORMED_MESSAGE


class UnsupportedProtocol(AtelierError):
    code = ErrorCode.UNSUPPORTED_PROTOCOL


class UnknownAction(AtelierError):
    code = ErrorCode.UNKNOWN_ACTION


class InvalidRequest(AtelierError):
    code = ErrorCode.INVALID_REQUEST


class Unauthorized(AtelierError):
    code = ErrorCode.UNAUTHORIZED


class TenantSuspended(AtelierError):
    code = ErrorCode.TENANT_SUSPENDED


class Forbidden(AtelierError):
    code = ErrorCode.FORBIDDEN


class NotFound(AtelierError):
    code = ErrorCode.NOT_FOUND


class ModelNotFound(AtelierError):
    code = ErrorCode.MODEL_NOT_FOUND


class ModelInvalid(AtelierError):
    code = ErrorCode.MODEL_INVALID


class RequestConflict(AtelierError):
    code = ErrorCode.REQUEST_CONFLICT


class PayloadTooLarge(AtelierError):
    code = ErrorCode.PAYLOAD_TOO_LARGE


class QuotaExceeded(AtelierError):
    code = ErrorCode.QUOTA_EXCEEDED


class RateLimited(AtelierError):
    code = ErrorCode.RATE_LIMITED


class QueueFull(AtelierError):
    code = ErrorCode.QUEUE_FULL


class NoCapableWorker(AtelierError):
    code = ErrorCode.NO_CAPABLE_WORKER


class CircuitOpen(AtelierError):
    code = ErrorCode.CIRCUIT_OPEN


class TimeoutQueue(AtelierError):
    code = ErrorCode.TIMEOUT_QUEUE


class TimeoutRun(AtelierError):
    code = ErrorCode.TIMEOUT_RUN


class DeadlineExceeded(AtelierError):
    code = ErrorCode.DEADLINE_EXCEEDED


class Cancelled(AtelierError):
    code = ErrorCode.CANCELLED


class OutOfMemory(AtelierError):
    code = ErrorCode.OUT_OF_MEMORY


class WorkerLost(AtelierError):
    code = ErrorCode.WORKER_LOST


class Poisoned(AtelierError):
    code = ErrorCode.POISONED


class Draining(AtelierError):
    code = ErrorCode.DRAINING


class Unavailable(AtelierError):
    code = ErrorCode.UNAVAILABLE


class InternalError(AtelierError):
    code = ErrorCode.INTERNAL
