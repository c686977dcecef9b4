"""`atelier loras`."""

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import connect_option, connected, in_units, json_option, print_json, print_table
from orchestrator.cli.group import LazyGroup

if TYPE_CHECKING:
    from protocol.schemas.lora import LoraInfo


@click.group(
    cls=LazyGroup,
    lazy={
        "list": ("orchestrator.cli.loras:list_loras", "List the LoRAs of a worker."),
        "load": ("orchestrator.cli.loras:load", "Load a LoRA before a request needs it."),
        "unload": ("orchestrator.cli.loras:unload", "Free the memory of a LoRA."),
    },
)
def loras() -> None:
    """List, load and unload LoRAs: small changes to a model.

    Example: atelier loras list
    """


worker_option = click.option("--worker", "worker_id", metavar="ID", help="Which worker.  [default: any]")


@click.command("list")
@worker_option
@json_option
@connect_option
def list_loras(worker_id: str | None, as_json: bool, connect: str | None) -> None:
    """List the LoRAs of a worker.

    Example: atelier loras list --json
    """
    with connected(connect) as client:
        found = client.loras.list(**pin(worker_id))
    if as_json:
        print_json(found)
    else:
        _print_loras(found)


@click.command()
@click.argument("lora_id")
@click.option("--model", "model_id", metavar="NAME", help="The model it is for.  [default: the server's]")
@worker_option
@json_option
@connect_option
def load(lora_id: str, model_id: str | None, worker_id: str | None, as_json: bool, connect: str | None) -> None:
    """Load a LoRA before a request needs it.

    Example: atelier loras load hollow --model demo
    """
    with connected(connect) as client:
        lora = client.loras.load(lora_id, model_id, **pin(worker_id))
    if as_json:
        print_json(lora)
    else:
        _print_loras([lora])


@click.command()
@click.argument("lora_id")
@worker_option
@json_option
@connect_option
def unload(lora_id: str, worker_id: str | None, as_json: bool, connect: str | None) -> None:
    """Free the memory of a LoRA; a request that names it loads it again.

    Example: atelier loras unload hollow
    """
    with connected(connect) as client:
        lora = client.loras.unload(lora_id, **pin(worker_id))
    if as_json:
        print_json(lora)
    else:
        _print_loras([lora])


def pin(worker_id: str | None) -> dict[str, Any]:
    return {"worker_id": worker_id} if worker_id else {}


def _print_loras(found: "list[LoraInfo]") -> None:
    rows = [
        (
            lora.lora_id,
            lora.format,
            lora.rank,
            ", ".join(lora.targets),
            lora.base_model,
            ", ".join(lora.trigger_words),
            in_units(lora.nbytes),
            "yes" if lora.loaded else "no",
            lora.problem,
        )
        for lora in found
    ]
    headers = ("LORA", "FORMAT", "RANK", "CHANGES", "BASE MODEL", "TRIGGER WORDS", "SIZE", "LOADED", "PROBLEM")
    print_table(headers, rows, "No LoRAs in the worker's model folder.")
