"""`model.*`: what the fleet can run."""

from typing import Any

from protocol.schemas.base import Action, ResultData
from protocol.schemas.system import NoData


class ModelListResult(ResultData):
    """What can be asked for by name."""

    models: list[dict[str, Any]]
    # {model_id, family, actions, content_hash, nbytes, workers, resident_on: [worker_id]}; `nbytes`: what the weights
    # take on one of the workers' devices, null: not known
    default_model_id: str | None = None  # of pictures, where a request names none
    default_model_ids: dict[str, str] = {}  # action -> the model of requests that name none


ACTIONS = [
    Action("model.list", "orchestrator", NoData, ModelListResult, "Models of the connected workers."),
]
