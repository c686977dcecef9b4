"""`atelier models`: what there is."""

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
from orchestrator.cli.group import LazyGroup

if TYPE_CHECKING:
    from protocol.schemas.model import ModelInfo, ModelOnWorker, ShadowStats, TrafficInfo, WorkerModels
    from protocol.schemas.model_figures import DeviceFigures

CHANGES = "orchestrator.cli.model_changes"
FILES = "orchestrator.cli.model_files"
WORK = "orchestrator.cli.model_work"
TABLES = {"traffic", "shadow", "metadata", "metrics", "tags", "source", "totals", "per_device"}  # of `show`


@click.group(
    cls=LazyGroup,
    lazy={
        "list": ("orchestrator.cli.models:list_models", "List the models, their versions and aliases."),
        "show": ("orchestrator.cli.models:show", "Show all that is known of a model."),
        "status": ("orchestrator.cli.models:status", "Show what each worker has, and has loaded."),
        "register": (f"{CHANGES}:register", "Bring in a new version of a model."),
        "convert": ("orchestrator.cli.model_convert:convert", "Make another form of a model."),
        "alias": (f"{CHANGES}:alias", "Let an alias point to a version, or take it away."),
        "rollback": (f"{CHANGES}:rollback", "Let an alias point to the version before."),
        "traffic": (f"{CHANGES}:traffic", "Split the requests for a name between versions."),
        "metadata": (f"{CHANGES}:metadata", "Show or change what is known of a model."),
        "history": (f"{CHANGES}:history", "Show who changed what of a model, and when."),
        "delete": (f"{CHANGES}:delete", "Take a version out of the registry."),
        "load": (f"{WORK}:load", "Load a model on workers, and keep it if asked."),
        "unload": (f"{WORK}:unload", "Let workers let go of a model."),
        "reload": (f"{WORK}:reload", "Take up changed files on workers."),
        "components": (f"{WORK}:components", "Show what a model is made of."),
        "benchmark": ("orchestrator.cli.model_benchmark:benchmark", "Measure a model, and compare with the last time."),
        "discover": (f"{FILES}:discover", "List what lies in a worker's folders of models."),
        "validate": (f"{FILES}:validate_model", "Check a model's files."),
    },
)
def models() -> None:
    """List models, register versions, move aliases and share out traffic.

    Example: atelier models list
    """


@click.command("list")
@click.argument("name", required=False)
@json_option
@connect_option
def list_models(name: str | None, as_json: bool, connect: str | None) -> None:
    """List the models, their versions and aliases. A star marks what requests get that name none.

    Example: atelier models list --json
    """
    with connected(connect) as client:
        found = client.models.list(name)
        while found.more:
            rest = client.models.list(name, after=found.models[-1]["model_id"])
            found = rest.model_copy(update={"models": [*found.models, *rest.models]})
    if as_json:
        print_json(found)
        return
    defaults = set(found.default_model_ids.values())
    rows = [_row(entry, defaults) for entry in found.models]
    empty = "No models. Put one into the model folder, or bring one in with `atelier models register`."
    print_table(("MODEL", "ALIASES", "KIND", "SIZE", "REGISTERED", "WORKERS", "LOADED ON"), rows, empty)


def _row(entry: dict[str, Any], defaults: set[str]) -> tuple[object, ...]:
    star = " *" if {entry["model_id"], entry.get("name")} & defaults else ""
    nbytes = entry.get("nbytes")
    return (
        f"{entry['model_id']}{star}",
        ", ".join(entry.get("aliases", [])),
        entry.get("family"),
        "" if nbytes is None else in_units(nbytes),
        "yes" if entry.get("registered") else "",
        ", ".join(entry.get("workers", [])),
        ", ".join(entry.get("resident_on", [])),
    )


@click.command()
@click.argument("model_id", metavar="NAME[:VERSION|@ALIAS]")
@json_option
@connect_option
def show(model_id: str, as_json: bool, connect: str | None) -> None:
    """Show all that is known of a model.

    Example: atelier models show localisation@default
    """
    with connected(connect) as client:
        found = client.models.info(model_id)
    if as_json:
        print_json(found)
    else:
        _print_info(found)


