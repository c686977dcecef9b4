"""`atelier generate`."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import connect_option, connected, json_option
from orchestrator.cli.picture_options import picture_options

if TYPE_CHECKING:
    from orchestrator.cli.picture_request import PictureRequest
    from orchestrator.cli.progress import Display
    from orchestrator.client import Client, Image, Job, Result

SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
DEFAULT_OUTPUT = {"png": "out.png", "jpeg": "out.jpg", "webp": "out.webp"}
CANCEL_S = 5.0  # how long Ctrl-C waits for the server to confirm


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file; of several pictures out-1.png, …")
@picture_options
@click.option("--format", "format_", type=click.Choice(list(DEFAULT_OUTPUT)), help="[default: by the file's name]")
@click.option("--quality", type=int, help="Of jpeg and webp, 1 to 100.")
@click.option("--priority", type=click.IntRange(0, 9), help="9 is most urgent.")
@click.option("--preview", is_flag=True, help="Show the picture as it emerges, in the terminal.")
@click.option("--local", is_flag=True, help="Start a server for this command alone.")
@json_option
@connect_option
def generate(
    prompt: str | None,
    output: Path | None,
    preview: bool,
    local: bool,
    as_json: bool,
    connect: str | None,
    **options: Any,
) -> None:
    """Make pictures for PROMPT. The last line on stdout is the (last) file's path.

    \b
    Examples:
      atelier generate "a red circle on a white background" --seed 7 -o out.png
      atelier generate "a blue circle" --image out.png --strength 0.6 -o blue.png
      atelier generate "a green star" --image out.png --mask mask.png -o star.png
      atelier generate "a circle" --lora hollow:0.8 --controlnet edges=out.png,preprocessor=canny
    """
    from orchestrator.cli.picture_request import request_of, told_differences

    request = request_of(prompt, options)
    request.data["output"] = _encoding(request.data, output, options)
    path = output or Path(DEFAULT_OUTPUT[request.data["output"]["format"]])
    _check_target(path)
    if local and connect:
        raise click.UsageError("--local starts a server of its own; leave out --connect.")
    if preview:
        request.data["preview"] = {"every_steps": max(1, request.data.get("steps", 20) // 10)}
    fields = {name: options[name] for name in ("priority", "session_id") if options[name] is not None}
    from orchestrator.cli.progress import Display

    with Display(quiet=as_json, preview=preview) as display:
        display.say("starting a server" if local else "connecting")
        with _server(local, connect) as client:
            result = _run(client, request, fields, display)
    paths = _save(result.images, path)
    if request.original is not None and result.images:
        for line in told_differences(request, result.images[0].recipe or {}):
            click.echo(f"warning: {line}", err=True)
    if as_json:
        click.echo(json.dumps(_report(result, paths), indent=2))
    else:
        for written in paths:
            click.echo(written)


def _server(local: bool, connect: str | None) -> "AbstractContextManager[Client]":
    if not local:
        return connected(connect)
    from orchestrator.client import LocalServer
    from orchestrator.telemetry import configure_logging

    configure_logging("warning")
    return LocalServer()


def _run(client: "Client", request: "PictureRequest", fields: dict[str, Any], display: "Display") -> "Result":
    job = client.submit(
        request.action,
        request.data,
        events=["state", "progress", "preview"],
        attachments=request.attachments,
        **fields,
    )
    try:
        for event in job.events():
            display.show(event)
        return job.result()
    except KeyboardInterrupt:
        _cancel(job)
        raise


def _cancel(job: "Job") -> None:
    try:
        job.cancel(timeout_s=CANCEL_S)
    except (TimeoutError, ConnectionError):
        click.echo("The server did not confirm; it cancels the job when it sees that this command is gone.", err=True)


def _encoding(data: dict[str, Any], output: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    encoding = dict(data.get("output", {}))
    by_name = SUFFIXES.get(output.suffix.lower()) if output else None
    encoding["format"] = options["format_"] or by_name or encoding.get("format", "png")
    if options["quality"] is not None:
        encoding["quality"] = options["quality"]
    return encoding


def _check_target(path: Path) -> None:
    """Before the work, not after it."""
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}", param_hint="--output")
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder", param_hint="--output")


def _save(images: "list[Image]", path: Path) -> list[Path]:
    if len(images) == 1:
        return [images[0].save(path)]
    return [image.save(path.with_stem(f"{path.stem}-{number}")) for number, image in enumerate(images, 1)]


def _report(result: "Result", paths: list[Path]) -> dict[str, Any]:
    return {
        "job_id": result.job_id,
        "request_id": result.response.request_id,
        "worker_id": result.worker_id,
        "device_id": result.response.device_id,
        "attempt": result.attempt,
        "timing": result.timing.model_dump() if result.timing else None,
        "images": [
            {"path": str(path), "seed": image.seed, "media_type": image.media_type, "recipe": image.recipe}
            for path, image in zip(paths, result.images, strict=True)
        ],
    }
