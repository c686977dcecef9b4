"""`model.*`"""

from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask

if TYPE_CHECKING:
    from orchestrator.broker import Broker


def list_models(broker: "Broker", ask: Ask) -> dict[str, Any]:
    return {"models": broker.fleet_models(), "default_model_id": broker.default_model_id()}


HANDLERS = {"model.list": list_models}
