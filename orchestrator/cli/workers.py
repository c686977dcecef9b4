"""`atelier workers`."""

from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import connect_option, connected, in_units, json_option, print_json, print_table
from orchestrator.cli.group import LazyGroup

if TYPE_CHECKING:
    from protocol.schemas.worker import WorkerInfo


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    lazy={
        "list": ("orchestrator.cli.workers:list_workers", "List the connected workers."),
        "drain": ("orchestrator.cli.workers:drain", "Let a worker finish what it holds and leave."),
    },
)
@click.pass_context
def workers(ctx: click.Context) -> None:
    """List the workers (as does no command), or let one leave.

    Example: atelier workers
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_workers)


@click.command("list")
@json_option
@connect_option
def list_workers(as_json: bool = False, connect: str | None = None) -> None:
    """List the connected workers.

    Example: atelier workers list --json
    """
    with connected(connect) as client:
        found = client.workers()
    if as_json:
        print_json(found)
    else:
        _print_workers(found)


@click.command()
@click.argument("worker_id")
@json_option
@connect_option
def drain(worker_id: str, as_json: bool, connect: str | None) -> None:
    """Let a worker finish what it holds and leave.

    Example: atelier workers drain studio-cuda:0
    """
    with connected(connect) as client:
        worker = client.drain_worker(worker_id)
    if as_json:
        print_json(worker)
    else:
        _print_workers([worker])


def _print_workers(found: "list[WorkerInfo]") -> None:
    rows = [
        (
            worker.worker_id,
            worker.status,
            f"{worker.device.get('device_id')} ({worker.device.get('kind')})",
            f"{in_units(worker.device.get('memory_free', 0))} of {in_units(worker.device.get('memory_total', 0))}",
            f"{len(worker.jobs)}/{worker.slots}" + (f"+{worker.light_slots}" if worker.light_slots else ""),
            ", ".join(worker.resident_models),
        )
        for worker in found
    ]
    headers = ("WORKER", "STATUS", "DEVICE", "MEMORY FREE", "JOBS", "LOADED MODELS")
    print_table(headers, rows, "No workers. Start one with `atelier worker`, or all with `atelier up`.")
