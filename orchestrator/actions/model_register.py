"""`model.register`: a worker fetches and checks the files of a version, then the registry gets its row.

Nothing is half registered: the row is written when the files are in place, and a fetch that fails leaves none.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orchestrator.actions.ask import Ask
from orchestrator.actions.model_changes import changed, check_room, version_told
from orchestrator.core import events as e
from orchestrator.errands import Ended
from orchestrator.payload import Payload
from orchestrator.registry.aliases import Move
from orchestrator.registry.change import Change
from orchestrator.registry.offers import with_names
from orchestrator.registry.state import Version, model_row, version_row
from orchestrator.store import ArtifactRow, RegistryRow, queries
from protocol.errors import InternalError, InvalidRequest, NotFound, PayloadTooLarge, RequestConflict
from protocol.limits import NAME_LENGTH_MAX
from protocol.model_ids import model_id_of
from protocol.schemas.artifact import ArtifactRef
from protocol.schemas.model import FetchResult, MetadataFields
from protocol.schemas.values import byte_refs, check_references, put_at

if TYPE_CHECKING:
    from orchestrator.broker import Broker

FETCH = "model.fetch"
FETCH_MS_MAX = 6 * 3600 * 1000  # models are large, and networks slow


def register(broker: "Broker", ask: Ask) -> None:
    change = broker.changes.open(ask)
    if change is not None:
        change.guard(Registration(broker, change).start)


class Registration:
    """One registration under way. Others of the same model go on beside it, but for the same version."""

    def __init__(self, broker: "Broker", change: Change) -> None:
        self._broker = broker
        self._change = change
        self._data = change.ask.data
        self._version = ""
        self._nbytes = 0  # of the attachments that are held

    def start(self) -> None:
        """Raises RequestConflict for a version that is there, or on its way, and InvalidRequest for an id too long."""
        change, name = self._change, self._data.name
        check_room(self._broker, change.tenant, name)
        self._version = self._data.version or self._next_version()
        if len(model_id_of(name, self._version)) > NAME_LENGTH_MAX:
            raise InvalidRequest(f"A name and its version may have {NAME_LENGTH_MAX - 1} characters together.")
        model = self._broker.registry.get(change.tenant, name)
        if model is not None and self._version in model.versions:
            raise RequestConflict("This version is registered already; a version never changes.")
        if not self._broker.changes.reserve(change.tenant, name, self._version):
            raise RequestConflict("Another request is registering this version.")
        change.finally_(partial(self._broker.changes.give_back, change.tenant, name, self._version))
        check_references(self._data.source, len(change.ask.frames))
        stored = [ref.artifact_id for _, ref in byte_refs(self._data.source) if isinstance(ref, ArtifactRef)]
        if stored:
            self._fetch_stored(list(dict.fromkeys(stored)))
        else:
            entries = [entry.to_wire() for entry in change.ask.request.attachments]
            self._fetch(self._source(), entries, change.ask.frames)

    def _next_version(self) -> str:
        name, tenant = self._data.name, self._change.tenant
        taken = [*self._broker.resolver.versions(tenant, name), *self._broker.changes.reserved(tenant, name)]
        return str(1 + max((int(version) for version in taken if version.isdecimal()), default=0))

    def _source(self) -> dict[str, Any]:
        return self._data.source.model_dump(exclude_none=True)

    def _fetch_stored(self, artifact_ids: Sequence[str]) -> None:
        """Read the artifacts that are its files, as the worker wants them: as attachments."""
        change = self._change

        def found(rows: list[ArtifactRow | None]) -> None:
            there = [row for row in rows if row is not None]
            if len(there) < len(rows):
                raise NotFound("There is no artifact of an id that the source names; it may have been cleaned.")
            limits, nbytes = self._broker.limits, sum(row.nbytes for row in there)
            if nbytes > limits.attachment_bytes_max or len(there) + len(change.ask.frames) > limits.attachments_max:
                raise PayloadTooLarge("The files of this model are too many or too large to be sent; use a url.")
            self._broker.intake.hold(nbytes)
            change.finally_(partial(self._broker.intake.let_go, nbytes))
            change.get_artifacts(artifact_ids, partial(self._attach, there))

        queried = [queries.artifact_by_id(change.tenant, artifact_id) for artifact_id in artifact_ids]
        change.read(lambda connection: [query(connection) for query in queried], found)

    def _attach(self, rows: list[ArtifactRow], frames: list[bytes]) -> None:
        """Let the source name attachments in place of artifacts."""
        ask, source = self._change.ask, self._source()
        places = {row.artifact_id: len(ask.frames) + index for index, row in enumerate(rows)}
        for path, ref in byte_refs(self._data.source):
            if isinstance(ref, ArtifactRef):
                put_at(source, path, {"attachment": places[ref.artifact_id]})
        entries = [entry.to_wire() for entry in ask.request.attachments]
        entries += [{"media_type": row.media_type, "nbytes": row.nbytes} for row in rows]
        self._fetch(source, entries, [*ask.frames, *frames])

    def _fetch(self, source: dict[str, Any], entries: list[dict[str, Any]], frames: Sequence[Any]) -> None:
        data = {"name": self._data.name, "version": self._version, "source": source}
        payload = Payload(FETCH, data, entries, frames)
        worker_id = self._change.ask.request.worker_id
        self._change.run(payload, self._fetched, worker_id=worker_id, deadline_ms=FETCH_MS_MAX)

    def _fetched(self, ended: Ended) -> None:
        if ended.error is not None:
            raise ended.exception()
        try:
            result = FetchResult.model_validate(ended.data)
        except ValidationError:
            raise InternalError("The worker's account of the fetched files cannot be read.") from None
        self._change.take_turn(self._data.name, lambda: self._write(result, ended.worker_id))

    def _came_to(self, worker_id: str | None, result: FetchResult) -> None:
        """It can be asked for at once: the worker notices a new model only after a while."""
        if worker_id is None or worker_id not in self._broker.core.fleet.by_id:
            return
        model_id = model_id_of(self._data.name, self._version)
        told = {"model_id": model_id, "content_hash": result.content_hash, "family": result.metadata.get("family")}
        self._broker.offers.came(worker_id, told)
        self._broker.feed(e.ModelCame(worker_id, frozenset(with_names([model_id]))))

    def _write(self, result: FetchResult, worker_id: str | None) -> None:
        change, data = self._change, self._data
        model = check_room(self._broker, change.tenant, data.name, self._version)
        noted = model.noted.get(self._version)
        facts = {**_known_fields(result.metadata), **(noted.metadata if noted is not None else {})}
        version = Version(
            version=self._version,
            created_ms=self._broker.clock.now_ms(),
            source=_without_bytes(self._source()),
            content_hash=result.content_hash,
            nbytes=result.nbytes,
            run_id=result.run_id,
            metrics=result.metrics,
            tags=result.tags,
            revision=noted.revision + 1 if noted is not None else 0,
            metadata=changed(facts, data.metadata),
        )
        told = version_told(model, version)
        line = change.line("register", data.name, self._version, None, told)
        rows: list[RegistryRow] = [version_row(change.tenant, data.name, version), line]
        if self._broker.registry.get(change.tenant, data.name) is None:
            rows.insert(0, model_row(change.tenant, model))

        def written() -> None:
            self._came_to(worker_id, result)
            self._point({**told, "warnings": result.warnings})

        change.commit(rows, written)

    def _point(self, told: dict[str, Any]) -> None:
        """It is registered; the alias, where one is asked for, comes last."""
        change, alias = self._change, self._data.alias
        if alias is None:
            change.answer(told)
            return

        def moved(before: str | None, loaded_on: list[str]) -> None:
            change.answer({**told, "aliases": [*told["aliases"], alias]})

        Move(self._broker, change, self._data.name, alias, self._version, moved).start()


def _without_bytes(source: dict[str, Any]) -> dict[str, Any]:
    files = source.get("files")
    return source if files is None else {"files": [{"path": file["path"]} for file in files]}


def _known_fields(told: dict[str, Any]) -> dict[str, Any]:
    """What a worker says of the files, as far as it is metadata."""
    known: dict[str, Any] = {}
    for name in MetadataFields.model_fields.keys() & told.keys():
        with suppress(ValidationError):
            known |= MetadataFields.model_validate({name: told[name]}).model_dump(exclude_none=True)
    return known


HANDLERS = {"model.register": register}
