"""Registering versions, moving aliases, roll-backs, metadata and their history: what is kept, and what is refused."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client import AsyncClient, Client
from protocol.errors import (
    AtelierError,
    Forbidden,
    InvalidRequest,
    ModelInvalid,
    ModelNotFound,
    NoCapableWorker,
    NotFound,
    OutOfMemory,
    RequestConflict,
    Unavailable,
)
from protocol.ids import new_id
from protocol.schemas.model import HistoryResult
from tests.e2e.house import House, eventually
from tests.e2e.peer import Data, Peer, hold

PREDICT, LOAD, FETCH = "inference.predict", "model.load", "model.fetch"
PREDICTS = [PREDICT]
FETCHED = {"content_hash": "abc", "nbytes": 12, "metadata": {"family": "onnx", "type": "onnx", "unheard_of": 1}}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        started.start_orchestrator()
        yield started


@pytest.fixture
def name() -> str:
    """A model of this test's own."""
    return f"m-{new_id()[-12:]}"


@pytest.fixture
def peer(house: House, name: str) -> Iterator[Peer]:
    """With versions 1, 2 and 3 of the test's model, the first of them loaded; it can load and fetch."""
    models = {f"{name}:{version}": PREDICTS for version in (1, 2, 3)}
    answers = {LOAD: lambda data, frames: {}, FETCH: lambda data, frames: FETCHED}
    with Peer(house, "w", models, answers, resident=[f"{name}:1"]) as started:
        yield started
    house.wait_for_workers(gone=["w"])


def version_of(client: Client, name: str, alias: str = "default") -> str | None:
    return client.models.info(f"{name}@{alias}").version


# --- aliases ----------------------------------------------------------------------------------------------------


def test_the_new_version_is_loaded_before_the_alias_moves(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "default", "1")
    at_load: list[str | None] = []

    def load(data: Data, frames: list[bytes]) -> Data:
        with Client(client.core.endpoint) as other:
            at_load.append(version_of(other, name))
            [worker] = other.models.status(name)
            assert [model.model_id for model in worker.models if model.loading] == [f"{name}:2"]
        return {}

    peer.answers[LOAD] = load
    moved = client.models.set_alias(name, "default", "2", author="ada")
    assert peer.asked(LOAD) == [{"model_id": f"{name}:2", "keep": False}]
    assert at_load == ["1"]
    assert (moved.version, moved.before, moved.loaded_on) == ("2", "1", ["w"])
    assert version_of(client, name) == "2"
    [worker] = client.models.status(name)
    assert not any(model.loading for model in worker.models)


def test_what_is_kept_loaded_follows_the_alias(client: Client, peer: Peer, name: str) -> None:
    peer.answers["model.unload"] = lambda data, frames: {}
    peer.kept = [f"{name}:1"]
    peer.offer({f"{name}:{version}": PREDICTS for version in (1, 2, 3)})
    client.models.set_alias(name, "default", "1")
    client.models.set_alias(name, "canary", "1")
    client.models.set_alias(name, "default", "2")
    assert peer.asked(LOAD)[-1] == {"model_id": f"{name}:2", "keep": True}
    assert peer.asked("model.unload") == []  # another alias is served by it
    client.models.set_alias(name, "canary", "3")
    assert peer.wait_for("model.unload") == [{"model_id": f"{name}:1"}]


def test_the_alias_stays_where_the_new_version_cannot_be_loaded(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "default", "1")

    def load(data: Data, frames: list[bytes]) -> Data:
        raise ModelInvalid("It has a tensor too many.")

    peer.answers[LOAD] = load
    with pytest.raises(ModelInvalid, match=r"The alias stays: w could not load .*:2. It has a tensor too many."):
        client.models.set_alias(name, "default", "2")
    assert version_of(client, name) == "1"
    assert [change.after for change in client.models.history(name)] == ["1"]
    peer.answers[LOAD] = lambda data, frames: {}
    assert client.models.set_alias(name, "default", "2").version == "2"


