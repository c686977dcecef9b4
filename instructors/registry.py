"""Which actions this worker knows: each a schema (protocol.schemas) and a function that makes its task."""

import importlib
from collections.abc import Callable
from typing import Any

from instructors.task import Context, Task
from protocol.errors import UnknownAction
from protocol.schemas.base import Action, nearest, validate

BUILT_IN = tuple(
    f"instructors.{name}"
    for name in (
        "system",
        "inference",
        "inpainting",
        "lora",
        "controlnet",
        "discover",
        "validate_model",
        "predict",
        "convert",
        "model",
        "benchmark",
        "fetch",
    )
)
MakeTask = Callable[[Any, Context], Task]  # (data as the action's schema, context)


class NoSuchModule(ValueError):
    """A module that was to add actions is not there."""


class Registry:
    """Actions by name."""

    def __init__(self) -> None:
        self._actions: dict[str, tuple[Action, MakeTask]] = {}
        self._sharing: set[str] = set()

    def add(self, action: Action, make_task: MakeTask, *, shares: bool = False) -> None:
        """`shares`: its tasks may be `SharedTask`s, so they are begun beside others."""
        if action.name in self._actions:
            raise ValueError(f"{action.name} is registered already")
        self._actions[action.name] = (action, make_task)
        if shares:
            self._sharing.add(action.name)

    def shares(self, name: str) -> bool:
        """Whether tasks of this action may share their quanta with others."""
        return name in self._sharing

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
    for name in [*BUILT_IN, *modules]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise NoSuchModule(f"the module {name!r} cannot be imported: {error}") from error
        module.register(registry)
    return registry
