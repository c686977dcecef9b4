"""`atelier models convert`."""

import time
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import connect_option, connected, in_units, json_option, print_json, print_table
from orchestrator.cli.loras import pin, worker_option
from protocol.schemas.model_files import ModelConvertResult

if TYPE_CHECKING:
    from orchestrator.client import Client, JobEvent

PRECISIONS = ("float32", "float16", "int8")
CANCEL_S = 5.0


@click.command()
@click.argument("source", metavar="MODEL")
@click.option("--to", type=click.Choice(["onnx", "diffusers"]), default="onnx", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True)
@click.option("--name", required=True, help="Of the new model.")
@click.option("--version", help="[default: the next number]")
@worker_option
@json_option
@connect_option
def convert(
    source: str,
    to: str,
    precision: str,
    name: str,
    version: str | None,
    worker_id: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Make another form of a model.

    To ONNX: a Stable Diffusion pipeline, or a text model of transformers. To diffusers: a single file. What is made is
    held against MODEL before it is put into the model folder.

    \b
    Examples:
      atelier models convert demo --name demo-onnx
      atelier models convert topics --name topics-onnx --precision int8
    """
    data = {"source": source, "to": to, "precision": precision, "name": name, "version": version}
    with connected(connect) as client:
        made = _run(client, {key: value for key, value in data.items() if value is not None}, worker_id, as_json)
    if as_json:
        print_json(made)
        return
    rows = [
        (part, f"{told['max_abs_error']:.2g}", f"{told['max_rel_error']:.2g}", f"{told['tolerance']:g}")
        for part, told in made.components.items()
    ]
    print_table(("PART", "DIFFERS BY", "OF THE LARGEST", "MAY BE"), rows, "")
    click.echo(f"{made.model_id}: {len(made.files)} files, {in_units(made.nbytes)}, in {made.seconds:.0f} s")


def _run(client: "Client", data: dict[str, object], worker_id: str | None, quiet: bool) -> ModelConvertResult:
    begun = time.monotonic()
    job = client.submit("model.convert", data, events=["progress"], **pin(worker_id))
    try:
        for event in job.events():
            if not quiet:
                _show(event, time.monotonic() - begun)
        return job.result().parse(ModelConvertResult)
    except KeyboardInterrupt:
        job.cancel(timeout_s=CANCEL_S)
        raise


def _show(event: "JobEvent", seconds: float) -> None:
    click.echo(f"{event.data['progress']:4.0%} after {seconds:.0f} s: {event.data['doing']}", err=True)
