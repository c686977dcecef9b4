"""`atelier validate`."""

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import connect_option, connected, in_units, json_option, print_json, print_table, seconds
from orchestrator.cli.group import FAILED, end, told
from orchestrator.cli.picture_options import picture_options

if TYPE_CHECKING:
    from protocol.schemas.inference import ValidateResult


@click.command()
@picture_options
@json_option
@connect_option
def validate(prompt: str | None, as_json: bool, connect: str | None, **options: Any) -> None:
    """Ask whether a request would run, where, and how long; nothing is done. It takes the options of `generate`.

    Exit code 1: it would not run.

    Example: atelier validate "a red circle on a white background" --steps 50 --size 512
    """
    from orchestrator.cli.picture_request import request_of
    from protocol.errors import AtelierError

    request = request_of(prompt, options)
    fields = {"session_id": options["session_id"]} if options["session_id"] else {}
    with connected(connect) as client:
        found = client.validate(request.action, request.data, **fields)
    if as_json:
        print_json(found)
    elif found.runs:
        _print(found)
    if not found.runs:
        end(told(AtelierError.from_wire(found.error or {}))[0], FAILED)


def _print(found: "ValidateResult") -> None:
    rows = [
        (
            worker.worker_id,
            worker.device_id,
            seconds(worker.start_ms),
            "" if worker.warm else seconds(worker.load_ms),
            seconds(worker.run_ms),
            "" if worker.memory_bytes is None else in_units(worker.memory_bytes),
        )
        for worker in found.workers
    ]
    print_table(("WORKER", "DEVICE", "STARTS IN", "LOADS", "RUNS", "MEMORY"), rows, "It waits for a worker.")
    if not found.estimate_measured:
        click.echo("No such request has run yet: the times are guesses.", err=True)
