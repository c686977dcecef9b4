"""Moving an alias: the workers that have the version before loaded load the new one first."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.core.fleet import Worker
from orchestrator.errands import Ended
from orchestrator.payload import Payload
from orchestrator.registry.change import Change
from orchestrator.registry.state import ALIASES_MAX, Model
from orchestrator.store import AliasRow, ChangeRow, RegistryRow
from protocol.enums import ErrorCode
from protocol.errors import AtelierError, NotFound, QueueFull, Unavailable
from protocol.limits import PRIORITY_DEFAULT
from protocol.model_ids import model_id_of, split
from protocol.schemas.model import DEFAULT_ALIAS

if TYPE_CHECKING:
    from orchestrator.broker import Broker

LOAD, UNLOAD = "model.load", "model.unload"
LOAD_MS_MAX, UNLOAD_MS_MAX = 600_000, 60_000
NOT_THERE = frozenset({ErrorCode.MODEL_NOT_FOUND.value, ErrorCode.UNKNOWN_ACTION.value})  # that worker need not load it


class Move:
    """One move of an alias, as part of a change whose turn it is. `then` is called with the workers that loaded the
    version when the alias points to it; what keeps it from that refuses the change."""

    def __init__(
        self,
        broker: "Broker",
        change: Change,
        name: str,
        alias: str,
        version: str | None,
        then: Callable[[str | None, list[str]], None],
        kind: str = "alias",
    ) -> None:
        self._broker = broker
        self._change = change
        self._name, self._alias, self._version = name, alias, version
        self._then = then
        self._kind = kind
        self._model = broker.registry.get(change.tenant, name) or Model(name)
        self._before = self._model.aliases.get(alias)
        self._open: set[str] = set()  # workers that load it
        self._loaded: list[str] = []
        self._keepers: list[str] = []  # of these, those that keep the version before, whatever else they need room for
        self._failure: AtelierError | None = None

    def start(self) -> None:
        """Raises ModelNotFound, NotFound or Unavailable."""
        if self._version is None and self._before is None:
            raise NotFound("This model has no such alias.", details={"known": sorted(self._model.aliases)})
        if self._version is not None:
            self._broker.resolver.check(self._change.tenant, self._name, self._version)
        if self._before is None and len(self._model.aliases) >= ALIASES_MAX:
            raise Unavailable(f"A model may have {ALIASES_MAX} aliases; take one away first.")
        if self._version == self._before:
            self._then(self._before, [])
            return
        for worker in self._to_load():
            self._load(worker)
        if not self._open:
            self._write()

    def _to_load(self) -> Sequence[Worker]:
        """Workers that answer by the version before, and can be told to load another."""
        if self._version is None or (old := self._served()) is None:
            return []
        workers = self._broker.core.fleet.by_id.values()
        stay = [worker for worker in workers if not worker.draining]
        return [w for w in stay if old in w.profile.resident and LOAD in w.profile.capability.actions]

    def _served(self) -> str | None:
        """The id of what the alias stood for until now; None: nothing."""
        before = self._before
        if before is None and self._alias == DEFAULT_ALIAS:
            before = self._broker.offers.newest(self._name)  # for which the name alone stood
        return None if before is None else model_id_of(self._name, before)

    def _load(self, worker: Worker) -> None:
        """What is kept loaded of the version before is kept of the new one."""
        model_id, worker_id = model_id_of(self._name, self._version), worker.worker_id
        kept = bool(self._broker.offers.of_worker(worker_id).get(self._served() or "", {}).get("kept"))
        payload = Payload(LOAD, {"model_id": model_id, "keep": kept})
        ended = partial(self._loaded_on, worker_id, kept)
        self._change.run(payload, ended, worker_id=worker_id, deadline_ms=LOAD_MS_MAX, any_model=True)
        self._open.add(worker_id)
        self._broker.changes.loading.add((worker_id, model_id))
        self._change.finally_(partial(self._broker.changes.loading.discard, (worker_id, model_id)))

    def _loaded_on(self, worker_id: str, kept: bool, ended: Ended) -> None:
        self._open.discard(worker_id)
        gone = ended.failed_as == ErrorCode.WORKER_LOST or worker_id not in self._broker.core.fleet.by_id
        if ended.error is None:
            self._loaded.append(worker_id)
            self._keepers += [worker_id] if kept else []
        elif ended.failed_as not in NOT_THERE and not gone and self._failure is None:
            error = ended.exception()
            message = f"The alias stays: {worker_id} could not load {self._name}:{self._version}. {error.message}"
            details = {**error.details, "worker_id": worker_id}
            self._failure = type(error)(message, details=details, retry_after_ms=error.retry_after_ms)
        if self._open:
            return
        if self._failure is not None:
            raise self._failure
        self._write()

    def _write(self) -> None:
        row = AliasRow(self._change.tenant, self._name, self._alias, self._version)
        line: ChangeRow = self._change.line(self._kind, self._name, self._alias, self._before, self._version)
        old = self._served()
        rows: list[RegistryRow] = [row, line]
        self._change.commit(rows, partial(self._moved, old))

    def _moved(self, old: str | None) -> None:
        """Let go of what was kept for the alias alone, and say where it leads now."""
        model = self._broker.registry.get(self._change.tenant, self._name)
        if old is not None and model is not None and not model.points_to(split(old)[1] or ""):
            for worker_id in self._keepers:
                self._unload(old, worker_id)
        self._then(self._before, sorted(self._loaded))

    def _unload(self, model_id: str, worker_id: str) -> None:
        """Whether it can or not: the alias has moved."""
        with suppress(QueueFull):
            self._broker.errands.run(
                self._change.tenant,
                Payload(UNLOAD, {"model_id": model_id}),
                lambda _: None,
                worker_id=worker_id,
                deadline_ms=UNLOAD_MS_MAX,
                priority=PRIORITY_DEFAULT,
            )


def version_before(history: Sequence[tuple[str, str | None, str | None]]) -> str | None:
    """Where a roll-back of an alias leads. `history`: (kind, before, after) of its moves, the oldest first.

    Roll-backs undo one move each, so the next one leads a step further back. Raises NotFound where nothing is left.
    """
    past: list[str | None] = []
    for kind, before, after in history:
        if not past:
            past.append(before)
        if kind == "rollback" and len(past) > 1:
            past.pop()
        else:
            past.append(after)
    if len(past) < 2 or past[-2] is None:
        raise NotFound("This alias has not pointed to another version before.")
    return past[-2]
