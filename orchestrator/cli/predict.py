"""`atelier predict`."""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import connect_option, connected, json_option, print_facts, print_json
from orchestrator.cli.picture_options import FILE
from protocol.limits import DEFAULT_LIMITS, MIB

if TYPE_CHECKING:
    from orchestrator.client import Prediction
    from protocol.tensors import Tensor

SHOWN_MAX = 200  # characters of one output
POINTS_MAX = 8  # of a polygon
NPY_BYTES_MAX = 4 * DEFAULT_LIMITS.frame_bytes_max  # of a file: its numbers may be sent as narrower ones


class Input(click.ParamType):
    """x=rows.npy, x=[[1,2.5]], or x:float32=[[1,2]]. A colon with no type behind it belongs to the name."""

    name = "NAME[:DTYPE]=FILE.npy|JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "tuple[str, Tensor]":
        from protocol.tensors import ITEMSIZES, from_list

        name, equals, text = str(value).partition("=")
        before, _, dtype = name.rpartition(":")
        if before and (dtype in ITEMSIZES or dtype == "string"):
            name = before
        else:
            dtype = ""
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=VALUE, e.g. x=rows.npy or x=[[1,2.5]]", param, ctx)
        try:
            if text.endswith(".npy"):
                return name, _read_npy(Path(text), dtype)
            return name, from_list(json.loads(text), dtype or None)
        except json.JSONDecodeError:
            self.fail(f"{text[:60]!r} is neither a file NAME.npy nor JSON such as [[1,2.5]]", param, ctx)
        except (OSError, TypeError, ValueError, ImportError) as error:
            self.fail(f"{name}: {error}", param, ctx)


class Parameter(click.ParamType):
    """k=3, or kind=all: JSON, or else a word."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, equals, text = str(value).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=VALUE, e.g. k=3", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


@click.command()
@click.argument("model")
@click.option("--input", "inputs", type=Input(), multiple=True, help="A tensor (repeatable). JSON with a fraction "
              "in it is float32, other numbers are int64.")  # fmt: skip
@click.option(
    "--image", "images", type=FILE, multiple=True, help="A picture, for a model that takes them (repeatable)."
)
@click.option("--parameter", "parameters", type=Parameter(), multiple=True, help="Of the model's steps (repeatable).")
@click.option("--only", "outputs", metavar="NAME", multiple=True, help="Answer this output only (repeatable).")
@click.option("--no-cache", is_flag=True, help="Compute it, even where the answer is at hand.")
@click.option("--routing-key", metavar="TEXT", help="Traffic that is split between versions sticks to it.")
@click.option("--session", "session_id", metavar="ID", help="A session whose defaults hold.")
@click.option("--priority", type=click.IntRange(0, 9), help="9 is most urgent.")
@click.option("--output-dir", type=click.Path(file_okay=False, path_type=Path), help="Write each output as NAME.npy.")
@json_option
@connect_option
def predict(
    model: str, output_dir: Path | None, no_cache: bool, as_json: bool, connect: str | None, **options: Any
) -> None:
    """Take tensors or pictures through MODEL (name, name:version or name@alias). In JSON, NaN and infinity are null.

    \b
    Examples:
      atelier predict mlp --input x=rows.npy --output-dir out
      atelier predict mlp:2 --input "x:float32=[[1, 2, 3]]" --json
      atelier predict classifier --image cat.png --parameter k=3
    """
    if not (options["inputs"] or options["images"]):
        raise click.UsageError("Nothing to predict from: give --input or --image.")
    if output_dir is not None:
        _check_folder(output_dir)
    fields = {name: options[name] for name in ("routing_key", "session_id", "priority") if options[name] is not None}
    fields |= {"cache": False} if no_cache else {}
    fields |= {"outputs": list(options["outputs"])} if options["outputs"] else {}
    with connected(connect) as client:
        made = client.predict(
            model, dict(options["inputs"]), images=options["images"], parameters=dict(options["parameters"]), **fields
        )
    paths = {} if output_dir is None else _save(made, output_dir)
    if as_json:
        print_json(_report(made, paths))
    else:
        _print(made, paths)


def _read_npy(path: Path, dtype: str) -> "Tensor":
    """By the one reader that takes arrays only: numpy's `load` goes by the first bytes, to zips and pickles, too."""
    _numpy()
    from numpy.lib import format as npy

    from protocol.tensors import from_numpy

    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > NPY_BYTES_MAX:
            raise ValueError(f"it is no plain file of at most {NPY_BYTES_MAX // MIB} MiB")
        try:
            array = npy.read_array(stream, allow_pickle=False)
        except (ValueError, OSError):
            raise
        except Exception:  # the reader parses the header as Python, and makes room for what it asks for
            raise ValueError("its header is that of no array") from None
    if dtype and dtype != "bfloat16":
        array = array.astype("U" if dtype == "string" else dtype)
    return from_numpy(array, "bfloat16" if dtype == "bfloat16" else None)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        from orchestrator.client.errors import NUMPY_EXTRA

        raise ImportError(f"Files of arrays need numpy: {NUMPY_EXTRA}") from None
    return numpy


def _check_folder(folder: Path) -> None:
    """Before the work, not after it."""
    try:
        _numpy()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ImportError) as error:
        raise click.BadParameter(str(error), param_hint="--output-dir") from None


def _save(made: "Prediction", folder: Path) -> dict[str, Path]:
    """The file of each output. Names are the model's; what is not fit for a file's name becomes a line."""
    numpy, paths = _numpy(), dict[str, Path]()
    for name, array in made.outputs.items():
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "_"
        path = folder / f"{plain}.npy"
        if path in paths.values():
            path = folder / f"{plain}-{len(paths)}.npy"
        numpy.save(path, array.astype("U") if array.dtype == object else array, allow_pickle=False)
        paths[name] = path
    return paths


def _report(made: "Prediction", paths: dict[str, Path]) -> dict[str, Any]:
    outputs = {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        | ({"path": str(paths[name])} if name in paths else {"values": _finite(tensor.tolist())})
        for name, tensor in made.tensors.items()
    }
    told = made.told.model_dump(exclude={"outputs"})
    about = {} if made.result is None else {"job_id": made.result.job_id, "worker_id": made.result.worker_id}
    return {**about, **told, "outputs": outputs}


def _finite(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(made: "Prediction", paths: dict[str, Path]) -> None:
    found = f"{made.inference_time_ms:.3g} ms in the model" + (", found in the cache" if made.cached else "")
    facts: dict[str, object] = {"model": made.model_id, "device": made.device, "time": found}
    for index, fields in enumerate(made.predictions):
        facts[f"prediction {index}"] = json.dumps(_short(fields), ensure_ascii=False)
    for name, tensor in made.tensors.items():
        shown = str(paths[name]) if name in paths else json.dumps(_finite(tensor.tolist()), ensure_ascii=False)
        shown = shown if name in paths or len(shown) <= SHOWN_MAX else f"{shown[:SHOWN_MAX]}…"
        facts[f"output {name}"] = f"{tensor.dtype} {list(tensor.shape)}  {shown}"
    print_facts(facts)


def _short(value: Any) -> Any:
    """Without most of a polygon's corners, or of what else is a long list of lists; `--json` tells all."""
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) > POINTS_MAX and all(isinstance(inner, list) for inner in value):
        return [value[0], f"… {len(value) - 1} more"]
    return [_short(inner) for inner in value]
