"""Changes of the registry: one at a time for each model, each once however often it is asked for."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from orchestrator.errands import Ended
from orchestrator.payload import Payload
from orchestrator.ports import Connection
from orchestrator.store import ChangeRow, RegistryRow
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error
from protocol.codec import pack
from protocol.errors import AtelierError, InternalError, QueueFull, RequestConflict
from protocol.ids import new_id
from protocol.limits import PRIORITY_DEFAULT

if TYPE_CHECKING:
    from orchestrator.actions.ask import Ask
    from orchestrator.broker import Broker

WAITING_MAX = 64  # changes of one model that wait for another
DONE_MAX = 1000  # answers that are kept for a client that asks again

Asked = tuple[str, Any]  # action and data

log = structlog.get_logger("orchestrator")


class Changes:
    """Those under way, and the answers of the latest that have ended."""

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._open: dict[tuple[str, str], Change] = {}  # by tenant and request_id
        self._done: dict[tuple[str, str], tuple[Asked, dict[str, Any] | AtelierError]] = {}
        self.loading: set[tuple[str, str]] = set()  # (worker_id, model_id) that a change waits for
        self._reserved: set[tuple[str, str, str]] = set()
        self._turns: dict[tuple[str, str], deque[tuple[Change, Callable[[], None]]]] = {}  # by tenant and model

    def open(self, ask: "Ask") -> "Change | None":
        """A new change; None where the same request is under way or done, and so has or gets its answer.

        A client whose connection was lost asks again under the same request_id. Raises RequestConflict for another
        request under it, and the error of one that was done in part.
        """
        key = ask.tenant, ask.request_id
        known, done = self._open.get(key), self._done.get(key)
        before = known.asked if known is not None else done[0] if done is not None else None
        if before is not None and before != (ask.request.action, ask.data):
            raise RequestConflict
        if known is not None:
            known.asks[ask.connection] = ask._replace(frames=[])  # the change has them
            return None
        if done is not None:
            if isinstance(done[1], AtelierError):
                raise done[1]
            self._broker.answer(ask, done[1])
            return None
        change = self._open[key] = Change(self._broker, self, ask)
        return change

    def waiting(self) -> Iterator[Connection]:
        """Connections that wait for the end of a change and can be told that the server is alive."""
        for change in self._open.values():
            yield from (connection for connection in change.asks if not connection.is_req)

    def reserve(self, tenant: str, name: str, version: str) -> bool:
        """Keep others from registering this version meanwhile; False where another does."""
        key = tenant, name, version
        if key in self._reserved:
            return False
        self._reserved.add(key)
        return True

    def reserved(self, tenant: str, name: str) -> list[str]:
        """Versions of a model that are on their way into the registry."""
        return [version for owner, model, version in self._reserved if (owner, model) == (tenant, name)]

    def give_back(self, tenant: str, name: str, version: str) -> None:
        self._reserved.discard((tenant, name, version))

    def take_turn(self, change: "Change", name: str, start: Callable[[], None]) -> None:
        """Call `start` when no other change of this model is under way. Raises QueueFull."""
        key = change.tenant, name
        waiting = self._turns.get(key)
        if waiting is None:
            self._turns[key] = deque()
            change.turn = key
            change.guard(start)
        elif len(waiting) >= WAITING_MAX:
            raise QueueFull("Too many changes of this model are under way.", retry_after_ms=1000)
        else:
            waiting.append((change, start))

    def ended(self, change: "Change", answer: dict[str, Any] | AtelierError | None) -> None:
        """`answer` None: it was refused with nothing done, and may be asked for again."""
        key = change.tenant, change.ask.request_id
        del self._open[key]
        if answer is not None:
            self._done[key] = change.asked, answer
            if len(self._done) > DONE_MAX:
                del self._done[next(iter(self._done))]
        if change.turn is not None:
            self._next(change.turn)

    def _next(self, key: tuple[str, str]) -> None:
        waiting = self._turns[key]
        if not waiting:
            del self._turns[key]
            return
        change, start = waiting.popleft()
        change.turn = key
        change.guard(start)


class Change:
    """One request that changes the registry. It ends once, by `commit`, `answer` or `refuse`."""

    def __init__(self, broker: "Broker", changes: Changes, ask: "Ask") -> None:
        self._broker = broker
        self._changes = changes
        self.ask = ask
        self.asks = {ask.connection: ask}  # all who want the answer
        self.turn: tuple[str, str] | None = None  # the model that no other may change meanwhile
        self.over = False
        self._written = False  # something of it is on disk
        self._last: list[Callable[[], None]] = []

    @property
    def tenant(self) -> str:
        return self.ask.tenant

    @property
    def asked(self) -> Asked:
        return self.ask.request.action, self.ask.data

    def take_turn(self, name: str, start: Callable[[], None]) -> None:
        """Go on with `start` when no other change of this model is under way. Raises QueueFull."""
        self._changes.take_turn(self, name, start)

    def guard(self, step: Callable[[], None]) -> None:
        """Do a step of it, unless it is over; what it raises refuses the change."""
        if self.over:
            return
        try:
            step()
        except AtelierError as error:
            self.refuse(error)
        except Exception:
            log.exception("a change of a model could not go on", request_id=self.ask.request_id)
            self.refuse(InternalError())

    def read(self, query: Callable[..., Any], found: Callable[[Any], None]) -> None:
        """Ask the store, and go on with what it finds."""
        self._broker.store.read(query, self._broker.expect(lambda completion: self._completed(completion, found)))

    def get_artifacts(self, artifact_ids: Sequence[str], found: Callable[[Any], None]) -> None:
        """Read their bytes, and go on."""
        token = self._broker.expect(lambda completion: self._completed(completion, found))
        self._broker.artifacts.get(artifact_ids, token)

    def finally_(self, last: Callable[[], None]) -> None:
        """To be done when it ends, however it does."""
        self._last.append(last)

    def run(self, payload: Payload, ended: Callable[[Ended], None], **options: Any) -> None:
        """Run an errand, and go on when it has ended. `options` as `Errands.run` has them. Raises QueueFull."""

        def go_on(end: Ended) -> None:
            self.guard(lambda: ended(end))

        self._broker.errands.run(self.tenant, payload, go_on, priority=PRIORITY_DEFAULT, **options)

    def line(self, kind: str, name: str, subject: str | None, before: Any, after: Any) -> ChangeRow:
        """The line of the model's history that goes with this change."""
        now_ms, author = self._broker.clock.now_ms(), self.ask.data.author
        return ChangeRow(self.tenant, name, new_id(), now_ms, kind, subject, author, pack(before), pack(after))

    def commit(self, rows: Sequence[RegistryRow], then: Callable[[], None]) -> None:
        """Write the rows, take them in when they are on disk, and go on."""

        def written(_: Any) -> None:
            self._broker.registry.apply(rows)
            self._written = True
            then()

        self._broker.store.write(rows, self._broker.expect(lambda completion: self._completed(completion, written)))

    def answer(self, data: dict[str, Any]) -> None:
        for ask in self.asks.values():
            self._broker.answer(ask, data)
        self._end(data)

    def refuse(self, error: AtelierError) -> None:
        for ask in self.asks.values():
            self._broker.reject(ask.connection, ask.request_id, error)
        self._end(error if self._written else None)

    def _end(self, answer: dict[str, Any] | AtelierError | None) -> None:
        self.over = True
        for last in self._last:
            last()
        self._changes.ended(self, answer)

    def _completed(self, completion: Completion, then: Callable[[Any], None]) -> None:
        if completion.error is not None:
            self.refuse(disk_error(completion.error))
        else:
            self.guard(lambda: then(completion.value))
