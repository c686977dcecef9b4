"""From what a request calls a model to what workers offer."""

from collections.abc import Iterable
from typing import NamedTuple

import structlog

from orchestrator.registry.offers import Offers
from orchestrator.registry.state import NO_TRAFFIC, Model, Registry, Traffic
from orchestrator.registry.traffic import fraction_of, pick
from protocol.errors import ModelNotFound
from protocol.model_ids import Reference, model_id_of, parse
from protocol.schemas.base import nearest
from protocol.schemas.model import DEFAULT_ALIAS

KNOWN_SHOWN = 20  # names in an error's details
STAGES_TOLD_MAX = 1000

log = structlog.get_logger("orchestrator")


class Resolved(NamedTuple):
    """A model's id, as workers offer it, and the traffic that led there."""

    model_id: str
    traffic: Traffic = NO_TRAFFIC
    shadow: str | None = None  # the id of the version that gets a copy


class Resolver:
    """Reads the registry and the offers, and changes neither."""

    def __init__(self, registry: Registry, offers: Offers) -> None:
        self._registry = registry
        self._offers = offers
        self._stages_told: set[tuple[str, str]] = set()

    def is_as_it_is(self, tenant: str, text: str) -> bool:
        """Is this the id of a model that comes in no versions, and of which the registry knows nothing?"""
        return text in self._offers and (tenant, text) not in self._registry.models and ":" not in text

    def resolve(self, tenant: str, text: str, *, certain: bool = True) -> Resolved:
        """Without regard to traffic: the version that is named; else that of the alias `default`; else the newest.

        Raises ModelNotFound with the nearest names. `certain`: no other worker is still on its way, so what is neither
        offered nor registered is not there.
        """
        reference = self._read(text)
        model = self._registry.get(tenant, reference.name)
        version = self._version(reference, model)
        model_id = model_id_of(reference.name, version)
        registered = model is not None and version in model.versions
        if certain and self._offers.complete and not registered and model_id not in self._offers:
            raise self._not_found(tenant, text, reference)
        return Resolved(model_id)

    def route(self, tenant: str, text: str, key: str, request_id: str, *, certain: bool = True) -> Resolved:
        """With regard to traffic, where the name alone is asked for; the rest is as `resolve` has it.

        `key`: requests of one key go to one version.
        """
        reference = self._read(text)
        model = self._registry.get(tenant, reference.name)
        if model is None or model.traffic is NO_TRAFFIC or not reference.plain:
            return self.resolve(tenant, text, certain=certain)
        traffic, name = model.traffic, reference.name
        if traffic.splits:
            model_id = model_id_of(name, pick(traffic.splits, name, key))
        else:
            model_id = self.resolve(tenant, text, certain=False).model_id
        shadow = traffic.shadow
        if shadow is None or fraction_of(name, request_id, "shadow") >= shadow.fraction:
            return Resolved(model_id, traffic)
        shadow_id = model_id_of(name, shadow.version)
        return Resolved(model_id, traffic, shadow_id if shadow_id != model_id else None)

    def fallbacks(self, tenant: str, texts: Iterable[str]) -> list[str]:
        """The ids of a chain; what is not there any more is left out of it."""
        found: dict[str, None] = {}
        for text in texts:
            try:
                found[self.resolve(tenant, text).model_id] = None
            except ModelNotFound:
                continue
        return list(found)

    def versions(self, tenant: str, name: str) -> list[str]:
        """All that are registered or offered, in no order."""
        model = self._registry.get(tenant, name)
        return list(dict.fromkeys([*self._offers.versions(name), *(model.versions if model is not None else ())]))

    def check(self, tenant: str, name: str, version: str | None = None) -> None:
        """Raises ModelNotFound for what is neither registered nor offered."""
        versions = self.versions(tenant, name)
        there = name in self._offers or self._registry.get(tenant, name) is not None or bool(versions)
        if not (there if version is None else version in versions):
            raise self._not_found(tenant, model_id_of(name, version), Reference(name, version))

    def _read(self, text: str) -> Reference:
        reference = parse(text)
        if reference is None:
            raise self._not_found("", text, None)
        if reference.stage and (known := (reference.name, reference.alias or "")) not in self._stages_told:
            if len(self._stages_told) < STAGES_TOLD_MAX:
                self._stages_told.add(known)
            log.warning("stages are no longer used; name the alias", model=reference.name, alias=reference.alias)
        return reference

    def _version(self, reference: Reference, model: Model | None) -> str | None:
        """None: the model comes in no versions, or none is known."""
        name = reference.name
        if reference.alias is not None:
            version = model.aliases.get(reference.alias) if model is not None else None
            if version is None:
                raise self._no_alias(reference, model)
            return version
        if reference.version is not None:
            return reference.version
        if model is not None and DEFAULT_ALIAS in model.aliases:
            return model.aliases[DEFAULT_ALIAS]
        if name in self._offers:
            return None
        return self._offers.newest(name) or (model.newest() if model is not None else None)

    def _no_alias(self, reference: Reference, model: Model | None) -> ModelNotFound:
        known = sorted(f"{reference.name}@{alias}" for alias in (model.aliases if model is not None else ()))
        near = nearest(f"{reference.name}@{reference.alias}", known)
        return ModelNotFound("This model has no such alias.", details={"known": known[:KNOWN_SHOWN], "nearest": near})

    def _not_found(self, tenant: str, text: str, reference: Reference | None) -> ModelNotFound:
        """With the nearest names: of the model's versions, where it has any, else of all models."""
        versions = self.versions(tenant, reference.name) if reference is not None else []
        known = [f"{reference.name}:{version}" for version in versions] if reference is not None else []
        known = known or [*self._offers, *(model.name for model in self._registry.of_tenant(tenant))]
        known = sorted(set(known))
        details = {"known": known[:KNOWN_SHOWN], "nearest": nearest(text, known)}
        return ModelNotFound("No worker has this model.", details=details)
