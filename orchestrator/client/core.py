"""What `Client` and `AsyncClient` share: making requests, and the futures and streams that hear of them."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

from orchestrator.client.calls import Answer, Call, encode
from orchestrator.client.connection import Connection
from orchestrator.client.events import EventStream, JobEvent
from orchestrator.client.pictures import attach_pictures
from orchestrator.client.results import Blob, Result
from protocol.codec import attachment_list
from protocol.errors import AtelierError
from protocol.ids import new_id
from protocol.limits import INT_MAX
from protocol.messages import Event, Request

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
CONNECT_TIMEOUT_S = 30.0  # a restart of the server passes unnoticed, a missing one is told

Data = dict[str, Any] | BaseModel
EventKind = Literal["state", "progress", "preview", "item", "log"]
ALL_EVENTS: tuple[EventKind, ...] = ("state", "progress", "preview", "item", "log")


class RequestOptions(TypedDict, total=False):
    """What may be said of any job, beside its `data`. Spans in milliseconds from the server's receipt."""

    session_id: str
    priority: int  # 0 to 9, 9 most urgent
    queue_timeout_ms: int
    run_timeout_ms: int
    deadline_ms: int
    device_id: str
    worker_id: str
    request_id: str  # to make a retry from another process the same request
    traceparent: str
    attachments: Sequence[Blob]


Attach = Callable[[dict[str, Any], Sequence[Blob]], tuple[dict[str, Any], list[Blob]]]


def split_fields(fields: dict[str, Any], attach: Attach = attach_pictures) -> tuple[dict[str, Any], RequestOptions]:
    """Keyword arguments parted into `data`, with its pictures or tensors as attachments, and options."""
    names = RequestOptions.__annotations__
    options = RequestOptions(**{name: value for name, value in fields.items() if name in names})  # type: ignore[typeddict-item]
    data = {name: value for name, value in fields.items() if name not in names}
    data, blobs = attach(data, options.get("attachments", ()))
    return data, RequestOptions(**{**options, "attachments": blobs}) if blobs else options


def validation(action: str, data: Data | None, options: RequestOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `data` and header fields of an `inference.validate`. Pictures are named in it, but not sent."""
    named, _ = attach_pictures(_wire_data(data))
    header = {name: value for name, value in options.items() if name != "attachments"}
    return {"action": action, "data": named}, header


def new_future() -> "Future[Any]":
    """A future that only the connection's thread ends: `cancel()` on it, or on what awaits it, does nothing to it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


class Pending:
    """The sink of a request with one answer."""

    def __init__(self) -> None:
        self.future: Future[Result] = new_future()
        self.call: Call | None = None

    def answered(self, answer: Answer) -> None:
        finish(self.future, answer)

    def happened(self, event: Event, blobs: list[bytes]) -> None:
        """Not asked for."""

    def ended(self) -> None:
        """The answer was all."""

    def failed(self, error: Exception) -> None:
        self.future.set_exception(error)


class Following:
    """The sink of a `job.events` request."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = frozenset(kinds)
        self.stream = EventStream()
        self.call: Call | None = None

    def answered(self, answer: Answer) -> None:
        error = answer.response.error
        if not answer.response.success:
            self.stream.end(AtelierError.from_wire(error or {}))

    def happened(self, event: Event, blobs: list[bytes]) -> None:
        if event.event in self.kinds:
            self.stream.put(JobEvent.of(event, blobs))

    def ended(self) -> None:
        self.stream.end()

    def failed(self, error: Exception) -> None:
        self.stream.end(error)


def finish(future: "Future[Any]", answer: Answer) -> None:
    """End a future with what the response says."""
    response = answer.response
    if response.success:
        future.set_result(Result(response, Blob.of(response.attachments, answer.blobs)))
    else:
        future.set_exception(AtelierError.from_wire(response.error or {}))


class ClientCore:
    """One connection and what every request over it carries. Safe from several threads; nothing here waits."""

    def __init__(
        self, endpoint: str, api_key: str | None, timeout_s: float | None, connect_timeout_s: float | None
    ) -> None:
        self.endpoint = endpoint
        self.api_key = api_key
        self.timeout_s = timeout_s
        self.connection = Connection(endpoint, connect_timeout_s=connect_timeout_s)

    def request(self, action: str, data: Data | None, blobs: Sequence[Blob] = (), **fields: Any) -> Request:
        """A request for the wire; `fields` are its other header fields."""
        attachments = attachment_list([blob.content for blob in blobs], [blob.media_type for blob in blobs])
        return Request.model_validate(
            {"request_id": new_id(), "api_key": self.api_key}
            | fields
            | {"action": action, "data": _wire_data(data), "attachments": attachments}
        )

    def ask(
        self,
        action: str,
        data: Data | None = None,
        blobs: Sequence[Blob] = (),
        *,
        internal: bool = False,
        **fields: Any,
    ) -> Pending:
        """Send a request that has one answer and no events; `fields` are its other header fields."""
        pending = Pending()
        request = self.request(action, data, blobs, **fields)
        pending.call = Call(request, encode(request, [blob.content for blob in blobs]), pending)
        self.connection.start(pending.call, internal=internal)
        return pending

    def follow(self, job_id: str, after_seq: int = 0, kinds: Sequence[EventKind] = ALL_EVENTS) -> Following:
        """Stream a job's events from after `after_seq`."""
        following = Following(kinds)
        # One event more than is told: where the last one seen was the job's end, it must be heard again to end here.
        data = {"job_id": job_id, "after_seq": max(0, after_seq - 1)}
        request = self.request("job.events", data, events=sorted({*kinds, "state"}))  # `state` tells the end
        following.call = Call(request, encode(request), following, follows=True, after_seq=after_seq, job_id=job_id)
        self.connection.start(following.call)
        return following

    def drop(self, call: Call | None) -> None:
        """Stop listening for a request."""
        if call is not None:
            self.connection.drop(call)

    def wait(self, pending: Pending, timeout_s: float | None) -> Result:
        """Block for an answer. Raises the error it brings, or TimeoutError."""
        try:
            return self.wait_future(pending.future, timeout_s)
        except BaseException:
            self.drop(pending.call)
            raise

    def wait_future(self, future: "Future[Any]", timeout_s: float | None) -> Any:
        if not future.done():
            self.connection.check_may_wait()
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            return future.result(limit)
        except TimeoutError:
            if future.done():
                raise
            raise TimeoutError(f"No answer came within {limit} s.") from None


def _wire_data(data: Data | None) -> dict[str, Any]:
    if isinstance(data, BaseModel):
        data = data.model_dump(exclude_unset=True)  # what is left out may come from the session's defaults
    result = dict(data or {})
    seed = result.get("seed")
    if isinstance(seed, int) and seed > INT_MAX:
        result["seed"] = str(seed)  # the wire's integers are doubles in other languages
    return result
