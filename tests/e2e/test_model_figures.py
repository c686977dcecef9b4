"""What was run of a model is counted, through the death of a worker's process and of the orchestrator."""

import pytest

from orchestrator.client import Client, Result
from protocol.schemas.model import ModelInfo
from tests.e2e.house import ROOT, House, eventually

PICTURE = {"prompt": "a red circle", "steps": 1}


@pytest.mark.timeout(120)
def test_pictures_are_counted_once_whatever_dies() -> None:
    with House(models_dir=ROOT / "models", heartbeat_ms=200) as house:
        worker = house.start_worker("w", "--models", str(ROOT / "models"), "--light-slots", "5")
        house.start_orchestrator()
        house.wait_for_workers("w")
        client = house.client(timeout_s=60)

        def counted() -> tuple[int, int]:
            figures = client.stats().inference
            return figures.inference_count, figures.loads

        [info] = client.workers()
        assert (info.slots, info.light_slots) == (1, 5)
        assert counted() == (0, 0)
        elapsed_ms = sum(ran.timing.running_ms for ran in [_paint(client, 2), _paint(client, 1)] if ran.timing)
        eventually(lambda: counted() == (3, 1))
        figures = client.stats().inference
        assert figures.avg_ms is not None
        assert figures.p99_ms is not None
        assert 0 < figures.avg_ms <= figures.p99_ms * 1.04
        assert 3 * figures.avg_ms <= 2 * elapsed_ms + 1  # the two pictures of one job, side by side
        assert (figures.failures, figures.mean_batch_size, figures.cache_hit_rate) == (0, None, None)

        [device] = client.fetch(ModelInfo, "model.info", {"model_id": "demo"}).per_device
        assert (device.worker_id, device.device_id, device.kind) == ("w", "cpu", info.device["kind"])
        assert (device.inference_count, device.resident, device.last_reloaded_at) == (3, True, None)
        assert device.nbytes is not None
        assert device.nbytes > 1_000_000
        assert device.last_loaded_at is not None

        worker.child.kill()  # its next process counts from nought
        eventually(lambda: client.workers() == [] or client.stats().workers_free == 1, 30)
        _paint(client, 1)
        eventually(lambda: counted() == (4, 2), 20)
        told = client.fetch(ModelInfo, "model.info", {"model_id": "demo"})
        assert [device.inference_count for device in told.per_device] == [1]
        assert told.totals == client.stats().inference

        assert house.orchestrator is not None
        house.orchestrator.kill()  # nothing of it is stored: the worker tells what it has counted itself
        house.start_orchestrator()
        house.wait_for_workers("w")
        eventually(lambda: counted() == (1, 1), 20)


def _paint(client: Client, pictures: int) -> Result:
    return client.run("inference.text2img", {**PICTURE, "num_images": pictures}, timeout_s=60)
