"""The registry in memory: what the store's rows come to, and the rows that a change is made of.

A change is written first and applied when it is on disk, by the same function that reads the rows at the start; so
memory never knows what a restart would not.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.store import AliasRow, ChangeRow, ModelRow, RegistryRow, TrafficRow, VersionRow
from protocol.codec import pack, unpack
from protocol.model_ids import by_age

MODELS_MAX = 10_000  # of all tenants
VERSIONS_MAX = 1_000  # of a model
ALIASES_MAX = 64  # of a model


class Split(NamedTuple):
    version: str
    weight: float  # in percent


class Shadow(NamedTuple):
    version: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Policy:
    latency_ms_max: int | None = None
    devices: tuple[str, ...] | None = None
    cost_max: float | None = None

    def __bool__(self) -> bool:
        return self != ANY


ANY = Policy()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Where requests go that name a model alone."""

    splits: tuple[Split, ...] = ()
    shadow: Shadow | None = None
    fallbacks: tuple[str, ...] = ()  # as they were written; resolved with each request
    policy: Policy = ANY

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Traffic":
        shadow, policy = told.get("shadow"), dict(told.get("policy") or {})
        devices = policy.pop("devices", None)
        return cls(
            splits=tuple(Split(split["version"], split["weight"]) for split in told.get("splits", ())),
            shadow=None if shadow is None else Shadow(shadow["version"], shadow["fraction"]),
            fallbacks=tuple(told.get("fallbacks", ())),
            policy=Policy(devices=None if devices is None else tuple(devices), **policy),
        )

    def told(self) -> dict[str, Any]:
        policy = self.policy
        return {
            "splits": [split._asdict() for split in self.splits],
            "shadow": None if self.shadow is None else self.shadow._asdict(),
            "fallbacks": list(self.fallbacks),
            "policy": {
                "latency_ms_max": policy.latency_ms_max,
                "devices": None if policy.devices is None else list(policy.devices),
                "cost_max": policy.cost_max,
            },
        }

    def names(self, version: str) -> bool:
        """Does it send anything to this version by number?"""
        return version in [split.version for split in self.splits] or bool(
            self.shadow and self.shadow.version == version
        )


NO_TRAFFIC = Traffic()


@dataclass(slots=True)
class Version:
    """A registered version, or what was noted of one that is not. `source`: as it was asked for; else empty."""

    version: str
    created_ms: int
    source: dict[str, Any]
    content_hash: str | None = None
    nbytes: int | None = None
    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    revision: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    name: str
    revision: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)  # what holds for all versions
    created_ms: int = 0
    versions: dict[str, Version] = field(default_factory=dict)
    noted: dict[str, Version] = field(default_factory=dict)  # not registered: their metadata is all that is known
    aliases: dict[str, str] = field(default_factory=dict)
    traffic: Traffic = NO_TRAFFIC

    def known(self, version: str | None) -> Version | None:
        """What there is of a version, registered or not."""
        return self.versions.get(version or "") or self.noted.get(version or "")

    def aliases_of(self, version: str) -> list[str]:
        return sorted(alias for alias, target in self.aliases.items() if target == version)

    def points_to(self, version: str) -> bool:
        """Does an alias or its traffic lead to this version?"""
        return version in self.aliases.values() or self.traffic.names(version)

    def newest(self) -> str | None:
        return max(self.versions, key=by_age, default=None)


class Registry:
    """Models by tenant and name. Reading costs no disk; `apply` is all that changes it."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], Model] = {}

    def get(self, tenant: str, name: str) -> Model | None:
        return self.models.get((tenant, name))

    def of_tenant(self, tenant: str) -> list[Model]:
        return [model for (owner, _), model in self.models.items() if owner == tenant]

    def apply(self, rows: Iterable[RegistryRow]) -> None:
        """Take in rows that are on disk, in the order they were written."""
        for row in rows:
            if isinstance(row, ChangeRow):
                continue
            model = self.models.setdefault((row.tenant, row.name), Model(row.name))
            match row:
                case ModelRow():
                    model.created_ms, model.revision, model.metadata = (
                        row.created_ms,
                        row.revision,
                        unpack(row.metadata),
                    )
                case VersionRow():
                    _apply_version(model, row)
                case AliasRow():
                    model.aliases.pop(row.alias, None)
                    if row.version is not None:
                        model.aliases[row.alias] = row.version
                case TrafficRow():
                    traffic = Traffic.of(unpack(row.traffic))
                    model.traffic = NO_TRAFFIC if traffic == NO_TRAFFIC else traffic


def _apply_version(model: Model, row: VersionRow) -> None:
    model.noted.pop(row.version, None)
    if row.deleted_ms is not None:
        model.versions.pop(row.version, None)
        return
    source = unpack(row.source)
    place = model.versions if source else model.noted
    place[row.version] = Version(
        version=row.version,
        created_ms=row.created_ms,
        source=source,
        content_hash=row.content_hash,
        nbytes=row.nbytes,
        run_id=row.run_id,
        metrics=unpack(row.metrics),
        tags=unpack(row.tags),
        revision=row.revision,
        metadata=unpack(row.metadata),
    )


def version_row(tenant: str, name: str, version: Version, deleted_ms: int | None = None) -> VersionRow:
    return VersionRow(
        tenant=tenant,
        name=name,
        version=version.version,
        created_ms=version.created_ms,
        source=pack(version.source),
        content_hash=version.content_hash,
        nbytes=version.nbytes,
        run_id=version.run_id,
        metrics=pack(version.metrics),
        tags=pack(version.tags),
        revision=version.revision,
        metadata=pack(version.metadata),
        deleted_ms=deleted_ms,
    )


def model_row(tenant: str, model: Model) -> ModelRow:
    return ModelRow(tenant, model.name, model.created_ms, model.revision, pack(model.metadata))
