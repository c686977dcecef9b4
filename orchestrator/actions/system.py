"""`system.*`"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.actions.model import page
from orchestrator.clock import rfc3339
from protocol import PROTOCOL_VERSION

if TYPE_CHECKING:
    from orchestrator.broker import Broker

MODELS_MAX = 1000  # in one answer
LIMITS_TOLD = (
    "header_bytes_max",
    "attachments_max",
    "attachment_bytes_max",
    "frame_bytes_max",
    "connection_requests_max",
    "queue_jobs_max",
)


def ping(broker: "Broker", ask: Ask) -> dict[str, Any]:
    return {"time": rfc3339(broker.clock.now_ms())}


def info(broker: "Broker", ask: Ask) -> dict[str, Any]:
    return {
        "version": version("atelier"),
        "protocol": PROTOCOL_VERSION,
        "epoch": broker.epoch,
        "started_at": rfc3339(broker.started_ms),
        "limits": {name: getattr(broker.settings, name) for name in LIMITS_TOLD},
    }


def capabilities(broker: "Broker", ask: Ask) -> dict[str, Any]:
    actions = {action for worker in broker.core.fleet.by_id.values() for action in worker.profile.capability.actions}
    schedulers = sorted(broker.schedulers.values())
    return {"actions": sorted(actions), "models": page(broker.offers.listed(), MODELS_MAX)[0], "schedulers": schedulers}


def stats(broker: "Broker", ask: Ask) -> dict[str, Any]:
    core = broker.core
    counts: dict[str, int] = {}
    for job in core.jobs.values():
        counts[job.status.value] = counts.get(job.status.value, 0) + 1
    workers = core.fleet.by_id.values()
    return {
        "jobs": counts,
        "queued": core.queue.size,
        "workers": len(workers),
        "workers_free": sum(worker.free for worker in workers),
        "connections": core.askers.connections,
        "draining": core.draining,
        "inference": broker.model_stats.totals(),
    }


HANDLERS = {
    "system.ping": ping,
    "system.info": info,
    "system.capabilities": capabilities,
    "system.stats": stats,
}
