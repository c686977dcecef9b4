"""`atelier controlnets`."""

import json
from pathlib import Path

import click

from orchestrator.cli.common import connect_option, connected, in_units, json_option, print_json, print_table
from orchestrator.cli.group import LazyGroup
from orchestrator.cli.loras import pin, worker_option
from orchestrator.cli.picture_options import FILE


@click.group(
    cls=LazyGroup,
    lazy={
        "list": (
            "orchestrator.cli.controlnets:list_controlnets",
            "List the ControlNets and preprocessors of a worker.",
        ),
        "preprocess": ("orchestrator.cli.controlnets:preprocess", "Write what a ControlNet would see of a picture."),
    },
)
def controlnets() -> None:
    """List ControlNets, and make the pictures they follow.

    Example: atelier controlnets list
    """


@click.command("list")
@worker_option
@json_option
@connect_option
def list_controlnets(worker_id: str | None, as_json: bool, connect: str | None) -> None:
    """List the ControlNets and preprocessors of a worker.

    Example: atelier controlnets list --json
    """
    with connected(connect) as client:
        found = client.controlnets.list(**pin(worker_id))
    if as_json:
        print_json(found)
        return
    rows = [
        (item.controlnet_id, item.family, in_units(item.nbytes), "yes" if item.loaded else "no", item.problem)
        for item in found.controlnets
    ]
    headers = ("CONTROLNET", "FAMILY", "SIZE", "LOADED", "PROBLEM")
    print_table(headers, rows, "No ControlNets in the worker's model folder.")
    click.echo(f"Preprocessors: {', '.join(found.preprocessors)}")


@click.command()
@click.argument("image", type=FILE)
@click.argument("preprocessor")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("control.png"),
              show_default=True, help="The file.")  # fmt: skip
@click.option("--resolution", type=int, help="Look at it with a shorter side of so many pixels.")
@worker_option
@json_option
@connect_option
def preprocess(
    image: Path,
    preprocessor: str,
    output: Path,
    resolution: int | None,
    worker_id: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Write what a ControlNet would see of IMAGE by PREPROCESSOR (canny, scribble, softedge, tile, depth, pose).

    Example: atelier controlnets preprocess house.jpg canny -o edges.png
    """
    if not output.parent.is_dir():
        raise click.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    with connected(connect) as client:
        made = client.controlnets.preprocess(image, preprocessor, resolution, **pin(worker_id))
    path = made.save(output)
    click.echo(json.dumps({"path": str(path), "media_type": made.media_type}, indent=2) if as_json else path)
