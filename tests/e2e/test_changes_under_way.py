"""Changes of the registry that take long, are asked for again, or meet what is half there."""

import threading
from collections.abc import Iterator

import pytest

from orchestrator.client import Client
from protocol.codec import unpack_header
from protocol.errors import InvalidRequest, ModelNotFound, OutOfMemory, RequestConflict
from protocol.ids import new_id
from tests.e2e.house import House, eventually
from tests.e2e.peer import Data, Peer, hold

PREDICT, LOAD, FETCH = "inference.predict", "model.load", "model.fetch"
PREDICTS = [PREDICT]
FETCHED = {"content_hash": "abc", "nbytes": 12, "metadata": {"family": "onnx", "type": "onnx"}}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House(adoption_ms=100) as started:
        started.start_orchestrator()
        yield started


@pytest.fixture
def name() -> str:
    """A model of this test's own."""
    return f"m-{new_id()[-12:]}"


@pytest.fixture
def peer(house: House, name: str) -> Iterator[Peer]:
    """With versions 1 and 2 of the test's model, the first of them loaded; it can load and fetch."""
    models = {f"{name}:{version}": PREDICTS for version in (1, 2)}
    answers = {LOAD: lambda data, frames: {}, FETCH: lambda data, frames: FETCHED}
    with Peer(house, "w", models, answers, resident=[f"{name}:1"]) as started:
        yield started
    house.wait_for_workers(gone=["w"])


def test_who_waits_for_a_long_change_hears_that_the_server_is_alive(house: House, peer: Peer, name: str) -> None:
    """Else a client takes its connection for lost, and sends the whole model again, every few seconds."""
    go_on = threading.Event()

    def fetch(data: Data, frames: list[bytes]) -> Data:
        go_on.wait(20)
        return FETCHED

    peer.answers[FETCH] = fetch
    raw = house.raw()
    raw.request("r", "model.register", {"name": name, "source": {"folder": "a"}})
    assert raw.socket.poll(5000), "the server said nothing"
    assert unpack_header(raw.socket.recv_multipart()[0])["kind"] == "alive"
    go_on.set()
    assert raw.answer()["data"]["version"] == "3"
    while raw.socket.poll(0):
        raw.socket.recv_multipart()
    assert not raw.socket.poll(600)  # it waits for nothing any more


def test_a_worker_that_leaves_keeps_no_alias_back(client: Client, house: House, peer: Peer, name: str) -> None:
    """It takes no more work, so it would not load the version before its last job ends."""
    client.models.set_alias(name, "default", "1")
    models = {f"{name}:1": PREDICTS, f"{name}:2": PREDICTS}
    with Peer(house, "leaving", models, {LOAD: hold, "system.noop": hold}, resident=[f"{name}:1"], slots=1) as leaving:
        busy = client.submit("system.noop", worker_id="leaving")
        leaving.wait_for("system.noop")
        go_on = threading.Event()
        peer.answers[LOAD] = lambda data, frames: {"waited": go_on.wait(10)}
        moving = client.core.ask("model.set_alias", {"name": name, "alias": "default", "version": "2"})
        peer.wait_for(LOAD)
        client.call("worker.drain", {"worker_id": "leaving"})
        go_on.set()
        assert client.core.wait(moving, 10).data["loaded_on"] == ["w"]
        assert client.models.set_alias(name, "default", "1", timeout_s=10).version == "1"
        assert leaving.asked(LOAD) == []
        busy.cancel()


