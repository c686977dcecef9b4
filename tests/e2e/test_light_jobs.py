"""Predictions have slots of their own: what takes a worker's ordinary slots does not hold them up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from orchestrator.client import Client
from protocol.schemas.model import ModelInfo
from tests.e2e.house import House, eventually
from tests.instructors import onnx_models

LIGHT_SLOTS, AT_ONCE = 4, 40


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """One worker with one slot."""
    with House(heartbeat_ms=200) as started:
        models = started.folder / "models"
        onnx_models.affine(models / "double/model.onnx", 2, 0)
        onnx_models.affine(models / "triple/model.onnx", 3, 0)
        started.start_orchestrator()
        started.start_worker("w", "--models", str(models), "--slots", "1", "--light-slots", str(LIGHT_SLOTS))
        started.wait_for_workers("w")
        yield started


def predict(client: Client, number: int, model_id: str = "double") -> float:
    made = client.predict(model_id, {"x": np.full((1, 2), number, np.float32)}, timeout_s=30)
    return float(made.outputs["y"][0, 0])


@pytest.mark.timeout(90)
def test_predictions_are_answered_while_the_slot_is_taken(house: House) -> None:
    client = house.client()
    assert predict(client, 1) == 2.0  # it is loaded now
    long, waiting = (client.submit("system.noop", {"sleep_ms": 60_000}) for _ in range(2))
    eventually(lambda: client.stats().jobs.get("processing") == 1)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(lambda number: predict(client, number), range(100, 100 + AT_ONCE))) == [
            2.0 * number for number in range(100, 100 + AT_ONCE)
        ]
    stats = client.stats()
    assert (stats.jobs["processing"], stats.queued, stats.workers_free) == (1, 1, 0)
    [worker] = client.workers()
    assert (worker.status, worker.slots, worker.light_slots, worker.jobs) == ("busy", 1, LIGHT_SLOTS, [long.job_id])

    data = {"model_id": "double", "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 2], "data": bytes(8)}]}
    [prediction] = client.validate("inference.predict", data).workers
    [other] = client.validate("system.noop").workers
    assert prediction.start_ms == 0
    assert other.start_ms > 0
    for job in (waiting, long):
        job.cancel()


@pytest.mark.timeout(90)
def test_predictions_are_counted(house: House) -> None:
    client = house.client()

    def counted() -> ModelInfo:
        return client.fetch(ModelInfo, "model.info", {"model_id": "triple"})

    for number in (1, 2, 2):  # the last is answered without computing
        assert predict(client, number, "triple") == 3.0 * number
    eventually(lambda: counted().totals.cache_hits == 1)  # with a heartbeat
    info = counted()
    [device] = info.per_device
    assert (device.worker_id, device.inference_count, device.items, device.loads, device.failures) == ("w", 2, 2, 1, 0)
    assert (device.batches, device.mean_batch_size, device.cache_misses) == (2, 1.0, 2)
    assert info.totals.cache_hit_rate == 0.3333
    assert device.p50_ms is not None
    assert 0 < device.p50_ms < 1000
