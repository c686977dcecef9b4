"""Benchmarks of models that have ended well: kept, so that they can be compared over time."""

from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from orchestrator.core.model import Job
from orchestrator.store import BenchmarkRow
from protocol.codec import pack
from protocol.enums import Status
from protocol.schemas.model_worker import ModelBenchmarkResult

if TYPE_CHECKING:
    from orchestrator.broker import Broker

ACTION = "model.benchmark"

log = structlog.get_logger("orchestrator")


def keep(broker: "Broker", job: Job) -> None:
    """Write down what such a job has found; nobody waits for that. To be called when a job has ended, whatever it is;
    twice does no harm."""
    if job.requirement.action != ACTION or job.outcome is None or job.outcome.status is not Status.COMPLETED:
        return
    try:
        found = ModelBenchmarkResult.model_validate(job.outcome.data)
    except ValidationError:
        log.warning("a worker's benchmark cannot be read", job_id=job.job_id)
        return
    row = BenchmarkRow(
        tenant=job.tenant,
        model_id=found.model_id,
        job_id=job.job_id,
        at_ms=broker.clock.now_ms(),
        worker_id=job.outcome.worker_id,
        content_hash=found.content_hash,
        device_kind=found.device_kind,
        result=pack(found.model_dump()),
    )
    broker.store.write([row])
