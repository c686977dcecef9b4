"""How requests are shared out: by hash, so that a key stays where it was and nothing is kept for it."""

import math
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from orchestrator.registry.state import Policy, Split

RETRY_MS = 30_000  # after so long a model that was too slow may show whether it still is


def fraction_of(*parts: str) -> float:
    """A number in (0, 1) that is always the same for the same parts, and evenly spread over different ones."""
    digest = sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") + 0.5) / 2**64


def pick(splits: Sequence[Split], name: str, key: str) -> str:
    """The version that a key belongs to, by weighted rendezvous: each version draws a number for the key, and the
    lowest wins. So a key moves only out of a version that lost weight, or into one that gained some."""

    def draw(split: Split) -> float:
        return -math.log(fraction_of(name, key, split.version)) / split.weight

    return min(splits, key=draw).version


class Site(NamedTuple):
    """A worker that could run a request."""

    device_id: str
    kind: str

    def is_one_of(self, devices: Sequence[str]) -> bool:
        return not {self.device_id, self.kind, self.device_id.partition(":")[0]}.isdisjoint(devices)


class Candidate(NamedTuple):
    """A model of a chain. `latency_ms`: measured; None: never. `cost`: as its metadata tells."""

    model_id: str
    sites: list[Site]  # of the connected workers that could run it
    latency_ms: int | None = None
    cost: float | None = None


class Chosen(NamedTuple):
    model_id: str
    rest: list[str]  # what is to be used in turn if it fails
    device_ids: list[str] | None = None  # it is to run on one of these; None: anywhere


def choose(chain: Sequence[Candidate], policy: Policy, may_retry: Callable[[str], bool]) -> Chosen | None:
    """The first of a chain that some worker could run as the policy wants; None where there is none.

    Devices and cost are strict. A latency is not: a request is not refused because all are slow. `may_retry` is asked
    whether a model that was too slow is to be measured again.
    """
    able = [candidate for candidate in (_within(each, policy) for each in chain) if candidate is not None]
    if not able:
        return None
    chosen = next((each for each in able if _fast_enough(each, policy, may_retry)), None)
    if chosen is None:
        chosen = min(able, key=lambda each: each.latency_ms or 0)
    rest = [each.model_id for each in able[able.index(chosen) + 1 :] if each.model_id != chosen.model_id]
    device_ids = sorted({site.device_id for site in chosen.sites}) if policy.devices is not None else None
    return Chosen(chosen.model_id, rest, device_ids)


def _within(candidate: Candidate, policy: Policy) -> Candidate | None:
    """The candidate with the sites that the policy allows; None where it has none, or costs too much."""
    if policy.cost_max is not None and (candidate.cost is None or candidate.cost > policy.cost_max):
        return None
    devices = policy.devices
    sites = [site for site in candidate.sites if devices is None or site.is_one_of(devices)]
    return candidate._replace(sites=sites) if sites else None


def _fast_enough(candidate: Candidate, policy: Policy, may_retry: Callable[[str], bool]) -> bool:
    limit_ms, latency_ms = policy.latency_ms_max, candidate.latency_ms
    return limit_ms is None or latency_ms is None or latency_ms <= limit_ms or may_retry(candidate.model_id)
