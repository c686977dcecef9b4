"""The client's side of a connection as a pure state: which requests are open, and what a message or a loss means.

No sockets, threads or clocks: `connection.py` feeds it and sends what it asks for. Times are seconds of one
monotonic clock. The rules:

- A request stays open until its answer; each time the connection comes (back), every open request is sent (again)
  under its own id. The server attaches the second asking to the same job, so work is not doubled.
- A stream that outlives its answer (a durable job's events) is taken up again by `job.events` from the last `seq`
  seen. An event whose `seq` was seen before is dropped, so each reaches the user once.
- A message for a request that is not open (late, or the second answer to a resent request) is dropped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from orchestrator.client.errors import ServerUnreachable
from protocol import codec
from protocol.enums import EventName, Status
from protocol.errors import AtelierError, MalformedMessage, PayloadTooLarge
from protocol.limits import DEFAULT_LIMITS, MIB
from protocol.messages import TO_CLIENT, Event, Request, Response, parse_message

ENDED = frozenset(status for status in Status if status.terminal)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response and its attachments."""

    response: Response
    blobs: list[bytes]


class Sink(Protocol):
    """Who is told what became of a request. Called on the connection's thread; must not block."""

    def answered(self, answer: Answer) -> None: ...

    def happened(self, event: Event, blobs: list[bytes]) -> None: ...

    def ended(self) -> None:
        """No more events: the last call, unless `failed` is."""

    def failed(self, error: Exception) -> None:
        """The request was given up: the last call."""


@dataclass(slots=True, eq=False)
class Call:
    """One request in flight. `follows`: its events go on after the answer, until the job's terminal `state`."""

    request: Request
    frames: list[bytes]
    sink: Sink
    follows: bool = False
    after_seq: int = 0  # the last event seen
    job_id: str | None = None
    sent: bool = False
    resent: bool = False
    over: bool = False  # the terminal `state` was seen
    rejoined: bool = False  # `request` is now the `job.events` that took the stream up again
    opened_at: float = 0.0

    @property
    def nbytes(self) -> int:
        return sum(len(frame) for frame in self.frames)


def encode(request: Request, blobs: Sequence[bytes] = ()) -> list[bytes]:
    """The request's frames. Raises MalformedMessage or PayloadTooLarge for what a server would refuse.

    Refused here, because an unreadable header is answered without a request_id and a frame over the limit costs
    the connection: the caller could not be told.
    """
    header = request.to_wire()
    try:
        raw = codec.pack(header)
    except OverflowError:
        raise MalformedMessage("An integer in the data has more than 64 bits.") from None
    codec.check_attachments(codec.unpack_header(raw), [len(blob) for blob in blobs])
    for blob in blobs:
        if len(blob) > DEFAULT_LIMITS.frame_bytes_max:
            limit = DEFAULT_LIMITS.frame_bytes_max // MIB
            raise PayloadTooLarge(f"An attachment has {len(blob)} bytes; {limit} MiB are allowed.")
    return [raw, *blobs]


def ends_job(event: Event) -> bool:
    """Whether this is the last event of its job."""
    return event.event is EventName.STATE and event.data.get("status") in ENDED


