"""`model.*` that changes the registry; answered when the change is on disk."""

from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.actions.model import registered_facts
from orchestrator.registry.aliases import Move, version_before
from orchestrator.registry.change import Change
from orchestrator.registry.state import MODELS_MAX, VERSIONS_MAX, Model, Traffic, Version, model_row, version_row
from orchestrator.store import ChangeRow, RegistryRow, TrafficRow, queries
from protocol.codec import pack, unpack
from protocol.errors import InvalidRequest, ModelNotFound, RequestConflict, Unavailable
from protocol.model_ids import Reference, model_id_of, parse
from protocol.schemas.model import MetadataFields

if TYPE_CHECKING:
    from orchestrator.broker import Broker

MOVES_MAX = 10_000  # of an alias that a roll-back looks through


def change_of(broker: "Broker", ask: Ask, start: Any) -> None:
    """Do `start(broker, change)` when no other change of the model is under way."""
    change = broker.changes.open(ask)
    if change is not None:
        change.guard(lambda: change.take_turn(ask.data.name, lambda: start(broker, change)))


def check_room(broker: "Broker", tenant: str, name: str, version: str | None = None) -> Model:
    """The model, as it is or a new one. Raises Unavailable where there are too many."""
    model = broker.registry.get(tenant, name)
    if model is None:
        if len(broker.registry.models) >= MODELS_MAX:
            raise Unavailable(f"The registry holds {MODELS_MAX} models; that is all it may.")
        return Model(name, created_ms=broker.clock.now_ms())
    full = len(model.versions) + len(model.noted) >= VERSIONS_MAX
    if version is not None and full and model.known(version) is None:
        raise Unavailable(f"A model may have {VERSIONS_MAX} versions; take one out first.")
    return model


def set_alias(broker: "Broker", change: Change) -> None:
    data = change.ask.data
    Move(broker, change, data.name, data.alias, data.version, partial(_moved, change, data.version)).start()


def _moved(change: Change, version: str | None, before: str | None, loaded_on: list[str]) -> None:
    data = change.ask.data
    told = {"name": data.name, "alias": data.alias, "version": version, "before": before}
    change.answer({**told, "loaded_on": loaded_on})


def rollback(broker: "Broker", change: Change) -> None:
    data = change.ask.data

    def found(rows: list[ChangeRow]) -> None:
        moves = [(row.kind, unpack(row.before), unpack(row.after)) for row in reversed(rows)]
        version = version_before(moves)
        Move(broker, change, data.name, data.alias, version, partial(_moved, change, version), "rollback").start()

    broker.resolver.check(change.tenant, data.name)
    change.read(queries.model_changes_of(change.tenant, data.name, MOVES_MAX, subject=data.alias), found)


def set_traffic(broker: "Broker", change: Change) -> None:
    data, tenant = change.ask.data, change.tenant
    broker.resolver.check(tenant, data.name)
    for version in [split.version for split in data.splits] + ([data.shadow.version] if data.shadow else []):
        broker.resolver.check(tenant, data.name, version)
    for index, text in enumerate(data.fallbacks):
        _check_fallback(broker, tenant, text, index)
    model = check_room(broker, tenant, data.name)
    told = {name: data.model_dump()[name] for name in ("splits", "shadow", "fallbacks", "policy")}
    traffic = Traffic.of(told)
    line = change.line("traffic", data.name, None, model.traffic.told(), traffic.told())
    rows: list[RegistryRow] = [TrafficRow(tenant, data.name, pack(traffic.told())), line]
    change.commit(rows, lambda: change.answer({"name": data.name, **traffic.told()}))


def _check_fallback(broker: "Broker", tenant: str, text: str, index: int) -> None:
    """A chain that names what is not there is a mistake now; later it may go away."""
    try:
        if parse(text) is None:
            raise ModelNotFound("No model can be called so.")
        broker.resolver.resolve(tenant, text)
    except ModelNotFound as error:
        field = {"field": f"fallbacks.{index}", "problem": error.message, "nearest": error.details.get("nearest")}
        raise InvalidRequest(f"fallbacks.{index}: {error.message}", details={"fields": [field]}) from None


def put_metadata(broker: "Broker", change: Change) -> None:
    data, tenant = change.ask.data, change.tenant
    broker.resolver.check(tenant, data.name, data.version)
    model = check_room(broker, tenant, data.name, data.version)
    now_ms = broker.clock.now_ms()
    known = model.known(data.version) if data.version is not None else model
    before, revision = (known.metadata, known.revision) if known is not None else ({}, 0)
    if data.revision is not None and data.revision != revision:
        message = f"It was changed meanwhile: its revision is {revision}. Read it again."
        raise RequestConflict(message, details={"revision": revision})
    after, revision = changed(before, data.metadata), revision + 1
    if data.version is None:
        row: Any = model_row(tenant, Model(data.name, revision, after, model.created_ms or now_ms))
    else:
        kept = model.known(data.version) or Version(data.version, now_ms, {})
        row = version_row(tenant, data.name, kept)._replace(revision=revision, metadata=pack(after))
    line = change.line("metadata", data.name, data.version, before, after)
    told = {"name": data.name, "version": data.version, "revision": revision, "metadata": after}
    change.commit([row, line], lambda: change.answer(told))


def changed(before: dict[str, Any], fields: MetadataFields) -> dict[str, Any]:
    """Metadata with the fields that were given in place of those before; null takes one away."""
    given = fields.model_dump(include=fields.model_fields_set)
    return {name: value for name, value in {**before, **given}.items() if value is not None}


def delete_version(broker: "Broker", change: Change) -> None:
    data, tenant = change.ask.data, change.tenant
    model = broker.registry.get(tenant, data.name)
    version = model.versions.get(data.version) if model is not None else None
    if model is None or version is None:
        known = sorted(model.versions) if model is not None else []
        raise ModelNotFound("This version is not registered.", details={"known": known})
    aliases = model.aliases_of(data.version)
    users = [f"alias {alias}" for alias in aliases]
    users += ["its traffic"] if model.traffic.names(data.version) else []
    model_id = Reference(data.name, data.version)
    chains = [other for other in broker.registry.of_tenant(tenant) if model_id in map(parse, other.traffic.fallbacks)]
    users += [f"the fallbacks of {other.name}" for other in chains]
    if users:
        names = ", ".join(users)
        raise RequestConflict(f"The version is in use by {names}; move that first.", details={"aliases": aliases})
    told = version_told(model, version)
    row = version_row(tenant, data.name, version, deleted_ms=broker.clock.now_ms())
    line = change.line("delete_version", data.name, data.version, told, None)
    change.commit([row, line], lambda: change.answer(told))


def version_told(model: Model, version: Version) -> dict[str, Any]:
    """As `VersionInfo` of the wire."""
    names = {"name": model.name, "version": version.version, "model_id": model_id_of(model.name, version.version)}
    return {**names, **registered_facts(version), "aliases": model.aliases_of(version.version)}


HANDLERS = {
    "model.set_alias": lambda broker, ask: change_of(broker, ask, set_alias),
    "model.rollback": lambda broker, ask: change_of(broker, ask, rollback),
    "model.set_traffic": lambda broker, ask: change_of(broker, ask, set_traffic),
    "model.put_metadata": lambda broker, ask: change_of(broker, ask, put_metadata),
    "model.delete_version": lambda broker, ask: change_of(broker, ask, delete_version),
}
