"""`model.*` that only tells."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.clock import rfc3339
from orchestrator.registry.state import NO_TRAFFIC, Model, Version
from orchestrator.store import ChangeRow, queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error
from protocol.codec import pack, unpack
from protocol.limits import KIB
from protocol.model_ids import by_age, model_id_of, split
from protocol.schemas import ACTIONS

if TYPE_CHECKING:
    from orchestrator.broker import Broker

PICTURES = "inference.text2img"
PAGE_BYTES_MAX = 512 * KIB  # of a list's entries: an answer's header has a limit


def page(entries: Iterable[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], bool]:
    """As many as one answer holds, at least one, and whether there are more."""
    taken: list[dict[str, Any]] = []
    nbytes = 0
    for entry in entries:
        nbytes += len(pack(entry))
        if len(taken) >= limit or (taken and nbytes > PAGE_BYTES_MAX):
            return taken, True
        taken.append(entry)
    return taken, False


def list_models(broker: "Broker", ask: Ask) -> dict[str, Any]:
    found = {entry["model_id"]: entry for entry in broker.offers.listed()}
    for model in broker.registry.of_tenant(ask.tenant):
        for version in model.versions.values():
            model_id = model_id_of(model.name, version.version)
            registered = {"model_id": model_id, "content_hash": version.content_hash, "nbytes": None}
            found.setdefault(model_id, {**registered, "family": None, "actions": [], "workers": [], "resident_on": []})
    wanted = sorted(model_id for model_id in found if ask.data.name in (None, split(model_id)[0]))
    wanted = wanted[bisect_right(wanted, ask.data.after or "") :]
    models, more = page(
        ({**found[model_id], **_names(broker, ask.tenant, model_id)} for model_id in wanted), ask.data.limit
    )
    asked = [action.name for action in ACTIONS.values() if "model_id" in action.data.model_fields]
    by_action = {name: broker.offers.default(name) for name in asked}
    return {
        "models": models,
        "more": more,
        "default_model_id": by_action[PICTURES],
        "default_model_ids": {name: model_id for name, model_id in by_action.items() if model_id is not None},
    }


def _names(broker: "Broker", tenant: str, model_id: str) -> dict[str, Any]:
    name, version = split(model_id)
    model = broker.registry.get(tenant, name)
    registered = model is not None and version in model.versions
    aliases = model.aliases_of(version) if model is not None and version is not None else []
    return {"name": name, "version": version, "aliases": aliases, "registered": registered}


def info(broker: "Broker", ask: Ask) -> dict[str, Any]:
    model_id = broker.resolver.resolve(ask.tenant, ask.data.model_id).model_id
    name, version = split(model_id)
    model = broker.registry.get(ask.tenant, name) or Model(name)
    offered = next((entry for entry in broker.offers.listed() if entry["model_id"] == model_id), {})
    shadow = broker.shadows.stats(ask.tenant, model_id)
    registered, known = model.versions.get(version or ""), model.known(version)
    return {
        "model_id": model_id,
        **_names(broker, ask.tenant, model_id),
        "versions": sorted(broker.resolver.versions(ask.tenant, name), key=by_age, reverse=True),
        "metadata": {**model.metadata, **(known.metadata if known is not None else {})},
        "traffic": None if model.traffic is NO_TRAFFIC else {"name": name, **model.traffic.told()},
        "shadow": None if shadow is None else shadow.told(version or ""),
        **{field: offered.get(field) for field in ("family", "content_hash", "nbytes")},
        **{field: offered.get(field) or [] for field in ("actions", "workers", "resident_on")},
        **(registered_facts(registered) if registered is not None else {}),
        **broker.model_stats.info(model_id),
    }


def registered_facts(version: Version) -> dict[str, Any]:
    """What the registry knows of a version."""
    return {
        "created_at": rfc3339(version.created_ms),
        "source": version.source,
        "content_hash": version.content_hash,
        "nbytes": version.nbytes,
        "run_id": version.run_id,
        "metrics": version.metrics,
        "tags": version.tags,
    }


def status(broker: "Broker", ask: Ask) -> dict[str, Any]:
    wanted = _wanted(broker, ask.tenant, ask.data.model_id)
    workers = []
    for worker_id, worker in sorted(broker.core.fleet.by_id.items()):
        entries = broker.offers.of_worker(worker_id)
        models = [
            {
                "model_id": model_id,
                "resident": model_id in worker.profile.resident,
                "kept": entries[model_id].get("kept"),
                "loading": (worker_id, model_id) in broker.changes.loading,
                "problem": entries[model_id].get("problem"),
            }
            for model_id in sorted(entries)
            if wanted is None or model_id in wanted
        ]
        told = {"device_id": worker.device_id, "device_kind": worker.profile.device_kind}
        workers.append({"worker_id": worker_id, **told, "models": models})
    told_of, more = page(workers, len(workers))
    return {"workers": told_of, "more": more}


def _wanted(broker: "Broker", tenant: str, text: str | None) -> set[str] | None:
    """The ids that are asked for: all versions of what names none. None: all."""
    if text is None:
        return None
    versions = broker.resolver.versions(tenant, text)
    if versions:
        return {model_id_of(text, version) for version in versions}
    return {broker.resolver.resolve(tenant, text).model_id}


def get_metadata(broker: "Broker", ask: Ask) -> dict[str, Any]:
    name, version = ask.data.name, ask.data.version
    broker.resolver.check(ask.tenant, name, version)
    model = broker.registry.get(ask.tenant, name) or Model(name)
    known = model if version is None else model.known(version)
    revision, fields = (known.revision, known.metadata) if known is not None else (0, {})
    return {"name": name, "version": version, "revision": revision, "metadata": fields}


def history(broker: "Broker", ask: Ask) -> None:
    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
        else:
            changes, more = page(_changes(completion.value), data.limit)
            broker.answer(ask, {"changes": changes, "more": more})

    data = ask.data
    query = queries.model_changes_of(ask.tenant, data.name, data.limit + 1, data.before)
    broker.store.read(query, broker.expect(read))


def _changes(rows: Iterable[ChangeRow]) -> Iterator[dict[str, Any]]:
    return (
        {
            "change_id": row.change_id,
            "at": rfc3339(row.at_ms),
            "kind": row.kind,
            "subject": row.subject,
            "tenant": row.tenant,
            "author": row.author,
            "before": unpack(row.before),
            "after": unpack(row.after),
        }
        for row in rows
    )


HANDLERS = {
    "model.list": list_models,
    "model.info": info,
    "model.status": status,
    "model.get_metadata": get_metadata,
    "model.history": history,
}
