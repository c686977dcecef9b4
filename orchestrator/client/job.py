"""A submitted job, as its submitter sees it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from orchestrator.client.calls import ENDED, Answer, Call, encode
from orchestrator.client.core import ClientCore, Data, EventKind, RequestOptions, finish, new_future
from orchestrator.client.events import EventStream, JobEvent
from orchestrator.client.results import Result
from protocol.messages import Event
from protocol.schemas.job import AcceptedResult

RESULT_WAIT_MS = 5000  # of one `job.result`; shorter than the silence after which a connection is replaced


class Job:
    """A handle on one job: `result()`, `events()`, `cancel()`. Made by `Client.submit`.

    A waiting job (`wait=True`) belongs to its client: it is cancelled when the client vanishes. A durable one
    (`wait=False`) is on disk when `submit` returns and outlives client and server.
    """

    def __init__(self, core: ClientCore, *, durable: bool, kinds: Sequence[EventKind] = ()) -> None:
        self._core = core
        self._durable = durable
        self._kinds = frozenset(kinds)
        self._stream = EventStream() if kinds else None
        self._lock = threading.Lock()
        self._fetching = False
        self.request_id: str | None = None
        self.accepted: Future[Result | None] = new_future()
        self.job_id: str | None = None  # the server's name for it; None until its first message about it
        self.identified: Future[None] = new_future()
        self.outcome: Future[Result] = new_future()

    @classmethod
    def submit(
        cls,
        core: ClientCore,
        action: str,
        data: Data | None,
        wait: bool,
        events: Sequence[EventKind],
        options: RequestOptions,
    ) -> "Job":
        fields: dict[str, Any] = dict(options)
        blobs = fields.pop("attachments", ())
        # `state` events tell the job_id, without which it could not be cancelled, and the end of a durable one.
        wanted = sorted({*events, "state"}) if wait or events else []
        request = core.request(action, data, blobs, wait=wait, events=wanted, **fields)
        job = cls(core, durable=not wait, kinds=events)
        job.request_id = request.request_id
        frames = encode(request, [blob.content for blob in blobs])
        core.connection.start(Call(request, frames, job, follows=not wait and bool(events)))
        return job

    @classmethod
    def existing(cls, core: ClientCore, job_id: str) -> "Job":
        """A handle on a job that was accepted before."""
        job = cls(core, durable=True)
        job.accepted.set_result(None)
        job._identify(job_id)
        return job

    @property
    def estimated_completion_ms(self) -> int | None:
        """Of a durable job: when the server expected it to end, from its acceptance on."""
        accepted = self.accepted.result() if self.accepted.done() and not self.accepted.exception() else None
        return accepted.parse(AcceptedResult).estimated_completion_ms if accepted else None

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end. Raises the job's error, or TimeoutError (the job goes on)."""
        self.fetch()
        result: Result = self._core.wait_future(self.outcome, timeout_s)
        return result

    def done(self) -> bool:
        """Whether `result()` would return at once. A durable job is first asked about by `result` or a callback."""
        return self.outcome.done()

    def add_done_callback(self, callback: "Callable[[Job], object]") -> None:
        """Call `callback(job)` at the end, on the client's own thread: it must be quick and must not wait."""
        self.fetch()
        self.outcome.add_done_callback(lambda _: callback(self))

    def events(self, timeout_s: float | None = None) -> Iterator[JobEvent]:
        """The events asked for at submission, as they come, until the job has ended.

        Raises TimeoutError when none came for `timeout_s`. How the job ended is told by `result()`.
        """
        stream = self.stream
        while (event := stream.get(timeout_s)) is not None:
            yield event

    @property
    def stream(self) -> EventStream:
        if self._stream is None:
            raise ValueError('No events were asked for: submit with events=["progress", …].')
        return self._stream

    def cancel(self, timeout_s: float | None = None) -> None:
        """Ask the server to end the job; harmless when it has ended. `result()` then raises Cancelled."""
        self._core.wait_future(self.cancel_soon(), timeout_s)

    def cancel_soon(self) -> "Future[None]":
        """`cancel` without waiting: sent once the job's id is known. The future ends with the server's answer."""
        done: Future[None] = new_future()

        def told(answer: "Future[Result]") -> None:
            if answer.exception() is not None:
                done.set_exception(answer.exception())
            else:
                done.set_result(None)

        def send(identified: "Future[None]") -> None:
            if identified.exception() is not None or self.job_id is None or self.outcome.done():
                done.set_result(None)  # it never became a job, or has ended
                return
            try:
                pending = self._core.ask("job.cancel", {"job_id": self.job_id}, internal=True)
            except Exception as error:
                done.set_exception(error)
            else:
                pending.future.add_done_callback(told)

        self.identified.add_done_callback(send)
        return done

    def fetch(self) -> None:
        """Begin to ask for a durable job's result; a waiting job's comes by itself."""
        with self._lock:
            if not self._durable or self._fetching:
                return
            self._fetching = True
        self.accepted.add_done_callback(self._ask_result)

    # --- called on the connection's thread ----------------------------------------------------------------------

    def answered(self, answer: Answer) -> None:
        self._identify(answer.response.job_id)
        if self._durable:
            finish(self.accepted, answer)
        else:
            self.accepted.set_result(None)
            finish(self.outcome, answer)

    def happened(self, event: Event, blobs: list[bytes]) -> None:
        self._identify(event.job_id)
        if self._stream is not None and event.event in self._kinds:
            self._stream.put(JobEvent.of(event, blobs))

    def ended(self) -> None:
        if self._stream is not None:
            self._stream.end()

    def failed(self, error: Exception) -> None:
        if self._stream is not None:
            self._stream.end(error)
        for future in (self.identified, self.accepted, self.outcome):
            if not future.done() and not (future is self.outcome and self._durable):
                future.set_exception(error)

    def _identify(self, job_id: str | None) -> None:
        self.job_id = job_id or self.job_id  # a server that lost a waiting job begins it anew under another id
        if not self.identified.done():
            self.identified.set_result(None)

    def _ask_result(self, before: "Future[Any]") -> None:
        if before.exception() is not None:
            self.outcome.set_exception(before.exception())
            return
        try:
            pending = self._core.ask("job.result", {"job_id": self.job_id, "wait_ms": RESULT_WAIT_MS}, internal=True)
        except Exception as error:
            self.outcome.set_exception(error)
        else:
            pending.future.add_done_callback(self._take_result)

    def _take_result(self, answer: "Future[Result]") -> None:
        if answer.exception() is None and answer.result().response.status in ENDED:
            self.outcome.set_result(answer.result())
        else:
            self._ask_result(answer)
