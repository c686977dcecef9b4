"""`atelier models load`, `unload`, `reload`, `components`: models in the memory of workers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli.common import (
    connect_option,
    connected,
    in_units,
    json_option,
    print_facts,
    print_json,
    print_table,
    seconds,
)
from orchestrator.cli.group import FAILED, end, told

if TYPE_CHECKING:
    from orchestrator.client.model_work import Outcomes, Verb
    from protocol.schemas.model_worker import ComponentInfo, GraphInfo, TensorInfo

F = TypeVar("F", bound=Callable[..., Any])


def place_options(command: F) -> F:
    """`--worker` and `--device`."""
    on_worker = click.option("--worker", "worker_id", metavar="ID", help="Of this worker.")
    on_device = click.option("--device", "device_id", metavar="ID", help="Of this device, e.g. cuda:1.")
    return on_worker(on_device(command))


def pins(worker_id: str | None, device_id: str | None) -> dict[str, str]:
    """The options of a request that is bound to these."""
    asked = {"worker_id": worker_id, "device_id": device_id}
    return {name: value for name, value in asked.items() if value is not None}


@click.command()
@click.argument("model_id", metavar="MODEL")
@click.option("--keep", is_flag=True, help="Never evict it, until it is unloaded.")
@click.option("--all", "everywhere", is_flag=True, help="On each worker that has it.  [default: on one]")
@place_options
@json_option
@connect_option
def load(
    model_id: str,
    keep: bool,
    everywhere: bool,
    worker_id: str | None,
    device_id: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Load MODEL and try it once, so that the first request need not wait.

    Example: atelier models load localisation --keep --all
    """
    _run("load", model_id, pins(worker_id, device_id), everywhere, as_json, connect, keep=keep)


@click.command()
@click.argument("model_id", metavar="MODEL")
@place_options
@json_option
@connect_option
def unload(model_id: str, worker_id: str | None, device_id: str | None, as_json: bool, connect: str | None) -> None:
    """Let go of MODEL, on each worker or on one. It leaves when the jobs that use it have ended.

    Example: atelier models unload localisation
    """
    pinned = pins(worker_id, device_id)
    _run("unload", model_id, pinned, not pinned, as_json, connect)


@click.command()
@click.argument("model_id", metavar="[MODEL]", required=False)
@place_options
@json_option
@connect_option
def reload(
    model_id: str | None, worker_id: str | None, device_id: str | None, as_json: bool, connect: str | None
) -> None:
    """Take up changed files of MODEL, or of all loaded models, on each worker or on one. No request is lost meanwhile;
    what does not work does not take over.

    Example: atelier models reload
    """
    pinned = pins(worker_id, device_id)
    _run("reload", model_id, pinned, not pinned, as_json, connect)


def _run(
    verb: "Verb",
    model_id: str | None,
    pinned: dict[str, str],
    everywhere: bool,
    as_json: bool,
    connect: str | None,
    **fields: Any,
) -> None:
    from orchestrator.client.model_work import RESULTS
    from protocol.errors import AtelierError

    if everywhere and pinned:
        raise click.UsageError("Say --all, or --worker and --device, not both.")
    with connected(connect) as client:
        if everywhere:
            found: Outcomes = client.models.everywhere(verb, model_id, **fields)
        else:
            result = client.run(f"model.{verb}", {"model_id": model_id, **fields}, **pinned)  # type: ignore[arg-type]
            found = {result.worker_id or "": result.parse(RESULTS[verb])}
    failed = [error for error in found.values() if isinstance(error, AtelierError)]
    if as_json:
        print_json({name: _plain(outcome) for name, outcome in found.items()})
    else:
        rows = [(name, _line(outcome)) for name, outcome in found.items()]
        print_table(("WORKER", "OUTCOME"), rows, "No connected worker has it.")
    if failed or any(getattr(outcome, "failed", None) for outcome in found.values()):
        end(told(failed[0])[0] if failed else "not all of them could be reloaded", FAILED)


def _plain(outcome: Any) -> dict[str, Any]:
    plain: dict[str, Any] = outcome.model_dump(mode="json") if hasattr(outcome, "model_dump") else {}
    return plain or {"error": outcome.to_wire()}


def _line(outcome: Any) -> str:
    from protocol.schemas.model_worker import ModelLoadResult, ModelUnloadResult

    if isinstance(outcome, Exception):
        return told(outcome)[0]
    if isinstance(outcome, ModelLoadResult):
        how = "was loaded" if outcome.was_loaded else f"loaded in {seconds(outcome.load_ms)}"
        return f"{how} on {outcome.device}, {in_units(outcome.nbytes)}{', kept' if outcome.kept else ''}"
    if isinstance(outcome, ModelUnloadResult):
        if not outcome.was_loaded:
            return "was not loaded"
        return "leaves when the jobs that use it have ended" if outcome.in_use else "unloaded"
    parts = [f"{name} {', '.join(found)}" for name in ("reloaded", "unchanged") if (found := getattr(outcome, name))]
    parts += [f"not usable: {failure.model_id} ({failure.error.get('message')})" for failure in outcome.failed]
    return "; ".join(parts) or "nothing is loaded"


@click.command()
@click.argument("model_id", metavar="MODEL")
@place_options
@json_option
@connect_option
def components(model_id: str, worker_id: str | None, device_id: str | None, as_json: bool, connect: str | None) -> None:
    """Show what MODEL is made of, and where its parts are on a worker.

    Example: atelier models components demo
    """
    with connected(connect) as client:
        found = client.models.components(model_id, **pins(worker_id, device_id))  # type: ignore[arg-type]
    if as_json:
        print_json(found)
        return
    facts: dict[str, object] = {
        "model": found.model_id,
        "family": found.family,
        "content hash": found.content_hash,
        "loaded": f"on {found.device}{', kept' if found.kept else ''}" if found.loaded else "no",
        "memory": None if found.nbytes is None else in_units(found.nbytes),
    }
    print_facts({**facts, **({} if found.graph is None else _graph_facts(found.graph))})
    if found.components:
        click.echo()
        headers = ("COMPONENT", "CLASS", "NUMBERS", "TYPE", "SIZE", "WHERE", "SHARED WITH")
        print_table(headers, [_component_row(part) for part in found.components], "")


def _graph_facts(graph: "GraphInfo") -> dict[str, object]:
    together = f"up to {graph.max_batch_size} items together" if graph.batched else "one request at a time"
    fallback = " (less than it was asked for)" if graph.fell_back else ""
    return {
        "inputs": _tensors(graph.inputs),
        "outputs": _tensors(graph.outputs),
        "opset": graph.opset,
        "numbers": f"{graph.elements:,}",
        "runs on": None if graph.providers is None else f"{', '.join(graph.providers)}{fallback}",
        "batches": f"{together}, {graph.instances} at a time",
        "before it": ", ".join(graph.preprocess),
        "after it": ", ".join(graph.postprocess),
    }


def _tensors(tensors: "Sequence[TensorInfo]") -> str:
    shapes = [(t, ", ".join("?" if side is None else str(side) for side in t.shape)) for t in tensors]
    return "; ".join(f"{tensor.name} {tensor.dtype} [{shape}]" for tensor, shape in shapes)


def _component_row(part: "ComponentInfo") -> tuple[object, ...]:
    numbers, size = (f"{part.elements:,}", in_units(part.nbytes)) if part.elements else ("", "")
    where = part.where if part.providers is None else f"{part.where} ({', '.join(part.providers)})"
    return part.name, part.class_name, numbers, part.dtype, size, where, ", ".join(part.shared_with)
