"""The registry's rows: written over, kept, and read back."""

from collections.abc import Callable
from typing import Any

from orchestrator.registry.state import Model, Registry, Version, model_row, version_row
from orchestrator.store import AliasRow, ChangeRow, Expire, RegistryRow, TrafficRow, queries
from protocol.codec import pack, unpack
from tests.store.support import Harness

T = "default"


def change(change_id: str, **fields: Any) -> ChangeRow:
    row = ChangeRow(T, "m", change_id, 1000, "alias", "prod", "ada", pack("1"), pack("2"))
    return row._replace(**fields)


def test_the_registry_comes_back_as_it_was_written(open_store: Callable[[], Harness]) -> None:
    version = Version(
        "2", 1000, {"url": "s3://b/m"}, "abc", 12, "run", {"loss": 0.5}, {"k": "v"}, 3, {"license": "MIT"}
    )
    rows: list[RegistryRow] = [
        model_row(T, Model("m", 2, {"tags": ["a"]}, 900)),
        version_row(T, "m", version),
        AliasRow(T, "m", "prod", "2"),
        TrafficRow(T, "m", pack({"splits": [{"version": "2", "weight": 100.0}]})),
    ]
    harness = open_store()
    harness.write(*rows, change("c1"))
    harness.store.close(5)
    found, written = Registry(), Registry()
    found.apply(open_store().store.load().registry)
    written.apply(rows)
    assert found.models == written.models
    assert found.models[T, "m"].versions["2"] == version


def test_rows_are_written_over_those_that_are_there(harness: Harness) -> None:
    harness.write(AliasRow(T, "m", "prod", "1"), AliasRow("other", "m", "prod", "9"), AliasRow(T, "m", "prod", "2"))
    harness.write(AliasRow(T, "m", "prod", "3"), TrafficRow(T, "m", b"\x80"), TrafficRow(T, "m", b"\x81\xa1a\x01"))
    rows = set(harness.store.load().registry)
    assert rows == {
        AliasRow(T, "m", "prod", "3"),
        AliasRow("other", "m", "prod", "9"),
        TrafficRow(T, "m", b"\x81\xa1a\x01"),
    }


def test_a_version_that_is_taken_out_stays_on_the_disk(harness: Harness) -> None:
    version = Version("1", 1000, {"folder": "m"})
    harness.write(version_row(T, "m", version))
    harness.write(version_row(T, "m", version, deleted_ms=2000))
    [row] = harness.store.load().registry
    assert row.deleted_ms == 2000  # type: ignore[union-attr]
    registry = Registry()
    registry.apply([row])
    assert registry.models[T, "m"].versions == {}


def test_the_history_is_never_changed(harness: Harness) -> None:
    harness.write(change("c1"))
    harness.write(change("c1", after=pack("9")), change("c2"))
    rows = harness.read(queries.model_changes_of(T, "m", 10))
    assert [(row.change_id, unpack(row.after)) for row in rows] == [("c2", "2"), ("c1", "2")]


def test_the_history_is_read_page_by_page_and_by_alias(harness: Harness) -> None:
    harness.write(
        *(change(f"c{number}") for number in range(5)),
        change("c5", kind="traffic", subject=None),
        change("c6", kind="rollback"),
        change("c7", subject="canary"),
        change("c8", tenant="other"),
        change("c9", name="n"),
    )

    def ids(limit: int, before: str | None = None, subject: str | None = None) -> list[str]:
        return [row.change_id for row in harness.read(queries.model_changes_of(T, "m", limit, before, subject))]

    assert ids(3) == ["c7", "c6", "c5"]
    assert ids(3, "c5") == ["c4", "c3", "c2"]
    assert ids(2, subject="prod") == ["c6", "c4"]


def test_retention_takes_nothing_of_the_registry(harness: Harness) -> None:
    harness.write(version_row(T, "m", Version("1", 1000, {"folder": "m"})), change("c1"))
    harness.write(Expire(10**15))
    assert len(harness.store.load().registry) == 1
    assert len(harness.read(queries.model_changes_of(T, "m", 10))) == 1
