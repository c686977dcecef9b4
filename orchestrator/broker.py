"""The broker loop: one thread that polls, drains the sockets, feeds the core and carries its commands out.

It never blocks: sends are DONTWAIT, the disk belongs to the store's and the artifacts' threads, and what they
answer comes back as a completion under a token, here as a continuation.
"""

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import structlog
import zmq

from orchestrator import replies
from orchestrator.actions import HANDLERS, Ask
from orchestrator.artifacts import ArtifactStore
from orchestrator.clock import Clock
from orchestrator.core import events as e
from orchestrator.core.core import Core
from orchestrator.effects import Effects
from orchestrator.errands import Asker, Errands
from orchestrator.housekeeping import Housekeeping
from orchestrator.intake import Intake
from orchestrator.modelstats import ModelStats
from orchestrator.persistence import jobs_of, session_of
from orchestrator.ports import Connection, Port, Received, Sent
from orchestrator.registry.change import Changes
from orchestrator.registry.offers import Offers
from orchestrator.registry.resolve import Resolver
from orchestrator.registry.router import Router
from orchestrator.registry.shadows import Shadows
from orchestrator.registry.state import Registry
from orchestrator.settings import Settings
from orchestrator.store import Store
from orchestrator.store.writer import Completion
from orchestrator.wakeup import Wakeup
from orchestrator.workerplane import WorkerPlane
from protocol.codec import check_attachments, unpack_header
from protocol.errors import AtelierError, InternalError
from protocol.ids import new_id
from protocol.messages import parse_request
from protocol.schemas import find_action
from protocol.schemas.base import validate

TURN_MESSAGES_MAX = 256  # of one socket before the loop looks at the others
FAREWELL_MS = 200  # between the last answer of a drain and the end
SAME_SIGNAL_MS = 1000
TENANT = "default"  # API keys come with the platform

log = structlog.get_logger("orchestrator")
Continuation = Callable[[Completion], None]


