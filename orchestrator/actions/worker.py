"""`worker.*`"""

from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.core import events as e
from orchestrator.core.fleet import Worker
from protocol.errors import NotFound

if TYPE_CHECKING:
    from orchestrator.broker import Broker


def list_workers(broker: "Broker", ask: Ask) -> dict[str, Any]:
    workers = sorted(broker.core.fleet.by_id.values(), key=lambda worker: worker.worker_id)
    return {"workers": [_info(worker, broker.clock.now_ms()) for worker in workers]}


def drain(broker: "Broker", ask: Ask) -> dict[str, Any]:
    worker = broker.core.fleet.by_id.get(ask.data.worker_id)
    if worker is None:
        raise NotFound("No worker of this name is connected.")
    broker.feed(e.DrainWorker(worker.worker_id))
    return _info(worker, broker.clock.now_ms())


def _info(worker: Worker, now_ms: int) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "status": worker.status,
        "device": {
            "device_id": worker.device_id,
            "kind": worker.profile.device_kind,
            "memory_total": worker.memory_total,
            "memory_free": worker.memory_free,
        },
        "slots": worker.slots,
        "light_slots": worker.light_slots,
        "jobs": sorted(worker.jobs),
        "resident_models": sorted(worker.profile.resident),
        "quantum_age_ms": worker.quantum_age_ms,
        "last_seen_ms": now_ms - worker.last_seen_ms,
    }


HANDLERS = {"worker.list": list_workers, "worker.drain": drain}
