"""Which version a request gets, by name, alias, traffic and fallbacks: a real server, and workers made for tests."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from orchestrator.client import Blob, Client
from protocol.errors import ModelNotFound, NoCapableWorker, OutOfMemory, RequestConflict
from protocol.ids import new_id
from protocol.schemas.model import ShadowStats
from tests.e2e.house import House, eventually
from tests.e2e.peer import Data, Peer, hold

PREDICT = "inference.predict"
PREDICTS = [PREDICT]
ONE = [{"name": "x", "dtype": "float32", "shape": [1], "data": b"\0\0\0\0"}]


def answer(data: Data, frames: list[bytes]) -> Data:
    """The id that it was asked for, as version; `told` are parameters of the request."""
    output = {"name": "y", "dtype": "float32", "shape": [1], "data": b"\0\0\0\0"}
    return {"model_id": data["model_id"], "outputs": [output], "predictions": [], "inference_time_ms": 1.0}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """It soon trusts that no other worker is on its way."""
    with House(adoption_ms=100) as started:
        started.start_orchestrator()
        yield started


@pytest.fixture
def peer(house: House, client: Client) -> Iterator[Peer]:
    """With versions 1, 2, 10 of `m`, and `plain`, which has none. No traffic and no aliases are left behind."""
    models = {"m:1": PREDICTS, "m:2": PREDICTS, "m:10": PREDICTS, "plain": PREDICTS, "demo": ["inference.text2img"]}
    with Peer(house, "w", models, {PREDICT: answer}, slots=64) as started:
        yield started
        started.offer(models)
        client.models.set_traffic("m")
        client.models.set_traffic("plain")
        for alias in {alias for entry in client.models.list().models for alias in entry["aliases"]}:
            client.models.set_alias("m", alias, None)
    house.wait_for_workers(gone=["w"])


def asked_of(client: Client, model_id: str | None, **more: object) -> str:
    """The model that answered."""
    options = {name: more.pop(name) for name in ("session_id", "request_id", "device_id") if name in more}
    data = {"inputs": ONE, **({} if model_id is None else {"model_id": model_id}), **more}
    return str(client.run(PREDICT, data, timeout_s=20, **options).data["model_id"])  # type: ignore[arg-type]


def test_a_name_alone_is_its_newest_version(client: Client, peer: Peer) -> None:
    assert asked_of(client, "m") == "m:10"
    assert asked_of(client, "models:/m") == "m:10"
    assert asked_of(client, "plain") == "plain"


def test_a_version_is_that_version(client: Client, peer: Peer) -> None:
    assert asked_of(client, "m:2") == "m:2"
    assert asked_of(client, "models:/m/1") == "m:1"


def test_an_alias_is_what_it_points_to(client: Client, peer: Peer) -> None:
    client.models.set_alias("m", "prod", "1")
    assert asked_of(client, "m@prod") == "m:1"
    assert asked_of(client, "models:/m@prod") == "m:1"
    assert asked_of(client, "m") == "m:10"
    client.models.set_alias("m", "default", "2")
    assert asked_of(client, "m") == "m:2"


def test_a_name_may_be_a_default_of_a_session_and_be_asked_about(client: Client, peer: Peer) -> None:
    client.models.set_alias("m", "prod", "1")
    session = client.sessions.create(defaults={"model_id": "m@prod"}).session_id
    assert asked_of(client, None, session_id=session) == "m:1"
    told = client.validate(PREDICT, {"model_id": "m@prod", "inputs": ONE})
    assert (told.runs, told.data["model_id"]) == (True, "m:1")
    refused = client.validate(PREDICT, {"model_id": "m@prd", "inputs": ONE})
    assert refused.error is not None
    assert refused.error["details"]["nearest"] == "m@prod"


def test_a_stage_is_the_alias_of_its_name_and_is_warned_of(client: Client, peer: Peer, house: House) -> None:
    client.models.set_alias("m", "production", "2")
    assert asked_of(client, "models:/m/Production") == "m:2"
    assert house.orchestrator is not None
    assert "stages are no longer used" in house.orchestrator.log


@pytest.mark.parametrize(
    ("asked", "near"),
    [("m:3", "m:2"), ("m@production", None), ("m:", None), ("plian", "plain"), ("plain:1", "plain"), ("m@", None)],
)
def test_what_is_not_there_is_told_with_the_nearest(client: Client, peer: Peer, asked: str, near: str | None) -> None:
    with pytest.raises(ModelNotFound) as caught:
        asked_of(client, asked)
    if near is not None:
        assert caught.value.details["nearest"] in (near, "m:1")
    assert peer.asked(PREDICT) == []


def test_an_unknown_alias_is_told_with_the_nearest(client: Client, peer: Peer) -> None:
    client.models.set_alias("m", "prod", "1")
    with pytest.raises(ModelNotFound, match="no such alias") as caught:
        asked_of(client, "m@prd")
    assert caught.value.details["nearest"] == "m@prod"


def test_a_request_that_names_none_gets_the_model_of_its_action() -> None:
    models = {"only:3": PREDICTS, "only:4": PREDICTS, "demo": ["inference.text2img"]}
    with House() as own, own.client() as client:
        own.start_orchestrator()
        with Peer(own, "alone", models, {PREDICT: answer, "inference.text2img": answer}):
            assert asked_of(client, None) == "only:4"
            assert client.run("inference.text2img", {"prompt": "x"}).data["model_id"] == "demo"


def test_the_result_of_a_durable_job_is_of_the_version_it_was_accepted_with(client: Client, peer: Peer) -> None:
    client.models.set_alias("m", "prod", "1")
    peer.answers[PREDICT] = hold
    request_id = new_id()
    data = {"model_id": "m@prod", "inputs": ONE}
    job = client.submit(PREDICT, data, wait=False, request_id=request_id)
    peer.wait_for(PREDICT)
    client.models.set_alias("m", "prod", "2")
    again = client.submit(PREDICT, data, wait=False, request_id=request_id)
    assert again.job_id == job.job_id
    assert [asked["model_id"] for asked in peer.asked(PREDICT)] == ["m:1"]
    client.models.set_alias("m", "prod", None)
    assert client.submit(PREDICT, data, wait=False, request_id=request_id).job_id == job.job_id  # it has no model now
    with pytest.raises(RequestConflict):
        client.submit(PREDICT, {**data, "model_id": "m:1"}, wait=False, request_id=request_id)
    job.cancel()


def test_a_split_sticks_to_the_key_then_the_session_then_the_request(client: Client, peer: Peer) -> None:
    client.models.set_traffic("m", {"1": 50, "2": 50})
    by_key = {key: asked_of(client, "m", routing_key=key) for key in map(str, range(20))}
    assert set(by_key.values()) == {"m:1", "m:2"}
    assert all(asked_of(client, "m", routing_key=key) == found for key, found in by_key.items())
    session = client.sessions.create().session_id
    assert len({asked_of(client, "m", session_id=session) for _ in range(10)}) == 1
    assert len({asked_of(client, "m") for _ in range(30)}) == 2
    assert asked_of(client, "m:10") == "m:10"  # it names a version


def test_a_split_sticks_across_a_restart() -> None:
    models = {"s:1": PREDICTS, "s:2": PREDICTS}
    with House() as own, own.client() as client:
        own.start_orchestrator()
        with Peer(own, "w", models, {PREDICT: answer}, slots=64):
            client.models.set_traffic("s", {"1": 70, "2": 30})
            before = {key: asked_of(client, "s", routing_key=key) for key in map(str, range(40))}
        assert own.orchestrator is not None
        own.orchestrator.kill()
        own.start_orchestrator()
        with Peer(own, "w", models, {PREDICT: answer}, slots=64):
            assert {key: asked_of(client, "s", routing_key=key) for key in before} == before
    assert set(before.values()) == {"s:1", "s:2"}


def test_a_name_asked_for_before_any_worker_came_runs_when_one_does() -> None:
    with House() as own, own.client() as client:
        own.start_orchestrator()
        job = client.submit(PREDICT, {"model_id": "late", "inputs": ONE})
        time.sleep(0.1)
        with Peer(own, "w", {"late:1": PREDICTS}, {PREDICT: answer}):
            assert job.result(10).data["model_id"] == "late"  # the worker takes its newest


def test_actions_about_models_are_not_shared_out(client: Client, peer: Peer) -> None:
    client.models.set_traffic("m", {"1": 100})
    assert asked_of(client, "m") == "m:1"
    assert client.models.info("m").version == "10"


# --- fallbacks and policy ---------------------------------------------------------------------------------------


def test_the_first_of_the_chain_that_a_worker_has(client: Client, peer: Peer) -> None:
    client.models.set_alias("m", "prod", "2")
    client.models.set_traffic("m", {"10": 100}, fallbacks=["m@prod", "plain"])
    assert asked_of(client, "m") == "m:10"
    assert peer.asked(PREDICT)[-1]["fallbacks"] == ["m:2", "plain"]
    peer.offer({"m:1": PREDICTS, "m:2": PREDICTS, "plain": PREDICTS})
    assert asked_of(client, "m") == "m:2"
    assert peer.asked(PREDICT)[-1]["fallbacks"] == ["plain"]
    peer.offer({"plain": PREDICTS})
    assert asked_of(client, "m") == "plain"
    assert peer.asked(PREDICT)[-1]["fallbacks"] == []


def test_a_model_that_cannot_do_what_is_asked_is_no_fallback(client: Client, peer: Peer) -> None:
    client.models.set_traffic("plain", fallbacks=["demo", "m:1"])
    peer.offer({"demo": ["inference.text2img"], "m:1": PREDICTS})
    assert asked_of(client, "plain") == "m:1"


def test_a_request_may_bring_its_own_fallbacks(client: Client, peer: Peer) -> None:
    client.models.set_alias("m", "prod", "2")
    assert asked_of(client, "gone", fallbacks=["m@prod", "plain"]) == "m:2"
    assert peer.asked(PREDICT)[-1]["fallbacks"] == ["plain"]
    assert asked_of(client, "plain", fallbacks=["m@nothing", "m:1"]) == "plain"
    assert peer.asked(PREDICT)[-1]["fallbacks"] == ["m:1"]
    with pytest.raises(ModelNotFound):
        asked_of(client, "gone", fallbacks=["gone", "too"])


def test_a_policy_names_devices(client: Client, peer: Peer, house: House) -> None:
    client.models.set_traffic("m", {"1": 100}, fallbacks=["m:2"], policy={"devices": ["cuda"]})
    with pytest.raises(NoCapableWorker, match="policy"):
        asked_of(client, "m")
    gpus = [
        Peer(house, f"gpu{index}", {f"m:{index}": PREDICTS}, {PREDICT: answer}, device=f"cuda:{index}")
        for index in (1, 2)
    ]
    try:
        assert asked_of(client, "m") == "m:1"
        assert len(gpus[0].asked(PREDICT)) == 1  # not the one on the CPU, which has it too
        gpus[0].close()
        house.wait_for_workers(gone=["gpu1"])
        assert asked_of(client, "m") == "m:2"
        assert len(gpus[1].asked(PREDICT)) == 1
    finally:
        for gpu in gpus[1:]:
            gpu.close()
    house.wait_for_workers(gone=["gpu1", "gpu2"])


def test_a_policy_names_a_cost(client: Client, peer: Peer) -> None:
    client.models.put_metadata("m", {"cost": 5.0})
    client.models.put_metadata("m", {"cost": 1.0}, "2")
    client.models.set_traffic("m", {"10": 100}, fallbacks=["m:2"], policy={"cost_max": 2.0})
    assert asked_of(client, "m") == "m:2"
    client.models.put_metadata("m", {"cost": None})
    client.models.put_metadata("m", {"cost": None}, "2")
    with pytest.raises(NoCapableWorker):
        asked_of(client, "m")


def test_a_policy_names_a_latency(client: Client, peer: Peer) -> None:
    peer.running_ms = {"m:10": 800, "m:2": 5}
    assert asked_of(client, "m:10") == "m:10"
    assert asked_of(client, "m:2") == "m:2"
    client.models.set_traffic("m", {"10": 100}, fallbacks=["m:2"], policy={"latency_ms_max": 100})
    assert asked_of(client, "m") == "m:2"
    client.models.set_traffic("m", {"10": 100}, fallbacks=["m:2"], policy={"latency_ms_max": 1000})
    assert asked_of(client, "m") == "m:10"


# --- shadows ----------------------------------------------------------------------------------------------------


def test_a_shadow_gets_the_same_request_and_is_compared(client: Client, peer: Peer) -> None:
    def differing(data: Data, frames: list[bytes]) -> Data:
        result = answer(data, frames)
        if data["model_id"] == "m:2":
            result["outputs"] = [{**result["outputs"][0], "data": b"\0\0\x80\x3f"}]  # 1.0
        return result

    def told() -> ShadowStats | None:
        return client.models.info("m:2").shadow

    peer.answers[PREDICT] = differing
    client.models.set_traffic("m", {"1": 100}, shadow={"version": "2", "fraction": 1.0})
    found = [asked_of(client, "m", routing_key=str(number)) for number in range(5)]
    assert found == ["m:1"] * 5
    eventually(lambda: (shadow := told()) is not None and shadow.compared + shadow.dropped == 5)
    shadow = told()
    assert shadow is not None
    assert shadow.compared > 0
    assert (shadow.equal, shadow.differing, shadow.failed) == (0, shadow.compared, 0)
    assert (shadow.max_abs_diff, shadow.equal_share) == (1.0, 0.0)
    copies = [assign for assign in peer.assigns if assign["data"].get("model_id") == "m:2"]
    assert {copy["priority"] for copy in copies} == {0}
    assert all(copy["request_id"].startswith("errand.") for copy in copies)
    keys = {data["routing_key"] for data in peer.asked(PREDICT) if data["model_id"] == "m:2"}
    assert keys <= set(map(str, range(5)))


@pytest.mark.parametrize("wait", [True, False], ids=["in memory", "durable"])
def test_a_shadow_gets_the_attachments_too(client: Client, peer: Peer, wait: bool) -> None:
    seen: dict[str, list[bytes]] = {}

    def keeping(data: Data, frames: list[bytes]) -> Data:
        seen[data["model_id"]] = frames
        return answer(data, frames)

    peer.answers[PREDICT] = keeping
    client.models.set_traffic("m", {"1": 100}, shadow={"version": "2", "fraction": 1.0})
    content = b"\0\0\x80\x3f" * 50_000
    tensor = {"name": "x", "dtype": "float32", "shape": [50_000], "data": {"attachment": 0}}
    data = {"model_id": "m", "inputs": [tensor]}
    job = client.submit(PREDICT, data, wait=wait, attachments=[Blob(content)])
    assert job.result(20).data["model_id"] == "m:1"
    eventually(lambda: "m:2" in seen)
    assert seen == {"m:1": [content], "m:2": [content]}


def test_a_shadow_that_fails_harms_nobody(client: Client, peer: Peer) -> None:
    def failing(data: Data, frames: list[bytes]) -> Data:
        if data["model_id"] == "m:10":
            raise OutOfMemory
        return answer(data, frames)

    peer.answers[PREDICT] = failing
    client.models.set_traffic("m", {"1": 100}, shadow={"version": "10", "fraction": 1.0})
    assert asked_of(client, "m") == "m:1"
    eventually(lambda: (shadow := client.models.info("m:10").shadow) is not None and shadow.failed == 1)


def test_a_shadow_is_dropped_while_others_wait(client: Client, house: House) -> None:
    models = {"busy:1": PREDICTS, "busy:2": PREDICTS}
    held: list[bool] = [True]

    def noop(data: Data, frames: list[bytes]) -> Data:
        return hold(data, frames) if held[0] else data

    with Peer(house, "b", models, {PREDICT: answer, "system.noop": noop}, slots=1) as peer:
        client.models.set_traffic("busy", {"1": 100}, shadow={"version": "2", "fraction": 1.0})
        holding, waiting = (client.submit("system.noop", worker_id="b") for _ in range(2))
        peer.wait_for("system.noop")
        more = [client.submit("system.noop", worker_id="b", priority=0) for _ in range(5)]
        request = client.submit(PREDICT, {"model_id": "busy", "inputs": ONE})
        held[0] = False
        holding.cancel()
        assert request.result(10).data["model_id"] == "busy:1"
        for job in (waiting, *more):
            job.result(10)
        eventually(lambda: (shadow := client.models.info("busy:2").shadow) is not None and shadow.dropped == 1)
        assert [data["model_id"] for data in peer.asked(PREDICT)] == ["busy:1"]
    house.wait_for_workers(gone=["b"])


def test_a_part_of_the_requests_is_shadowed(client: Client, peer: Peer) -> None:
    client.models.set_traffic("m", {"1": 100}, shadow={"version": "2", "fraction": 0.3})
    before = client.models.info("m:2").shadow
    base = before.compared + before.dropped if before is not None else 0
    jobs = [client.submit(PREDICT, {"model_id": "m", "inputs": ONE}) for _ in range(100)]
    counts = Counter(job.result(20).data["model_id"] for job in jobs)
    assert counts == {"m:1": 100}

    def all_ended() -> bool:
        return not any(job.request_id.startswith("errand.") for job in client.jobs.list(status="processing"))

    eventually(all_ended)
    after = client.models.info("m:2").shadow
    assert after is not None
    assert 10 <= after.compared + after.dropped - base <= 50
