"""`worker.*`: the fleet."""

from typing import Any

from protocol.messages import Name
from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.system import NoData


class WorkerRef(ActionData):
    worker_id: Name


class WorkerInfo(ResultData):
    worker_id: str
    status: str  # ready, busy, draining
    device: dict[str, Any]  # {device_id, kind, memory_total, memory_free}, bytes
    slots: int
    light_slots: int = 0  # beside those, for light jobs alone
    jobs: list[str]  # job_ids it holds
    resident_models: list[str]
    quantum_age_ms: int  # since its device thread last came up for air
    last_seen_ms: int  # since its last message


class WorkerListResult(ResultData):
    workers: list[WorkerInfo]


ACTIONS = [
    Action("worker.list", "orchestrator", NoData, WorkerListResult, "The connected workers."),
    Action("worker.drain", "orchestrator", WorkerRef, WorkerInfo, "Let a worker finish its jobs and leave."),
]
