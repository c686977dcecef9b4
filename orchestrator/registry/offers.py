"""Which models the workers offer, and which of them a request gets that names none."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from protocol.model_ids import by_age, parse, split

WORKERS_MAX = 10_000  # remembered; past it the one that said hello longest ago goes

Entry = dict[str, Any]  # what a worker says of a model


class Fleet(Protocol):
    """The workers that are connected, by worker_id."""

    @property
    def by_id(self) -> Mapping[str, Any]: ...


class Offers:
    """What each worker of this run last said of its models; one that is away counts, for it may come back."""

    def __init__(self, fleet: Fleet, preferred: str | None) -> None:
        """`preferred`: the model of requests that name none, where it can do what they ask."""
        self._fleet = fleet
        self._preferred = preferred
        self._said: dict[str, dict[str, Entry]] = {}  # worker_id -> model_id -> entry, the latest hello last
        self._counts: Counter[str] = Counter()  # model_id -> how many workers have it
        self._versions: dict[str, list[str]] = {}  # name -> its versions that some worker has, the newest first
        self._defaults: dict[str, str | None] = {}  # by action, of the models as they now are
        self._unjudged: set[str] = set()  # workers that take any name, and judge it themselves

    def said(self, worker_id: str, models: dict[str, Entry] | None) -> None:
        """A worker's hello. None: it takes any name."""
        (self._unjudged.add if models is None else self._unjudged.discard)(worker_id)
        before, now = self._said.pop(worker_id, {}), models or {}
        self._said[worker_id] = now
        gone = [before]
        if len(self._said) > WORKERS_MAX:
            forgotten = next(iter(self._said))
            self._unjudged.discard(forgotten)
            gone.append(self._said.pop(forgotten))
        if before != now or len(gone) > 1:
            self._count(gone, now)

    def came(self, worker_id: str, entry: Entry) -> None:
        """A worker has one more model, and will say hello about it. Until then it is taken to do what its other
        versions there do."""
        models, model_id = self.of_worker(worker_id), entry["model_id"]
        if worker_id not in self._said or worker_id in self._unjudged or model_id in models:
            return
        name = split(model_id)[0]
        others = (actions_of(told) or set() for other, told in models.items() if split(other)[0] == name)
        self.said(worker_id, {**models, model_id: {**entry, "actions": sorted(set().union(*others))}})

    def _count(self, gone: list[dict[str, Entry]], come: dict[str, Entry]) -> None:
        for models in gone:
            self._counts.subtract(models.keys())
        self._counts.update(come.keys())
        self._counts = +self._counts  # without those that nobody has any more
        self._defaults.clear()
        self._versions = {}
        for name, version in map(split, self._counts):
            if version is not None:
                self._versions.setdefault(name, []).append(version)
        for versions in self._versions.values():
            versions.sort(key=by_age, reverse=True)

    def __contains__(self, model_id: str) -> bool:
        """Has some worker a model of exactly this id?"""
        return model_id in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    @property
    def complete(self) -> bool:
        """Is there no model but those that were told?"""
        return bool(self._said) and not self._unjudged

    def versions(self, name: str) -> list[str]:
        """Those that some worker has, the newest first."""
        return self._versions.get(name, [])

    def connected(self, model_id: str) -> bool:
        """Has a worker that is connected now a model of this id?"""
        return any(model_id in self._said.get(worker_id, ()) for worker_id in self._fleet.by_id)

    def newest(self, name: str) -> str | None:
        """The newest usable version that a connected worker has; else the newest that one has; else that any of this
        run had. None: there are none."""
        versions = self.versions(name)
        there = [version for version in versions if self.connected(f"{name}:{version}")]
        usable = (version for version in there if self._usable(f"{name}:{version}"))
        return next(usable, None) or next(iter(there or versions), None)

    def _usable(self, model_id: str) -> bool:
        """Does some worker find nothing wrong with its files?"""
        return any(not entry.get("problem") for _, entry in self.entries(model_id))

    def entries(self, model_id: str) -> Iterator[tuple[str, Entry]]:
        """(worker_id, what it says of the model) of each worker of this run that has it."""
        return ((worker_id, models[model_id]) for worker_id, models in self._said.items() if model_id in models)

    def of_worker(self, worker_id: str) -> dict[str, Entry]:
        """What this worker says of each of its models."""
        return self._said.get(worker_id, {})

    def listed(self) -> list[dict[str, Any]]:
        """What the connected workers have, each with those that have it and have it loaded."""
        found: dict[str, dict[str, Any]] = {}
        for worker_id, worker in sorted(self._fleet.by_id.items()):
            for model_id, entry in self._said.get(worker_id, {}).items():
                told = found.setdefault(model_id, {**entry, "workers": [], "resident_on": []})
                told["workers"].append(worker_id)
                if model_id in worker.profile.resident:
                    told["resident_on"].append(worker_id)
        return [found[model_id] for model_id in sorted(found)]

    def default(self, action: str) -> str | None:
        """The model of requests that name none: the preferred one unless it cannot do this; else the only one (of
        whatever versions) that can. None: there is not exactly one."""
        if action not in self._defaults:
            able, preferred = self._able(action), self._preferred
            names = {split(model_id)[0] for model_id in able}
            only = next(iter(names)) if len(names) == 1 else None
            self._defaults[action] = only if preferred is None or self._unable(preferred, able) else preferred
        return self._defaults[action]

    def _unable(self, preferred: str, able: set[str]) -> bool:
        """Do workers have it, and is none of it able?"""
        reference = parse(preferred)
        named = {model_id for model_id in self._counts if reference and split(model_id)[0] == reference.name}
        return bool(named) and not named & able

    def _able(self, action: str) -> set[str]:
        """The models that say they can do this; of an action about models (`lora.load`) those that can do what it is
        about (`inference.lora`)."""
        wanted = {action, f"inference.{action.partition('.')[0]}"}
        return {
            model_id
            for models in self._said.values()
            for model_id, entry in models.items()
            if (actions := actions_of(entry)) is None or wanted & actions
        }


def actions_of(entry: Entry) -> set[str] | None:
    """What a model can be asked for, as its worker says; None where it does not say."""
    actions = entry.get("actions")
    return {name for name in actions if isinstance(name, str)} if isinstance(actions, list) else None


def with_names(model_ids: Iterable[str]) -> set[str]:
    """The ids, and the name alone of those that come in versions: a job that names no version, for none was known
    when it came, can then run too, with the worker's newest."""
    return {part for model_id in model_ids for part in (model_id, split(model_id)[0])}
