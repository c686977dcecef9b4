"""What several commands share."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

    from orchestrator.client import Client

REACH_S = 3.0  # how long a command waits for a server to answer at all
F = TypeVar("F", bound=Callable[..., Any])


def connect_option(command: F) -> F:
    """`--connect`: without it, the first client endpoint of the settings that hold here."""
    return click.option(
        "--connect", metavar="ENDPOINT", help="The server's client endpoint.  [default: from the settings]"
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


@contextmanager
def connected(connect: str | None) -> "Iterator[Client]":
    """A client of a server that answers. Raises ServerUnreachable or TimeoutError otherwise."""
    from orchestrator.client import Client

    with Client(connect or default_endpoint(), connect_timeout_s=REACH_S) as client:
        client.ping(timeout_s=2 * REACH_S)  # connected, but is it a server of ours?
        yield client


def default_endpoint() -> str:
    from orchestrator.settings import load_settings

    return load_settings({}).client_endpoints[0]


def print_json(value: "BaseModel | Sequence[BaseModel] | dict[str, Any]") -> None:
    """One JSON document on stdout."""
    if isinstance(value, dict):
        plain: Any = value
    elif isinstance(value, Sequence):
        plain = [item.model_dump(mode="json") for item in value]
    else:
        plain = value.model_dump(mode="json")
    click.echo(json.dumps(plain, indent=2))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A table on stdout, or the line `empty` on stderr."""
    if not rows:
        click.echo(empty, err=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if _is_terminal() else 1000)  # for a script, no line is folded
    table = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.columns[0].min_width = max(len(str(row[0])) for row in rows)  # ids are there to be copied
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell), no_wrap=True) for cell in row))
    console.print(table)


def print_facts(facts: dict[str, object]) -> None:
    """Names and values, one a line; those without a value are left out."""
    shown = {name: value for name, value in facts.items() if value not in (None, "", [], {})}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        click.echo(f"{name:<{width}}  {value}")


def percent(progress: float | None) -> str:
    return "" if progress is None else f"{progress:.0%}"


def seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"


def in_units(nbytes: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024 or unit == "TiB":
            break
        nbytes /= 1024
    return f"{nbytes:.0f} {unit}" if nbytes >= 100 or unit == "B" else f"{nbytes:.1f} {unit}"


def _is_terminal() -> bool:
    return sys.stdout.isatty()
