"""`model.*`: what the fleet can run."""

from typing import Any

from protocol.schemas.base import Action, ResultData
from protocol.schemas.system import NoData


class ModelListResult(ResultData):
    """`models`: {model_id, family, actions, content_hash, workers: [worker_id], resident_on: [worker_id]}."""

    models: list[dict[str, Any]]
    default_model_id: str | None = None


ACTIONS = [
    Action("model.list", "orchestrator", NoData, ModelListResult, "Models of the connected workers."),
]
