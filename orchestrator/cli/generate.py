"""`atelier generate`."""

import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import connect_option, connected, json_option

if TYPE_CHECKING:
    from orchestrator.cli.progress import Display
    from orchestrator.client import Client, Image, Job, Result

SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
DEFAULT_OUTPUT = {"png": "out.png", "jpeg": "out.jpg", "webp": "out.webp"}
SAME_MACHINE = ("model_hash", "libraries", "device", "dtype", "threads")  # what a picture depends on beside its request
CANCEL_S = 5.0  # how long Ctrl-C waits for the server to confirm


class PictureSize(click.ParamType):
    """64x64, or 64 for a square."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size such as 64x64", param, ctx)
        return int(match[1]), int(match[2] or match[1])


@click.command()
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file; of several pictures out-1.png, …")
@click.option("--model", help="The model.  [default: the server's]")
@click.option("--negative", help="What should not be in the picture.")
@click.option("--seed", type=click.IntRange(-1, 2**64 - 1), help="The same seed makes the same picture.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--size", type=PictureSize(), help="In pixels.  [default: the model's]")
@click.option("--count", type=int, help="How many pictures, with seeds that follow one another.")
@click.option("--scheduler", help="A diffusers scheduler, e.g. euler, ddim, dpmpp_2m.")
@click.option("--guidance", type=float, help="How closely to follow the prompt.")
@click.option("--format", "format_", type=click.Choice(list(DEFAULT_OUTPUT)), help="[default: by the file's name]")
@click.option("--quality", type=int, help="Of jpeg and webp, 1 to 100.")
@click.option("--priority", type=click.IntRange(0, 9), help="9 is most urgent.")
@click.option("--session", "session_id", metavar="ID", help="A session whose defaults hold.")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Make this picture again, by the recipe in it; other options change it.",
)
@click.option("--preview", is_flag=True, help="Show the picture as it emerges, in the terminal.")
@click.option("--local", is_flag=True, help="Start a server for this command alone.")
@json_option
@connect_option
def generate(
    prompt: str | None,
    output: Path | None,
    source: Path | None,
    preview: bool,
    local: bool,
    as_json: bool,
    connect: str | None,
    **options: Any,
) -> None:
    """Make pictures for PROMPT. The last line on stdout is the (last) file's path.

    Example: atelier generate "a red circle on a white background" --seed 7 -o out.png
    """
    original = _recipe_of(source) if source else None
    data = _data(prompt, original, output, options)
    path = output or Path(DEFAULT_OUTPUT[data["output"]["format"]])
    _check_target(path)
    if local and connect:
        raise click.UsageError("--local starts a server of its own; leave out --connect.")
    if preview:
        data["preview"] = {"every_steps": max(1, data.get("steps", 20) // 10)}
    fields = {name: options[name] for name in ("priority", "session_id") if options[name] is not None}
    from orchestrator.cli.progress import Display

    with Display(quiet=as_json, preview=preview) as display:
        display.say("starting a server" if local else "connecting")
        with _server(local, connect) as client:
            result = _run(client, data, fields, display)
    paths = _save(result.images, path)
    if original is not None and result.images:
        _warn(original, result.images[0].recipe or {})
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


def _run(client: "Client", data: dict[str, Any], fields: dict[str, Any], display: "Display") -> "Result":
    job = client.submit("inference.text2img", data, events=["state", "progress", "preview"], **fields)
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


def _data(
    prompt: str | None, original: dict[str, Any] | None, output: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    """The request: the recipe's fields, then what was said; nothing else, so that the server's defaults hold."""
    from protocol.recipe import request_data

    data: dict[str, Any] = request_data(original) if original else {}
    size = options["size"] or (None, None)
    said = {
        "prompt": prompt,
        "model_id": options["model"],
        "negative_prompt": options["negative"],
        "seed": options["seed"],
        "steps": options["steps"],
        "width": size[0],
        "height": size[1],
        "num_images": options["count"],
        "scheduler": options["scheduler"],
        "guidance_scale": options["guidance"],
    }
    data |= {name: value for name, value in said.items() if value is not None}
    if "prompt" not in data:
        raise click.UsageError("A PROMPT is missing (or a picture to make again: --from).")
    encoding = dict(data.get("output", {}))
    by_name = SUFFIXES.get(output.suffix.lower()) if output else None
    encoding["format"] = options["format_"] or by_name or encoding.get("format", "png")
    if options["quality"] is not None:
        encoding["quality"] = options["quality"]
    return data | {"output": encoding}


def _recipe_of(source: Path) -> dict[str, Any]:
    from protocol.recipe import read

    recipe = read(source.read_bytes())
    if recipe is None or recipe.get("action") != "inference.text2img":
        raise click.BadParameter(f"{source} holds no recipe of a picture made for a prompt.", param_hint="--from")
    return recipe


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


def _warn(original: dict[str, Any], made: dict[str, Any]) -> None:
    """Say where this machine is another than the one that made the original."""
    for name in SAME_MACHINE:
        before, now = original.get(name), made.get(name)
        if before != now:
            click.echo(f"warning: {name} was {_plain(before)}, is {_plain(now)}: the picture may differ", err=True)


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


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
