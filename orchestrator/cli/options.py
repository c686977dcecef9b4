"""The orchestrator's settings as options: one per setting, under its own name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(command: F) -> F:
    """Add `--config` and an option for every setting; what is not given is None."""
    for name, field in reversed(Settings.model_fields.items()):
        command = click.option(flag(name), name, metavar="VALUE", help=field.description)(command)
    path = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("--config", type=path, help="The settings file.  [default: atelier.toml here]")(command)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_arguments(config: Path | None, given: dict[str, Any]) -> list[str]:
    """The same options for another command line."""
    named = {"config": config and str(config), **given}
    return [part for name, value in named.items() if value is not None for part in (flag(name), value)]