def test_one_of_two_workers_that_cannot_is_enough_to_stay(client: Client, peer: Peer, house: House, name: str) -> None:
    client.models.set_alias(name, "default", "1")

    def load(data: Data, frames: list[bytes]) -> Data:
        raise OutOfMemory

    models = {f"{name}:1": PREDICTS, f"{name}:2": PREDICTS}
    with Peer(house, "full", models, {LOAD: load}, resident=[f"{name}:1"]):
        with pytest.raises(OutOfMemory, match="full could not load") as caught:
            client.models.set_alias(name, "default", "2")
        assert caught.value.details["worker_id"] == "full"
    assert version_of(client, name) == "1"


def test_a_worker_that_is_lost_meanwhile_keeps_no_alias_back(
    client: Client, peer: Peer, house: House, name: str
) -> None:
    client.models.set_alias(name, "default", "1")
    models = {f"{name}:1": PREDICTS, f"{name}:2": PREDICTS}
    lost = Peer(house, "lost", models, {LOAD: hold}, resident=[f"{name}:1"])
    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(client.models.set_alias, name, "default", "2")
        lost.wait_for(LOAD)
        lost.die()
        assert moving.result(20).loaded_on == ["w"]
    assert version_of(client, name) == "2"


def test_workers_that_cannot_be_told_to_load_are_left_alone(client: Client, house: House, name: str) -> None:
    models = {f"{name}:1": PREDICTS, f"{name}:2": PREDICTS}
    with Peer(house, "plain", models, resident=[f"{name}:1"]) as plain:
        client.models.set_alias(name, "default", "1")
        assert client.models.set_alias(name, "default", "2").loaded_on == []
        assert plain.assigns == []


def test_a_worker_without_the_new_version_need_not_load_it(client: Client, peer: Peer, house: House, name: str) -> None:
    def load(data: Data, frames: list[bytes]) -> Data:
        raise ModelNotFound

    client.models.set_alias(name, "default", "1")
    with Peer(house, "old", {f"{name}:1": PREDICTS}, {LOAD: load}, resident=[f"{name}:1"]):
        assert client.models.set_alias(name, "default", "3").loaded_on == ["w"]


def test_changes_of_one_model_take_turns(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "default", "1")
    go_on, order = threading.Event(), []

    def load(data: Data, frames: list[bytes]) -> Data:
        order.append(data["model_id"])
        go_on.wait(10)
        return {}

    peer.answers[LOAD] = load
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.models.set_alias, name, "default", "2")
        eventually(lambda: order == [f"{name}:2"])
        second = pool.submit(client.models.put_metadata, name, {"description": "meanwhile"})
        other = f"{name}-other"
        peer.offer({f"{name}:1": PREDICTS, f"{name}:2": PREDICTS, f"{other}:1": PREDICTS})
        client.models.set_alias(other, "default", "1")  # another model does not wait
        assert not second.done()
        go_on.set()
        first.result(10)
        assert second.result(10).revision == 1
    assert [change.kind for change in client.models.history(name)] == ["metadata", "alias", "alias"]


def test_an_alias_is_taken_away(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "canary", "2")
    gone = client.models.set_alias(name, "canary", None)
    assert (gone.version, gone.before) == (None, "2")
    with pytest.raises(ModelNotFound, match="no such alias"):
        client.models.info(f"{name}@canary")
    with pytest.raises(NotFound):
        client.models.set_alias(name, "canary", None)


