"""Which figures of its models a worker tells in its heartbeats."""

from typing import Any

from protocol.messages import HeartbeatAck, Rehello, Welcome
from tests.worker.fakes import FakeClock, Fakes, Work


def told(fakes: Fakes) -> dict[str, Any]:
    """The next heartbeat's count of each model in it."""
    fakes.session._send_heartbeat()
    return {figures["model_id"]: figures["inference_count"] for figures in fakes.link.sent[-1]["models"]}


def acknowledge(fakes: Fakes, beat: int = -1, epoch: str = "e") -> None:
    """The orchestrator has got this one of the heartbeats."""
    upto = [sent for sent in fakes.link.sent if sent["kind"] == "heartbeat"][beat]["models_upto"]
    fakes.hear(HeartbeatAck(orchestrator_epoch=epoch, models_upto=upto))


def test_figures_are_told_until_they_are_acknowledged() -> None:
    fakes = Fakes(FakeClock())
    statistics = fakes.place.statistics
    assert told(fakes) == {}
    statistics.ran("a", 0.01)
    assert told(fakes) == {"a": 1}
    statistics.ran("b", 0.01)
    assert told(fakes) == {"a": 1, "b": 1}
    acknowledge(fakes, -2)  # the one with a only; the one after it may have been lost
    assert told(fakes) == {"b": 1}
    statistics.ran("a", 0.01)
    acknowledge(fakes)
    assert told(fakes) == {"a": 2}
    acknowledge(fakes)
    assert told(fakes) == {}
    acknowledge(fakes, 0)  # late
    assert told(fakes) == {}


def test_an_orchestrator_that_acknowledges_no_figures_gets_them_each_time() -> None:
    fakes = Fakes(FakeClock())
    fakes.place.statistics.ran("a", 0.01)
    for _ in range(3):
        assert told(fakes) == {"a": 1}
        fakes.hear(HeartbeatAck(orchestrator_epoch="e"))


def test_another_run_of_the_orchestrator_is_told_everything() -> None:
    fakes = Fakes(FakeClock())
    fakes.place.statistics.ran("a", 0.01)
    told(fakes)
    acknowledge(fakes)
    for epoch, expected in (("e", {}), ("later", {"a": 1})):
        fakes.hear(Rehello(orchestrator_epoch=epoch))
        fakes.hear(Welcome(worker_id="w", orchestrator_epoch=epoch, heartbeat_ms=1000, lease_ms=10_000))
        assert told(fakes) == expected


def test_loading_is_counted_by_the_models_own_name() -> None:
    fakes = Fakes(FakeClock())
    fakes.assign("j1", Work(models=("m:1", "lora/style")))
    fakes.run()
    fakes.assign("j2", Work(models=("m:1",)))  # it is loaded already
    fakes.run()
    fakes.session._send_heartbeat()
    [figures] = fakes.link.sent[-1]["models"]
    assert (figures["model_id"], figures["loads"], figures["nbytes"]) == ("m:1", 1, 10)
    assert figures["reloaded_at_ms"] is None
