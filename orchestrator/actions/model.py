"""`model.*`"""

from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from protocol.schemas import ACTIONS

if TYPE_CHECKING:
    from orchestrator.broker import Broker

PICTURES = "inference.text2img"


def list_models(broker: "Broker", ask: Ask) -> dict[str, Any]:
    asked = [action.name for action in ACTIONS.values() if "model_id" in action.data.model_fields]
    by_action = {name: broker.offers.default(name) for name in asked}
    defaults = {name: model_id for name, model_id in by_action.items() if model_id is not None}
    return {"models": broker.offers.listed(), "default_model_id": by_action[PICTURES], "default_model_ids": defaults}


HANDLERS = {"model.list": list_models}