def test_what_an_alias_may_not_point_to(client: Client, peer: Peer, name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        client.models.set_alias(name, "prod", "33")
    assert caught.value.details["nearest"] == f"{name}:3"
    with pytest.raises(InvalidRequest):
        client.models.set_alias(name, "a b", "1")
    with pytest.raises(InvalidRequest):
        client.models.set_alias("../m", "prod", "1")
    assert client.models.history(name) == []


def test_roll_backs_lead_back_step_by_step(client: Client, peer: Peer, name: str) -> None:
    for version in ("1", "2", "3"):
        client.models.set_alias(name, "prod", version)
    assert client.models.rollback(name, "prod", author="ada").version == "2"
    assert client.models.rollback(name, "prod").version == "1"
    with pytest.raises(NotFound, match="has not pointed to another"):
        client.models.rollback(name, "prod")
    client.models.set_alias(name, "prod", "3")
    assert client.models.rollback(name, "prod").version == "1"
    kinds = [(change.kind, change.before, change.after) for change in client.models.history(name)][:2]
    assert kinds == [("rollback", "3", "1"), ("alias", "1", "3")]


def test_a_roll_back_brings_an_alias_back_that_was_taken_away(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "prod", "2")
    client.models.set_alias(name, "prod", None)
    assert client.models.rollback(name, "prod").version == "2"


def test_a_roll_back_loads_the_version_before(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "default", "2")
    client.models.set_alias(name, "default", "1")
    before = len(peer.asked(LOAD))
    client.models.rollback(name)
    assert [data["model_id"] for data in peer.asked(LOAD)[before:]] == [f"{name}:2"]


def test_a_change_that_is_asked_for_again_is_done_once(client: Client, peer: Peer, house: House, name: str) -> None:
    for version in ("1", "2", "3"):
        client.models.set_alias(name, "prod", version)
    request_id, data = new_id(), {"name": name, "alias": "prod"}
    raw = house.raw()
    answers = [raw.ask(request_id, "model.rollback", data) for _ in range(2)]
    assert [answer["data"]["version"] for answer in answers] == ["2", "2"]
    assert version_of(client, name, "prod") == "2"
    other = raw.ask(request_id, "model.rollback", {"name": name, "alias": "default"})
    assert other["error"]["code"] == "request_conflict"


# --- registration -----------------------------------------------------------------------------------------------


def test_a_version_is_registered_when_a_worker_has_fetched_it(client: Client, peer: Peer, name: str) -> None:
    made = client.models.register(name, "s3://bucket/m", metadata={"license": "MIT"}, author="ada")
    assert (made.version, made.content_hash, made.nbytes) == ("4", "abc", 12)
    assert peer.asked(FETCH) == [{"name": name, "version": "4", "source": {"url": "s3://bucket/m"}}]
    info = client.models.info(f"{name}:4")
    assert info.registered
    assert (info.metadata.license, info.metadata.family) == ("MIT", "onnx")
    assert info.source == {"url": "s3://bucket/m"}
    [line] = client.models.history(name)
    assert (line.kind, line.subject, line.tenant, line.author) == ("register", "4", "default", "ada")
    assert client.models.register(name, "folder", version="4.1").version == "4.1"
    assert client.models.register(name, "folder").version == "5"


def test_its_alias_moves_when_it_is_registered(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "default", "1")
    made = client.models.register(name, "models:/m@champion", alias="default")
    assert made.aliases == ["default"]
    assert [data["model_id"] for data in peer.asked(LOAD)] == [f"{name}:4"]
    assert version_of(client, name) == "4"
    assert peer.asked(FETCH)[0]["source"] == {"mlflow": "models:/m@champion"}


def test_a_version_whose_alias_cannot_move_is_registered_all_the_same(client: Client, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "default", "1")

    def load(data: Data, frames: list[bytes]) -> Data:
        raise OutOfMemory

    peer.answers[LOAD] = load
    with pytest.raises(OutOfMemory, match="The alias stays"):
        client.models.register(name, "folder", version="9", alias="default")
    assert client.models.info(f"{name}:9").registered
    assert version_of(client, name) == "1"


def test_files_are_sent_along(client: Client, peer: Peer, name: str, tmp_path: Path) -> None:
    received: dict[str, bytes] = {}

    def fetch(data: Data, frames: list[bytes]) -> Data:
        for file in data["source"]["files"]:
            received[file["path"]] = b"".join(frames[part["attachment"]] for part in file["parts"])
        return FETCHED

    peer.answers[FETCH] = fetch
    (tmp_path / "unet").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "unet" / "config.json").write_bytes(b"")
    made = client.models.register(name, tmp_path)
    assert received == {"model.onnx": b"model", "unet/config.json": b""}
    assert made.source == {"files": [{"path": "model.onnx"}, {"path": "unet/config.json"}]}
    stored = client.artifacts.put(b"more")
    parts = [{"artifact_id": stored.artifact_id}]
    client.models.register(name, {"files": [{"path": "model.onnx", "parts": parts}]})
    assert received["model.onnx"] == b"more"
    with pytest.raises(NotFound):
        client.models.register(name, {"files": [{"path": "model.onnx", "parts": [{"artifact_id": "none"}]}]})


