"""`atelier models benchmark`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import connect_option, connected, in_units, json_option, print_facts, print_json
from orchestrator.cli.model_work import pins, place_options

if TYPE_CHECKING:
    from orchestrator.client import Client
    from protocol.schemas.model_worker import BatchFigures, BenchmarkInfo

BAR_WIDTH = 24  # characters
CANCEL_S = 5.0
SAME = ("device_kind", "settings")  # what two benchmarks must share to be compared


@click.command()
@click.argument("model_id", metavar="MODEL")
@click.option("--batch-size", "batch_sizes", type=click.IntRange(1, 65_536), multiple=True, help="(repeatable)")
@click.option("--runs", type=click.IntRange(1, 1000), help="Of each batch size.  [default: 50, of pictures 3]")
@click.option("--warmup", type=click.IntRange(0, 100), help="Runs before those.  [default: 2, of pictures 1]")
@click.option("--axis", "axes", metavar="NAME=SIZE", multiple=True, help="Of an open axis (repeatable).")
@click.option("--width", type=int, help="Of pictures.")
@click.option("--height", type=int, help="Of pictures.")
@click.option("--steps", type=int, help="Of pictures.  [default: 4]")
@click.option("--history", is_flag=True, help="Measure nothing; show what was measured before.")
@place_options
@json_option
@connect_option
def benchmark(
    model_id: str,
    history: bool,
    axes: Sequence[str],
    worker_id: str | None,
    device_id: str | None,
    as_json: bool,
    connect: str | None,
    **options: Any,
) -> None:
    """Measure MODEL on a worker, and compare with the last time on such a device.

    \b
    Loading cold: anew, the files read from the disk. Warm: once more.
    Examples:
      atelier models benchmark localisation --batch-size 1 --batch-size 64
      atelier models benchmark demo --width 64 --height 64 --steps 8 --worker gpu0
    """
    data = {"model_id": model_id, **{name: value for name, value in options.items() if value not in (None, ())}}
    data |= {"batch_sizes": list(options["batch_sizes"])} if options["batch_sizes"] else {}
    data |= {"axes": dict(map(_axis, axes))} if axes else {}
    with connected(connect) as client:
        if not history:
            _measure(client, data, pins(worker_id, device_id), as_json)
        made = client.models.benchmarks(model_id)
    if as_json:
        print_json(made if history else made[0])
    elif not made:
        click.echo("Nothing was measured of it.", err=True)
    else:
        for newest in reversed(made) if history else made[:1]:
            _draw(newest, _last_like(newest, made))


def _axis(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not (name and equals and size.isdigit()):
        raise click.BadParameter(f"{text!r} is not NAME=SIZE, e.g. width=224", param_hint="--axis")
    return name, int(size)


def _measure(client: "Client", data: dict[str, Any], pinned: dict[str, str], quiet: bool) -> None:
    job = client.submit("model.benchmark", data, events=["progress"], **pinned)  # type: ignore[arg-type]
    try:
        for event in job.events():
            if not quiet:
                click.echo(f"{event.data['progress']:4.0%} done", err=True)
        job.result()
    except KeyboardInterrupt:
        job.cancel(timeout_s=CANCEL_S)
        raise


def _last_like(newest: "BenchmarkInfo", made: "Sequence[BenchmarkInfo]") -> "BenchmarkInfo | None":
    """The one before it that can be compared with it."""
    earlier = [one for one in made if one.job_id < newest.job_id]
    return next((one for one in earlier if all(getattr(one, name) == getattr(newest, name) for name in SAME)), None)


def _draw(found: "BenchmarkInfo", last: "BenchmarkInfo | None") -> None:
    from rich.console import Console
    from rich.table import Table

    settings = ", ".join(f"{name} {value}" for name, value in found.settings.items())
    print_facts(
        {
            "model": f"{found.model_id}  {found.content_hash[:12]}",
            "measured": f"{found.at} on {found.worker_id}, {found.device} ({found.device_kind})",
            "with": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
            "settings": settings,
            "runs on": ", ".join(found.providers or ()),
            "loading": f"cold {_ms(found.cold_load_ms)}, warm {_ms(found.warm_load_ms)}, {in_units(found.nbytes)}",
            "compared": None if last is None else f"with {last.at}, {last.content_hash[:12]}",
        }
    )
    before = {} if last is None else {batch.batch_size: batch for batch in last.batches}
    most = max(batch.per_s for batch in found.batches)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in ("BATCH", "RUNS", "P50", "P95", "A SECOND", "", "MEMORY", "SINCE"):
        table.add_column(header, justify="left" if header == "" else "right")
    for batch in found.batches:
        bar = "█" * max(round(BAR_WIDTH * batch.per_s / most), 1)
        memory = "" if batch.peak_nbytes is None else in_units(batch.peak_nbytes)
        cells = (str(batch.batch_size), str(batch.runs), _ms(batch.p50_ms), _ms(batch.p95_ms), f"{batch.per_s:,.1f}")
        table.add_row(*cells, bar, memory, _since(batch, before.get(batch.batch_size)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _since(batch: "BatchFigures", before: "BatchFigures | None") -> str:
    """How much quicker it is than the last time."""
    return "" if before is None else f"{batch.per_s / max(before.per_s, 1e-9) - 1:+.0%}"


def _ms(ms: float | None) -> str:
    return "in use" if ms is None else f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.3g} ms"