@dataclass
class ConnectionState:
    """See the module's text. `new_id` makes request ids; `closed` is told of every call that is no longer open."""

    endpoint: str
    new_id: Callable[[], str]
    closed: Callable[[Call], None]
    connect_timeout_s: float | None  # without a connection for so long, open requests fail; None: wait for ever
    silence_s: float  # the server sends `alive` every 2 s; without a word for so long the connection is replaced
    now: float  # at the start
    waiting: dict[str, Call] = field(default_factory=dict)  # by request_id, in order: no answer yet
    streams: dict[str, Call] = field(default_factory=dict)  # answered, and events follow
    down_since: float | None = field(init=False)
    heard_at: float = field(init=False)  # the last word of the server, or since when one is due

    def __post_init__(self) -> None:
        self.down_since = self.heard_at = self.now

    @property
    def up(self) -> bool:
        return self.down_since is None

    def is_open(self, call: Call) -> bool:
        request_id = call.request.request_id
        return request_id in self.waiting or request_id in self.streams

    def open(self, call: Call, now: float) -> list[Call]:
        """Take on a request. Returns what to send."""
        call.opened_at = now
        if not self.waiting:
            self.heard_at = now
        self.waiting[call.request.request_id] = call
        return self._to_send([call]) if self.up else []

    def connected(self, now: float) -> list[Call]:
        """The connection is there (again). Returns what to send: every open request, in order."""
        self.down_since = None
        self.heard_at = now
        for call in list(self.streams.values()):
            self._rejoin(call)
        return self._to_send(list(self.waiting.values()))

    def disconnected(self, now: float) -> None:
        if self.up:
            self.down_since = now

    def received(self, frames: Sequence[bytes], now: float) -> list[Call]:
        """A message from the server; whatever it holds, no other request suffers. Returns what to send."""
        self.heard_at = now
        try:
            header = codec.unpack_header(frames[0])
        except AtelierError:
            return []
        request_id = str(header.get("request_id"))
        call = self.waiting.get(request_id) or self.streams.get(request_id)
        if call is None:
            return []
        try:
            codec.check_attachments(header, [len(frame) for frame in frames[1:]])
            message = parse_message(header, TO_CLIENT)
        except AtelierError as error:
            self.give_up(call, MalformedMessage(f"The server's message cannot be read: {error.message}"))
            return []
        blobs = list(frames[1:])
        if isinstance(message, Response):
            return self._answer(call, Answer(message, blobs))
        if isinstance(message, Event):
            self._event(call, message, blobs)
        return []

    def next_deadline(self) -> float | None:
        """When `expire` has something to do, unless something happens before."""
        if self.up:
            return self.heard_at + self.silence_s if self.waiting else None
        oldest = next(self._by_age(), None)
        if oldest is None or self.connect_timeout_s is None:
            return None
        return max(self.down_since or 0.0, oldest.opened_at) + self.connect_timeout_s

    def expire(self, now: float) -> bool:
        """Fail what waited too long for a connection. Returns True when the connection must be replaced."""
        while (deadline := self.next_deadline()) is not None and now >= deadline:
            if self.up:
                self.disconnected(now)
                return True
            self.give_up(next(self._by_age()), ServerUnreachable(self.endpoint))
        return False

    def give_up(self, call: Call, error: Exception) -> None:
        self._forget(call)
        call.sink.failed(error)

    def give_up_all(self, error: Callable[[], Exception]) -> None:
        for call in list(self._by_age()):
            self.give_up(call, error())

    def _by_age(self) -> Iterator[Call]:
        return chain(self.streams.values(), self.waiting.values())

    def _answer(self, call: Call, answer: Answer) -> list[Call]:
        response = answer.response
        if call.request.request_id in self.streams:
            return []  # the second answer to a resent request
        if call.rejoined and not response.success:
            self.give_up(call, AtelierError.from_wire(response.error or {}))
            return []
        call.job_id = call.job_id or response.job_id
        goes_on = call.follows and response.success and not call.over
        if goes_on:
            self.streams[call.request.request_id] = self.waiting.pop(call.request.request_id)
        else:
            self._forget(call)
        if not call.rejoined:
            call.sink.answered(answer)
        if not goes_on:
            call.sink.ended()
        elif call.resent and call.request.action != "job.events":
            return self._to_send([self._rejoin(call)])  # for the events between the two sendings
        return []

    def _event(self, call: Call, event: Event, blobs: list[bytes]) -> None:
        if call.job_id is not None and call.job_id != event.job_id:
            call.after_seq = 0  # a server that had lost the job began it anew
        call.job_id = event.job_id
        call.over = ends_job(event)
        if event.seq > call.after_seq:
            call.after_seq = event.seq
            call.sink.happened(event, blobs)
        if call.over and call.request.request_id in self.streams:
            self._forget(call)
            call.sink.ended()

    @staticmethod
    def _to_send(calls: list[Call]) -> list[Call]:
        for call in calls:
            call.sent, call.resent = True, call.sent
        return calls

    def _rejoin(self, call: Call) -> Call:
        """Make a stream's request the `job.events` that goes on after the last event seen."""
        old = call.request
        del self.streams[old.request_id]
        call.request = Request(
            request_id=self.new_id(),
            action="job.events",
            data={"job_id": call.job_id, "after_seq": call.after_seq},
            events=old.events,
            api_key=old.api_key,
        )
        call.frames = encode(call.request)
        call.rejoined, call.sent = True, False
        self.waiting[call.request.request_id] = call
        return call

    def _forget(self, call: Call) -> None:
        self.waiting.pop(call.request.request_id, None)
        self.streams.pop(call.request.request_id, None)
        self.closed(call)