def test_of_two_registrations_of_one_version_one_is_told_so(client: Client, peer: Peer, name: str) -> None:
    go_on = threading.Event()

    def fetch(data: Data, frames: list[bytes]) -> Data:
        go_on.wait(10)
        return FETCHED

    peer.answers[FETCH] = fetch
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.models.register, name, "folder", version="7")
        peer.wait_for(FETCH)
        with pytest.raises(RequestConflict, match="Another request"):
            client.models.register(name, "folder", version="7")
        beside = pool.submit(client.models.register, name, "folder")
        go_on.set()
        assert first.result(10).version == "7"
        assert beside.result(10).version == "8"
    with pytest.raises(RequestConflict, match="registered already"):
        client.models.register(name, "folder", version="7")


def test_a_fetch_that_fails_registers_nothing(client: Client, peer: Peer, name: str) -> None:
    def fetch(data: Data, frames: list[bytes]) -> Data:
        raise ModelInvalid("It is a pickle.")

    peer.answers[FETCH] = fetch
    with pytest.raises(ModelInvalid, match="It is a pickle"):
        client.models.register(name, "folder", version="7", alias="default")
    peer.answers[FETCH] = lambda data, frames: {"nonsense": True}
    with pytest.raises(AtelierError, match="cannot be read"):
        client.models.register(name, "folder", version="7")
    assert client.models.history(name) == []
    assert "7" not in client.models.info(f"{name}:3").versions
    peer.answers[FETCH] = lambda data, frames: FETCHED
    assert client.models.register(name, "folder", version="7").version == "7"


def test_a_lost_worker_registers_nothing_and_another_may_go_on(
    client: Client, house: House, peer: Peer, name: str
) -> None:
    del peer.answers[FETCH]
    lost = Peer(house, "lost", {}, {FETCH: hold})
    with ThreadPoolExecutor(1) as pool:
        pinned = pool.submit(client.models.register, name, "folder", worker_id="lost")
        lost.wait_for(FETCH)
        lost.die()
        with pytest.raises(AtelierError):
            pinned.result(20)
    assert client.models.history(name) == []
    peer.answers[FETCH] = lambda data, frames: FETCHED
    assert client.models.register(name, "folder").version == "4"


def test_without_a_worker_that_fetches_nothing_is_registered(client: Client, house: House, name: str) -> None:
    with Peer(house, "plain", {f"{name}:1": PREDICTS}), pytest.raises(NoCapableWorker):
        client.models.register(name, "folder", worker_id="plain")
    assert client.models.history(name) == []