def test_a_version_with_metadata_alone_is_not_registered(client: Client, peer: Peer, name: str) -> None:
    peer.offer({f"{name}:1": PREDICTS, f"{name}:2": PREDICTS, f"{name}:7": PREDICTS})
    client.models.put_metadata(name, {"description": "Put by hand.", "cost": 1.0}, "7")
    info = client.models.info(f"{name}:7")
    assert (info.registered, info.nbytes, info.metadata.description) == (False, 1, "Put by hand.")
    [entry] = [entry for entry in client.models.list(name).models if entry["model_id"] == f"{name}:7"]
    assert not entry["registered"]
    with pytest.raises(ModelNotFound, match="not registered"):
        client.models.delete_version(name, "7")
    made = client.models.register(name, "folder", version="7", metadata={"license": "MIT"})
    assert made.content_hash == "abc"
    told = client.models.get_metadata(name, "7")
    assert (told.metadata.license, told.metadata.description, told.metadata.family) == ("MIT", "Put by hand.", "onnx")
    assert told.revision == 2
    with pytest.raises(RequestConflict, match="registered already"):
        client.models.register(name, "folder", version="7")


def test_metadata_keeps_no_version_that_is_gone(client: Client, peer: Peer, name: str) -> None:
    peer.offer({f"{name}:1": PREDICTS, f"{name}:2": PREDICTS, f"{name}:7": PREDICTS})
    client.models.put_metadata(name, {"description": "Put by hand."}, "7")
    peer.offer({f"{name}:1": PREDICTS, f"{name}:2": PREDICTS})
    with pytest.raises(ModelNotFound) as caught:
        client.models.info(f"{name}:7")
    assert caught.value.details["known"] == [f"{name}:1", f"{name}:2"]
    assert client.models.info(name).version == "2"


def test_a_registration_whose_alias_stays_is_done_once(client: Client, house: House, peer: Peer, name: str) -> None:
    client.models.set_alias(name, "default", "1")

    def load(data: Data, frames: list[bytes]) -> Data:
        raise OutOfMemory

    peer.answers[LOAD] = load
    raw, request_id = house.raw(), new_id()
    data = {"name": name, "source": {"folder": "a"}, "alias": "default"}
    answers = []
    for _ in range(2):
        raw.request(request_id, "model.register", data)
        answers.append(raw.answer()["error"])
    assert answers[0] == answers[1]
    assert answers[0]["code"] == "out_of_memory"
    assert [change.subject for change in client.models.history(name)] == ["3", "default"]


def test_fallbacks_that_are_all_gone_are_told(client: Client, peer: Peer, name: str) -> None:
    peer.offer({f"{name}:1": PREDICTS, f"{name}-other:1": PREDICTS})  # so there is no default
    tensor = {"name": "x", "dtype": "float32", "shape": [1], "data": b"\0\0\0\0"}
    with pytest.raises(ModelNotFound):
        client.run(PREDICT, {"inputs": [tensor], "fallbacks": ["gone", f"{name}@gone"]})
    assert peer.asked(PREDICT) == []


def test_what_a_worker_warns_of_is_told_to_who_registers(client: Client, peer: Peer, name: str) -> None:
    warnings = ["Stages are no longer used; name the alias m@production."]
    peer.answers[FETCH] = lambda data, frames: {**FETCHED, "warnings": warnings}
    assert client.models.register(name, "models:/m/Production").warnings == warnings
    peer.answers[FETCH] = lambda data, frames: FETCHED
    assert client.models.register(name, "models:/m@production").warnings == []
    eventually(lambda: client.models.info(f"{name}:3").registered)


def test_one_field_that_is_too_long_costs_no_other(client: Client, peer: Peer, name: str) -> None:
    told = {"family": "onnx", "license": "MIT", "description": "x" * 10_001, "hashes": {"y" * 201: "0"}}
    peer.answers[FETCH] = lambda data, frames: {**FETCHED, "metadata": told}
    client.models.register(name, "folder")
    metadata = client.models.info(f"{name}:3").metadata
    assert (metadata.family, metadata.license, metadata.description, metadata.hashes) == ("onnx", "MIT", None, None)


def test_what_could_not_be_asked_for_by_its_id_is_not_registered(client: Client, peer: Peer) -> None:
    with pytest.raises(InvalidRequest, match="together"):
        client.models.register("m" * 190, "folder", version="1234567890")
    assert peer.asked(FETCH) == []
    assert len(client.models.register("m" * 190, "folder", version="123456789").model_id) == 200
