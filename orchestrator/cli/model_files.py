"""`atelier models discover` and `validate`: what lies in the folders of models, and whether it is sound."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import (
    connect_option,
    connected,
    in_units,
    json_option,
    print_facts,
    print_json,
    print_table,
)
from orchestrator.cli.group import FAILED, end
from orchestrator.cli.loras import pin, worker_option

if TYPE_CHECKING:
    from protocol.schemas.model_files import DiscoveredModel, ModelValidateResult


@click.command()
@click.option("--folder", "folders", metavar="LABEL", multiple=True, help="Look into this one only (repeatable).")
@click.option("--type", "types", metavar="TYPE", multiple=True, help="Show these only: lora, vae, … (repeatable).")
@click.option("--family", "families", metavar="FAMILY", multiple=True, help="Show these only: sdxl, … (repeatable).")
@worker_option
@json_option
@connect_option
def discover(
    folders: Sequence[str],
    types: Sequence[str],
    families: Sequence[str],
    worker_id: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """List what lies in a worker's folders of models, judged by content.

    Other folders than the model folder are named in its catalogue.toml.

    Example: atelier models discover --type lora --family sdxl
    """
    given = {"folders": folders, "types": types, "families": families}
    with connected(connect) as client:
        chosen: Any = {name: list(value) for name, value in given.items() if value}
        found = client.models.discover(**chosen, **pin(worker_id))
    if as_json:
        print_json(list(found))
    else:
        _print_found(found)


def _print_found(found: "Sequence[DiscoveredModel]") -> None:
    rows = [
        (
            model.name,
            model.type.replace("_", " "),
            " ".join(filter(None, (model.family, *model.variants))),
            model.dtype,
            in_units(model.nbytes),
            model.id,
            model.problem,
        )
        for model in found
    ]
    print_table(("NAME", "TYPE", "FAMILY", "DTYPE", "SIZE", "ID", "PROBLEM"), rows, "No models in these folders.")


@click.command("validate")
@click.argument("model_id", metavar="NAME")
@click.option("--deep", is_flag=True, help="Also load it, and run it once.")
@click.option("--no-values", "without_values", is_flag=True, help="Do not look for NaN in the weights; quicker.")
@worker_option
@json_option
@connect_option
def validate_model(
    model_id: str, deep: bool, without_values: bool, worker_id: str | None, as_json: bool, connect: str | None
) -> None:
    """Check a model's files. NAME is a model's id, or a name that `atelier models discover` shows.

    Exit code 1: it cannot be used as it is.

    Example: atelier models validate demo --deep
    """
    with connected(connect) as client:
        found = client.models.validate(model_id, deep=deep, values=not without_values, **pin(worker_id))
    if as_json:
        print_json(found)
    else:
        _print_report(found)
    if not found.is_valid:
        end(f"{model_id} cannot be used as it is.", FAILED)


def _print_report(found: "ModelValidateResult") -> None:
    rows = [
        (
            name,
            details["status"],
            ", ".join(f"{key}: {_plain(value)}" for key, value in details.items() if key != "status"),
        )
        for name, details in found.validation_details.items()
    ]
    print_facts({"model": found.name, "type": found.type})
    click.echo()
    print_table(("CHECK", "RESULT", "FOUND"), rows, "")
    if found.issues:
        click.echo()
        issues = [(issue.severity, issue.code, issue.message, issue.remedy) for issue in found.issues]
        print_table(("ISSUE", "CODE", "WHAT IS WRONG", "WHAT TO DO"), issues, "")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