@pytest.mark.parametrize(
    "source", [{}, {"folder": "a", "url": "b"}, {"folder": ""}, {"files": []}, {"files": [{"path": "a", "parts": []}]}]
)
def test_sources_that_are_none(client: Client, peer: Peer, name: str, source: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        client.models.register(name, source)
    assert peer.assigns == []


def test_nobody_else_may_have_a_worker_fetch(client: Client, peer: Peer, name: str) -> None:
    with pytest.raises(Forbidden, match=r"model\.register"):
        client.run(FETCH, {"name": name, "version": "1", "source": {"folder": "a"}})


# --- traffic, metadata, deletion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"splits": {"1": 90, "2": 20}}, "must sum to 100; they sum to 110"),
        ({"splits": {"1": 99.5}}, "must sum to 100"),
        ({"splits": {"1": 100, "2": 0}}, "greater than 0"),
        ({"splits": {"1": 100}, "shadow": {"version": "2", "fraction": 1.5}}, "less than or equal to 1"),
        ({"splits": {"1": 100}, "fallbacks": ["nothing/at all"]}, "fallbacks.0"),
        ({"splits": {"1": 100}, "fallbacks": ["no-such-model"]}, "fallbacks.0"),
        ({"policy": {"latency_ms_max": 0}}, "latency_ms_max"),
        ({"policy": {"latency": 5}}, "unknown field"),
    ],
)
def test_traffic_that_makes_no_sense(
    client: Client, peer: Peer, name: str, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.models.set_traffic(name, **fields)
    assert problem in f"{caught.value.message} {caught.value.details}"
    assert client.models.info(name).traffic is None


def test_traffic_to_versions_that_are_not_there(client: Client, peer: Peer, name: str) -> None:
    for fields in ({"splits": {"7": 100}}, {"splits": {"1": 100}, "shadow": {"version": "7", "fraction": 0.1}}):
        with pytest.raises(ModelNotFound):
            client.models.set_traffic(name, **fields)
    with pytest.raises(ModelNotFound):
        client.models.set_traffic("no-such-model", fallbacks=[f"{name}:1"])


def test_metadata_is_changed_field_by_field(client: Client, peer: Peer, name: str) -> None:
    assert client.models.get_metadata(name).revision == 0
    client.models.put_metadata(name, {"license": "MIT", "tags": ["a"], "user": {"team": {"name": "x"}}}, author="ada")
    put = client.models.put_metadata(name, {"license": None, "description": "It tells."}, revision=1)
    assert (put.revision, put.metadata.license, put.metadata.tags) == (2, None, ["a"])
    with pytest.raises(RequestConflict, match="its revision is 2") as caught:
        client.models.put_metadata(name, {"license": "BSD"}, revision=1)
    assert caught.value.details == {"revision": 2}
    client.models.put_metadata(name, {"description": "Of this version."}, "2")
    assert client.models.info(f"{name}:2").metadata.description == "Of this version."
    assert client.models.info(f"{name}:2").metadata.tags == ["a"]
    assert client.models.info(f"{name}:1").metadata.description == "It tells."
    assert client.models.get_metadata(name, "2").metadata.tags is None
    changes = client.models.history(name)
    assert [(change.subject, change.author) for change in changes] == [("2", None), (None, None), (None, "ada")]
    assert changes[1].before == {"license": "MIT", "tags": ["a"], "user": {"team": {"name": "x"}}}


@pytest.mark.parametrize(
    "metadata",
    [
        {"licence": "MIT"},
        {"tags": ["x"] * 65},
        {"description": "x" * 10_001},
        {"user": {"x": "y" * 20_000}},
        {"user": {"x": b"bytes"}},
        {"user": {"x": [[[[[[[[[1]]]]]]]]]}},
        {"cost": -1.0},
        {"nbytes": "many"},
    ],
)
def test_metadata_that_is_none(client: Client, peer: Peer, name: str, metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        client.models.put_metadata(name, metadata)
    assert client.models.get_metadata(name).revision == 0


def test_metadata_of_what_is_not_there(client: Client, peer: Peer, name: str) -> None:
    with pytest.raises(ModelNotFound):
        client.models.put_metadata("no-such-model", {"license": "MIT"})
    with pytest.raises(ModelNotFound):
        client.models.put_metadata(name, {"license": "MIT"}, "17")
    with pytest.raises(ModelNotFound):
        client.models.get_metadata("no-such-model")


def test_a_version_in_use_is_not_taken_out(client: Client, peer: Peer, name: str) -> None:
    client.models.register(name, "folder", alias="prod")
    client.models.set_traffic(name, {"1": 100}, shadow={"version": "4", "fraction": 0.5})
    with pytest.raises(RequestConflict, match="alias prod, its traffic"):
        client.models.delete_version(name, "4")
    client.models.set_traffic(name)
    client.models.set_alias(name, "prod", "1")
    assert client.models.delete_version(name, "4").version == "4"
    assert not client.models.info(f"{name}:4").registered  # its files are there
    peer.offer({f"{name}:{version}": PREDICTS for version in (1, 2, 3)})
    with pytest.raises(ModelNotFound):
        client.models.info(f"{name}:4")
    with pytest.raises(ModelNotFound, match="not registered"):
        client.models.delete_version(name, "4")
    assert client.models.register(name, "folder", version="4").version == "4"


def test_the_history_is_told_page_by_page(client: Client, peer: Peer, name: str) -> None:
    for number in range(5):
        client.models.put_metadata(name, {"description": str(number)})
    newest = client.models.history(name, 2)
    older = client.models.history(name, 10, before=newest[-1].change_id)
    told = [change.after["description"] for change in (*newest, *older)]
    assert told == ["4", "3", "2", "1", "0"]
    assert newest[0].at > older[-1].at


# --- all of it ----------------------------------------------------------------------------------------------------


def test_the_registry_outlives_the_server() -> None:
    with House() as own, own.client() as client:
        own.start_orchestrator()
        models = {"m:1": PREDICTS, "m:2": PREDICTS}
        with Peer(own, "w", models, {FETCH: lambda data, frames: FETCHED}) as peer:
            client.models.register("m", "folder", alias="prod", metadata={"tags": ["kept"]})
            peer.offer({**models, "m:3": PREDICTS})
            client.models.set_alias("m", "canary", "1")
            client.models.set_alias("m", "canary", None)
            client.models.set_traffic("m", {"1": 60, "2": 40}, policy={"devices": ["cpu"]})
            before = (client.models.info("m@prod"), client.models.history("m"))
            assert own.orchestrator is not None
            own.orchestrator.kill()
            own.start_orchestrator()
            own.wait_for_workers("w")
            after = (client.models.info("m@prod"), client.models.history("m"))
    assert after == before
    assert before[0].version == "3"
    assert before[0].traffic is not None
    assert before[0].aliases == ["prod"]


def test_a_server_that_is_killed_while_it_registers_has_nothing_of_it() -> None:
    with House() as own, own.client() as client:
        own.start_orchestrator()
        with Peer(own, "w", {"m:1": PREDICTS}, {FETCH: hold}) as peer, ThreadPoolExecutor(1) as pool:
            registering = pool.submit(client.models.register, "m", "folder")
            peer.wait_for(FETCH)
            assert own.orchestrator is not None
            own.orchestrator.kill()
            peer.answers[FETCH] = lambda data, frames: FETCHED
            own.start_orchestrator()
            assert registering.result(20).content_hash == "abc"  # the client asked again, and it was done anew
            assert [change.kind for change in client.models.history("m")] == ["register"]
            eventually(lambda: bool(peer.cancelled))  # the old errand ends, for nobody wants it any more


def test_errands_are_jobs_that_are_listed(client: Client, peer: Peer, name: str) -> None:
    client.models.register(name, "folder")
    errands = [job for job in client.jobs.list(limit=20) if job.action == FETCH]
    assert errands[0].request_id.startswith("errand.")
    assert errands[0].status == "completed"


async def test_the_same_with_await(client: Client, peer: Peer, name: str) -> None:
    async with AsyncClient(client.core.endpoint, timeout_s=20) as awaited:
        made = await awaited.models.register(name, "folder", alias="prod")
        assert made.version == "4"
        await awaited.models.set_alias(name, "prod", "1")
        assert (await awaited.models.rollback(name, "prod")).version == "4"
        assert (await awaited.models.set_traffic(name, {"1": 100})).splits[0].version == "1"
        assert (await awaited.models.put_metadata(name, {"license": "MIT"})).revision == 1
        assert (await awaited.models.get_metadata(name)).metadata.license == "MIT"
        assert (await awaited.models.info(f"{name}@prod")).version == "4"
        assert f"{name}:4" in {entry["model_id"] for entry in (await awaited.models.list()).models}
        assert [worker.worker_id for worker in await awaited.models.status(name)] == ["w"]
        assert len(await awaited.models.history(name)) == 6
        await awaited.models.set_alias(name, "prod", None)
        assert (await awaited.models.delete_version(name, "4")).version == "4"


def test_a_disk_that_fails_changes_nothing(name: str) -> None:
    def hide(before: str, after: str) -> None:
        with sqlite3.connect(own.data_dir / "atelier.db") as database:
            database.execute(f"ALTER TABLE {before} RENAME TO {after}")
        database.close()

    with House() as own, own.client() as client:
        own.start_orchestrator()
        models = {f"{name}:1": PREDICTS, f"{name}:2": PREDICTS}
        with Peer(own, "w", models, {FETCH: lambda data, frames: FETCHED}):
            client.models.set_alias(name, "default", "1")
            hide("model_changes", "hidden")
            with pytest.raises(Unavailable):
                client.models.set_alias(name, "default", "2")
            with pytest.raises(Unavailable):
                client.models.register(name, "folder")
            with pytest.raises(Unavailable):
                client.models.rollback(name)
            with pytest.raises(Unavailable):
                client.models.history(name)
            info = client.models.info(name)
            assert (info.version, info.versions) == ("1", ["2", "1"])
            hide("hidden", "model_changes")
            assert client.models.register(name, "folder", alias="default").version == "3"
            assert [change.kind for change in client.models.history(name)] == ["alias", "register", "alias"]


def test_lists_are_told_page_by_page(client: Client, peer: Peer, name: str) -> None:
    first = client.call("model.list", {"name": name, "limit": 2}).data
    assert [entry["model_id"] for entry in first["models"]] == [f"{name}:1", f"{name}:2"]
    assert first["more"]
    rest = client.models.list(name, after=f"{name}:2")
    assert [entry["model_id"] for entry in rest.models] == [f"{name}:3"]
    assert not rest.more


def test_a_history_of_long_lines_fits_into_an_answer(client: Client, peer: Peer, name: str) -> None:
    text = "x" * 9_000
    for number in range(40):
        client.models.put_metadata(name, {"description": f"{number} {text}", "user": {"text": text}})
    told: list[str] = []
    data: dict[str, Any] = {"name": name, "limit": 1000}
    while True:
        page = client.fetch(HistoryResult, "model.history", data)
        told += [change.after["description"].split()[0] for change in page.changes]
        if not page.more:
            break
        data["before"] = page.changes[-1].change_id
    assert told == [str(number) for number in reversed(range(40))]
    assert len(page.changes) < 40


def test_a_version_that_another_model_falls_back_to_is_not_taken_out(client: Client, peer: Peer, name: str) -> None:
    client.models.register(name, "folder")
    peer.offer({f"{name}:{version}": PREDICTS for version in (1, 2, 3, 4)} | {f"{name}-other:1": PREDICTS})
    client.models.set_traffic(f"{name}-other", fallbacks=[f"models:/{name}/4"])
    with pytest.raises(RequestConflict, match=f"the fallbacks of {name}-other"):
        client.models.delete_version(name, "4")