class Broker:
    def __init__(self, settings: Settings, core: Core, store: Store, artifacts: ArtifactStore, wakeup: Wakeup) -> None:
        self.settings = settings
        self.limits = settings.wire_limits
        self.traces = settings.log_level == "debug"  # asked before a line is made for every job
        self.core = core
        self.store = store
        self.artifacts = artifacts
        self.clock = Clock()
        self.epoch = new_id()
        self.started_ms = self.clock.now_ms()
        self.offers = Offers(core.fleet, settings.default_model_id)
        self.registry = Registry()
        self.resolver = Resolver(self.registry, self.offers)
        self.router = Router(self)
        self.errands = Errands(self)
        self.shadows = Shadows(self)
        self.changes = Changes(self)
        self.model_stats = ModelStats(core.fleet)
        self.schedulers: dict[str, str] = {}  # key -> name, of all that some worker knows; empty: none has said
        self._wakeup = wakeup
        self._context = zmq.Context()
        outbox = settings.outbox_bytes_max
        self.clients = Port(self._context, settings.client_endpoints, self.limits, outbox)
        self.workers = Port(self._context, settings.worker_endpoints, self.limits, outbox)
        self.intake = Intake(self)
        self._workerplane = WorkerPlane(self)
        self._effects = Effects(self)
        self._tokens = itertools.count()
        self._continuations: dict[Hashable, Continuation] = {}
        self._gone: set[Connection] = set()
        self._housekeeping = Housekeeping(self)
        self._next_alive_ms = self.started_ms
        self._stop = self._drained = False
        self._drain_until_ms: int | None = None
        self._stop_from_ms = 0

    # --- the loop ---------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Take in what the store remembers. Before `run`."""
        recovered = self.store.load()
        self.registry.apply(recovered.registry)
        for key in recovered.requests:
            self.intake.remember(key)
        jobs, sessions = jobs_of(recovered), [session_of(row) for row in recovered.sessions]
        self.feed(e.Restore(jobs, sessions))
        if jobs:
            log.info("restored", jobs=len(jobs), sessions=len(sessions))

    def run(self) -> None:
        """Serve until stopped, or drained after `drain`."""
        poller = zmq.Poller()
        for source in (self.clients.socket, self.workers.socket, self._wakeup.fd):
            poller.register(source, zmq.POLLIN)
        while not self._stop:
            ready = {source for source, _ in poller.poll(self._patience_ms())}
            if self._wakeup.fd in ready:
                self._wakeup.clear()
            self._take_completions()
            if self.workers.socket in ready:
                self._drain_port(self.workers, self._workerplane.take)
            if self.clients.socket in ready:
                self._drain_port(self.clients, self._take_request)
            try:
                self._keep_time()
            except Exception:  # a fault of ours in one deadline must not end the server
                log.exception("a deadline could not be handled")
            self._flush()

    def drain(self) -> None:
        """Take no more work, let what runs end, then stop. A second call stops at once. From signal handlers too.

        A service manager and a parent may both send the first signal: a second one within a second is the same.
        """
        now_ms = self.clock.now_ms()
        if self._drain_until_ms is None:
            self._drain_until_ms, self._stop_from_ms = now_ms + self.settings.drain_ms, now_ms + SAME_SIGNAL_MS
        elif now_ms >= self._stop_from_ms:
            self._stop = True
        self._wakeup.wake()

    def stop(self) -> None:
        """Stop at once. From other threads too."""
        self._stop = True
        self._wakeup.wake()

    def close(self) -> None:
        self._flush()
        self.clients.close()
        self.workers.close()
        self._context.term()

    def _patience_ms(self) -> int:
        due_ms = min(self._next_alive_ms, self._housekeeping.due_ms)
        deadline_ms = self.core.next_deadline()
        if deadline_ms is not None:
            due_ms = min(due_ms, deadline_ms)
        return max(0, due_ms - self.clock.now_ms())

    def _flush(self) -> None:
        """Send and write what the turn brought about."""
        self.errands.go_on()
        self._send_posted()
        while self._gone:  # what their loss brings about is of this turn, too
            self.feed(e.ConnectionGone(self._gone.pop()))
            self.errands.go_on()
            self._send_posted()
        self._effects.write_behind()
        self.store.flush()

    def _send_posted(self) -> None:
        self.clients.flush()  # first, for somebody waits there
        self._effects.flush_acks()
        self.workers.flush()

    def _drain_port(self, port: Port, take: Callable[[Received], None]) -> None:
        for _ in range(TURN_MESSAGES_MAX):
            received = port.receive()
            if received is None:
                return
            try:
                take(received)
            except Exception:  # a fault of ours in one message must not end the others
                log.exception("a message could not be handled")

    def _keep_time(self) -> None:
        now_ms = self.clock.now_ms()
        deadline_ms = self.core.next_deadline()
        if deadline_ms is not None and deadline_ms <= now_ms:
            self.feed(e.Tick())
        if now_ms >= self._next_alive_ms:
            self._next_alive_ms = now_ms + self.settings.alive_ms
            for connection in {*self.core.askers.waiting(), *self.changes.waiting()}:
                self.send_client(connection, replies.alive())
            self.errands.give_up_lost()
            self.shadows.give_way()
        if now_ms >= self._housekeeping.due_ms:
            self._housekeeping.run(now_ms)
        if self._drain_until_ms is not None:
            self._drain_on(now_ms, self._drain_until_ms)

    def _drain_on(self, now_ms: int, until_ms: int) -> None:
        if not self.core.draining:
            log.info("draining")
            self.feed(e.Drain())
        if now_ms >= until_ms:
            self._stop = True
        self._next_alive_ms = min(self._next_alive_ms, until_ms)

    # --- continuations ----------------------------------------------------------------------------------------

    def expect(self, continuation: Continuation) -> int:
        """A token for the store or the artifacts; the continuation runs on this thread with its completion."""
        token = next(self._tokens)
        self._continuations[token] = continuation
        return token

    def _take_completions(self) -> None:
        for queue in (self.store.completions, self.artifacts.completions):
            for _ in range(len(queue)):
                completion = queue.popleft()
                try:
                    self._continuations.pop(completion.token)(completion)
                except Exception:
                    log.exception("a completion could not be handled")

    # --- the core ---------------------------------------------------------------------------------------------

    def feed(self, event: e.Event) -> None:
        """Hand an event to the core and carry its commands out. None of them feeds: what comes of it comes later."""
        for command in self.core.handle(self.clock.now_ms(), event):
            self._effects.carry_out(command)

    def all_drained(self) -> None:
        """Nothing runs any more. Clients get a moment to take the last answers: a lost connection may take with it
        what arrived just before (libzmq drops it where ZMQ_IMMEDIATE is set)."""
        if self._drained:
            return
        self._drained = True
        self._drain_until_ms = self.clock.now_ms() + FAREWELL_MS
        self._next_alive_ms = min(self._next_alive_ms, self._drain_until_ms)

    # --- clients ----------------------------------------------------------------------------------------------

    def _take_request(self, received: Received) -> None:
        connection, request_id = received.connection, None
        try:
            header = unpack_header(received.header, self.limits)
            given = header.get("request_id")
            request_id = given if type(given) is str and len(given) <= 64 else None
            request = parse_request(header)
            check_attachments(header, [len(frame) for frame in received.frames], self.limits)
            action = find_action(request.action)
            if action.answered_by == "worker":
                self.intake.submit(connection, TENANT, request, action, received.frames)
            else:
                ask = Ask(connection, TENANT, request, validate(action.data, request.data), received.frames)
                data = HANDLERS[action.name](self, ask)
                if data is not None:
                    self.answer(ask, data)
        except AtelierError as error:
            self.reject(connection, request_id, error)
        except Exception:
            log.exception("a request could not be handled", request_id=request_id)
            self.reject(connection, request_id, InternalError())

    def reject(self, connection: Connection, request_id: str | None, error: AtelierError) -> None:
        if self.traces:
            log.debug("rejected", request_id=request_id, code=error.code.value)
        self.send_client(connection, replies.failure(request_id, error.to_wire()))

    def answer(self, ask: Ask, data: dict[str, Any]) -> None:
        self.send_client(ask.connection, replies.success(ask.request_id, data))

    def send_client(
        self, connection: Connection, header: dict[str, Any], frames: Any = (), *, droppable: bool = False
    ) -> None:
        """Send if it can be; a result that cannot stays under `job.result`, a vanished client is noted."""
        if type(connection) is Asker:
            self.errands.answered(connection, header, frames)
            return

        def failed(sent: Sent) -> None:
            if sent is Sent.GONE:
                self._gone.add(connection)
            elif not droppable:
                log.warning("a client is too far behind; its answer was not sent", request_id=header.get("request_id"))

        self.clients.post(connection, header, frames, droppable, failed)