def _print_info(info: "ModelInfo") -> None:
    shown = info.model_dump(mode="json", exclude=TABLES)
    lists = {name: ", ".join(value) for name, value in shown.items() if isinstance(value, list)}
    nbytes = None if info.nbytes is None else in_units(info.nbytes)
    print_facts({**shown, **lists, "nbytes": nbytes, "registered": "yes" if info.registered else None})
    metadata = info.metadata.model_dump(mode="json", exclude_none=True)
    for title, facts in (("METADATA", metadata), ("METRICS", info.metrics), ("TAGS", info.tags)):
        if facts:
            click.echo()
            print_table((title, "VALUE"), [(name, _plain(value)) for name, value in facts.items()], "")
    if info.per_device:
        click.echo()
        _print_figures(info.per_device)
    if info.traffic is not None:
        click.echo()
        print_traffic(info.traffic)
    if info.shadow is not None:
        click.echo()
        _print_shadow(info.shadow)


def _print_figures(devices: "Sequence[DeviceFigures]") -> None:
    rows = [
        (
            f"{at.worker_id} ({at.device_id})",
            at.inference_count,
            *("" if ms is None else f"{ms:.1f} ms" for ms in (at.avg_ms, at.p50_ms, at.p95_ms, at.p99_ms)),
            "" if at.cache_hit_rate is None else f"{at.cache_hit_rate:.0%}",
            at.last_reloaded_at or at.last_loaded_at,
        )
        for at in devices
    ]
    print_table(("WORKER", "RUN", "AVERAGE", "P50", "P95", "P99", "FROM CACHE", "LOADED"), rows, "")


def print_traffic(traffic: "TrafficInfo") -> None:
    """Where a name's requests go."""
    rows = [(f"{traffic.name}:{split.version}", f"{split.weight:g} %") for split in traffic.splits]
    if traffic.shadow is not None:
        rows.append((f"{traffic.name}:{traffic.shadow.version}", f"shadow, {traffic.shadow.fraction:.0%}"))
    rows += [(model_id, "fallback") for model_id in traffic.fallbacks]
    print_table(("TRAFFIC", "SHARE"), rows, f"{traffic.name} has no traffic of its own.")
    policy = traffic.policy.model_dump(mode="json", exclude_none=True)
    if policy:
        click.echo()
        print_facts({name: _plain(value) for name, value in policy.items()})


def _print_shadow(shadow: "ShadowStats") -> None:
    shown = shadow.model_dump(mode="json", exclude={"version"})
    share = None if shadow.equal_share is None else f"{shadow.equal_share:.2%}"
    print_table(("AS SHADOW", "VALUE"), [*({**shown, "equal_share": share}).items()], "")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return str(value)


@click.command()
@click.argument("model_id", metavar="[NAME[:VERSION|@ALIAS]]", required=False)
@json_option
@connect_option
def status(model_id: str | None, as_json: bool, connect: str | None) -> None:
    """Show what each worker has, and has loaded.

    Example: atelier models status localisation
    """
    with connected(connect) as client:
        found = client.models.status(model_id)
    if as_json:
        print_json(found)
    else:
        _print_status(found)


def _print_status(workers: "Sequence[WorkerModels]") -> None:
    rows = [
        (worker.worker_id, f"{worker.device_id} ({worker.device_kind})", model.model_id, _state(model))
        for worker in workers
        for model in worker.models
    ]
    print_table(("WORKER", "DEVICE", "MODEL", "STATE"), rows, "No connected worker has it.")


def _state(model: "ModelOnWorker") -> str:
    if model.problem is not None:
        return f"unusable: {model.problem}"
    words = ["loaded" if model.resident else "on disk"]
    words += ["kept"] if model.kept else []
    words += ["loading"] if model.loading else []
    return ", ".join(words)
