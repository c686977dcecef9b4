"""The `data` schema of every action, one file per domain; nowhere else is an action's shape told."""

from typing import Any

from protocol.errors import UnknownAction
from protocol.schemas import (
    artifact,
    controlnet,
    inference,
    job,
    lora,
    model,
    model_files,
    model_worker,
    predict,
    session,
    system,
    worker,
)
from protocol.schemas.base import Action, ActionData, ResultData, nearest, validate

ACTIONS: dict[str, Action] = {
    action.name: action
    for domain in (
        system,
        session,
        job,
        artifact,
        worker,
        model,
        model_files,
        model_worker,
        inference,
        predict,
        lora,
        controlnet,
    )
    for action in domain.ACTIONS
}


def find_action(name: str) -> Action:
    """The action of this name. Raises UnknownAction with the nearest known name."""
    action = ACTIONS.get(name)
    if action is None:
        raise UnknownAction("There is no such action.", details={"nearest": nearest(name, ACTIONS)})
    return action


def validate_data(name: str, data: dict[str, Any]) -> ActionData:
    """`data` of the named action as its model. Raises UnknownAction or InvalidRequest."""
    return validate(find_action(name).data, data)


__all__ = ["ACTIONS", "Action", "ActionData", "ResultData", "find_action", "nearest", "validate_data"]
