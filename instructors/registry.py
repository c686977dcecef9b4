"""Which actions this worker knows: each a schema (protocol.schemas) and a function that makes its task."""

import importlib
from collections.abc import Callable
from typing import Any

from instructors.task import Context, Task
from protocol.errors import UnknownAction
from protocol.schemas.base import Action, nearest, validate

MakeTask = Callable[[Any, Context], Task]  # (data as the action's schema, context)


class NoSuchModule(ValueError):
    """A module that was to add actions is not there."""


class Registry:
    """Actions by name."""

    def __init__(self) -> None:
        self._actions: dict[str, tuple[Action, MakeTask]] = {}

    def add(self, action: Action, make_task: MakeTask) -> None:
        if action.name in self._actions:
            raise ValueError(f"{action.name} is registered already")
        self._actions[action.name] = (action, make_task)

    @property
    def names(self) -> list[str]:
        return sorted(self._actions)

    def make_task(self, name: str, data: dict[str, Any], context: Context) -> Task:
        """The task for a request. Raises UnknownAction, InvalidRequest, and what the action finds wrong."""
        entry = self._actions.get(name)
        if entry is None:
            raise UnknownAction("This worker has no such action.", details={"nearest": nearest(name, self._actions)})
        action, make = entry
        return make(validate(action.data, data), context)


def load(modules: list[str]) -> Registry:
    """The built-in actions and those of further modules, each of which has a `register(registry)`.

    Raises NoSuchModule.
    """
    registry = Registry()
    for name in ["instructors.system", "instructors.inference", *modules]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise NoSuchModule(f"the module {name!r} cannot be imported: {error}") from error
        module.register(registry)
    return registry
