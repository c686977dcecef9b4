"""From what a request calls a model to what workers offer, with the registry and the offers in memory."""

from typing import Any

import pytest

from orchestrator.registry.offers import Offers
from orchestrator.registry.resolve import Resolver
from orchestrator.registry.state import NO_TRAFFIC, Registry, Traffic, Version, version_row
from orchestrator.store import AliasRow, RegistryRow, TrafficRow
from protocol.codec import pack
from protocol.errors import ModelNotFound
from tests.registry.test_offers import Fleet

TENANT = "t"


def resolver(*offered: str, rows: tuple[RegistryRow, ...] = ()) -> Resolver:
    """Of one connected worker, with these models."""
    fleet, registry = Fleet(), Registry()
    offers = Offers(fleet, None)
    if offered:
        fleet.by_id["w"] = None  # type: ignore[assignment]
        offers.said("w", {model_id: {"model_id": model_id} for model_id in offered})
    registry.apply(rows)
    return Resolver(registry, offers)


def version(name: str, number: str) -> RegistryRow:
    return version_row(TENANT, name, Version(number, 1000, {"folder": "m"}))


def alias(name: str, called: str, number: str | None) -> RegistryRow:
    return AliasRow(TENANT, name, called, number)


def traffic(name: str, **told: Any) -> RegistryRow:
    return TrafficRow(TENANT, name, pack(Traffic.of(told).told()))


def test_the_order_in_which_a_name_alone_is_read() -> None:
    everything = (version("m", "3"), alias("m", "default", "1"), traffic("m", splits=[{"version": "2", "weight": 100}]))
    assert resolver("m:1", "m:2", rows=everything).route(TENANT, "m", "k", "r").model_id == "m:2"
    assert resolver("m:1", "m:2", rows=everything[:2]).route(TENANT, "m", "k", "r").model_id == "m:1"
    assert resolver("m:1", "m:2", rows=everything[:1]).route(TENANT, "m", "k", "r").model_id == "m:2"
    assert resolver("other", rows=everything[:1]).route(TENANT, "m", "k", "r").model_id == "m:3"


def test_traffic_is_for_the_name_alone() -> None:
    rows = (alias("m", "prod", "1"), traffic("m", splits=[{"version": "2", "weight": 100}]))
    found = resolver("m:1", "m:2", rows=rows)
    assert found.route(TENANT, "m:1", "k", "r").model_id == "m:1"
    assert found.route(TENANT, "m@prod", "k", "r").model_id == "m:1"
    assert found.route(TENANT, "models:/m", "k", "r").model_id == "m:2"


def test_a_model_without_versions_needs_no_row() -> None:
    assert resolver("demo").is_as_it_is(TENANT, "demo")
    assert resolver("demo").resolve(TENANT, "demo").model_id == "demo"
    assert not resolver("m:1").is_as_it_is(TENANT, "m")
    assert not resolver("m:1").is_as_it_is(TENANT, "m:1")
    assert not resolver("demo", rows=(alias("demo", "prod", "1"),)).is_as_it_is(TENANT, "demo")
    assert resolver("demo", rows=(alias("demo", "prod", "1"),)).resolve(TENANT, "demo").model_id == "demo"


def test_tenants_have_names_of_their_own() -> None:
    found = resolver("m:1", "m:2", rows=(alias("m", "default", "1"),))
    assert found.resolve(TENANT, "m").model_id == "m:1"
    assert found.resolve("other", "m").model_id == "m:2"
    with pytest.raises(ModelNotFound):
        found.resolve("other", "m@default")


def test_while_workers_may_still_come_nothing_is_missing() -> None:
    assert resolver().resolve(TENANT, "m").model_id == "m"
    assert resolver().resolve(TENANT, "m:7").model_id == "m:7"
    assert resolver("other").resolve(TENANT, "m:7", certain=False).model_id == "m:7"
    with pytest.raises(ModelNotFound):
        resolver("other").resolve(TENANT, "m:7")
    with pytest.raises(ModelNotFound):
        resolver().resolve(TENANT, "m@prod")  # the registry alone knows aliases


def test_an_alias_that_was_taken_away_is_gone() -> None:
    rows = (alias("m", "prod", "1"), alias("m", "prod", None))
    with pytest.raises(ModelNotFound):
        resolver("m:1", rows=rows).resolve(TENANT, "m@prod")


def test_a_version_that_was_taken_out_is_gone() -> None:
    rows = (version("m", "3"), version_row(TENANT, "m", Version("3", 1000, {"folder": "m"}), deleted_ms=2000))
    with pytest.raises(ModelNotFound):
        resolver("m:1", rows=rows).resolve(TENANT, "m:3")


def test_traffic_that_says_nothing_is_none() -> None:
    registry = Registry()
    registry.apply([traffic("m")])
    model = registry.get(TENANT, "m")
    assert model is not None
    assert model.traffic is NO_TRAFFIC


def test_traffic_comes_back_as_it_was_written() -> None:
    told = {
        "splits": [{"version": "1", "weight": 62.5}, {"version": "2", "weight": 37.5}],
        "shadow": {"version": "3", "fraction": 0.25},
        "fallbacks": ["m:1", "other@prod"],
        "policy": {"latency_ms_max": 50, "devices": ["cuda"], "cost_max": None},
    }
    assert Traffic.of(told).told() == told


def test_a_shadow_is_chosen_request_by_request_and_never_the_version_itself() -> None:
    rows = (traffic("m", splits=[{"version": "1", "weight": 100}], shadow={"version": "2", "fraction": 0.25}),)
    found = resolver("m:1", "m:2", rows=rows)
    shadows = [found.route(TENANT, "m", "one key", str(number)).shadow for number in range(4000)]
    assert set(shadows) == {"m:2", None}
    assert 900 < shadows.count("m:2") < 1100
    rows = (traffic("m", splits=[{"version": "1", "weight": 100}], shadow={"version": "1", "fraction": 1.0}),)
    assert resolver("m:1", rows=rows).route(TENANT, "m", "k", "r").shadow is None


def test_fallbacks_that_are_not_there_any_more_are_left_out() -> None:
    found = resolver("m:1", "demo", rows=(alias("m", "prod", "1"),))
    assert found.fallbacks(TENANT, ["m@prod", "m:1", "gone", "m@gone", "demo"]) == ["m:1", "demo"]


def test_the_nearest_names_are_told() -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolver("localisation:1", "localisation:2", "demo").resolve(TENANT, "lokalisation:2")
    assert caught.value.details["nearest"] == "localisation:2"
    assert caught.value.details["known"] == ["demo", "localisation:1", "localisation:2"]
    with pytest.raises(ModelNotFound) as caught:
        resolver("localisation:1", "demo").resolve(TENANT, "localisation:11")
    assert caught.value.details["known"] == ["localisation:1"]
