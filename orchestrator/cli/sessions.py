"""`atelier sessions`."""

import json
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import (
    connect_option,
    connected,
    json_option,
    percent,
    print_facts,
    print_json,
    print_table,
    seconds,
)
from orchestrator.cli.group import LazyGroup

if TYPE_CHECKING:
    from orchestrator.client import Client
    from protocol.schemas.session import SessionInfo

NAMED_MAX = 1000  # sessions that are looked through for a name


@click.group(
    cls=LazyGroup,
    lazy={
        "list": ("orchestrator.cli.sessions:list_sessions", "List sessions, newest first."),
        "show": ("orchestrator.cli.sessions:show", "Show one session and what its jobs come to."),
        "create": ("orchestrator.cli.sessions:create", "Open a session."),
        "cancel": ("orchestrator.cli.sessions:cancel", "Cancel all jobs of a session and close it."),
    },
)
def sessions() -> None:
    """List, show, create and cancel sessions: jobs that belong together.

    Example: atelier sessions list
    """


@click.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
@connect_option
def list_sessions(limit: int, as_json: bool, connect: str | None) -> None:
    """List sessions, newest first.

    Example: atelier sessions list --json
    """
    with connected(connect) as client:
        found = client.sessions.list(limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (item.session_id, item.name, item.status, _counts(item.jobs), percent(item.progress), item.created_at)
        for item in found
    ]
    print_table(("SESSION", "NAME", "STATUS", "JOBS", "DONE", "CREATED"), rows, "No sessions.")


@click.command()
@click.argument("session", metavar="ID|NAME")
@json_option
@connect_option
def show(session: str, as_json: bool, connect: str | None) -> None:
    """Show one session and what its jobs come to. Of several of one name, the newest.

    Example: atelier sessions show posters
    """
    with connected(connect) as client:
        found = _find(client, session)
    _print_session(found, as_json)


@click.command()
@click.option("--name", default="", help="For people.")
@click.option(
    "--default", "defaults", multiple=True, metavar="FIELD=VALUE", help="A data field for its jobs (repeatable)."
)
@click.option("--priority", type=click.IntRange(0, 9), help="For its jobs that say none; 9 is most urgent.")
@click.option("--idle-timeout-ms", type=click.IntRange(1), help="It expires when nobody touches it for so long.")
@json_option
@connect_option
def create(
    name: str,
    defaults: tuple[str, ...],
    priority: int | None,
    idle_timeout_ms: int | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Open a session. Values of defaults are JSON where they can be, else text.

    Example: atelier sessions create --name posters --default steps=30 --default scheduler=euler
    """
    fields: dict[str, Any] = {"priority": priority, "idle_timeout_ms": idle_timeout_ms}
    given = {key: value for key, value in fields.items() if value is not None}
    given["defaults"] = dict(map(_default, defaults))
    with connected(connect) as client:
        made = client.sessions.create(name, **given)
    _print_session(made, as_json)


@click.command()
@click.argument("session_id")
@json_option
@connect_option
def cancel(session_id: str, as_json: bool, connect: str | None) -> None:
    """Cancel all jobs of a session and close it.

    Example: atelier sessions cancel 0197a2b4-5d7e-7c11-8a3f-0d6a1c9e4b52
    """
    with connected(connect) as client:
        done = client.sessions.cancel(session_id)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{done.session_id}  {done.cancelled_jobs} jobs cancelled")


def _find(client: "Client", session: str) -> "SessionInfo":
    from protocol.errors import InvalidRequest, NotFound

    try:
        return client.sessions.get(session)
    except (NotFound, InvalidRequest):  # a name may be longer than an id
        named = [item for item in client.sessions.list(NAMED_MAX) if item.name == session]  # the newest first
        if not named:
            raise
        return named[0]


def _print_session(session: "SessionInfo", as_json: bool) -> None:
    if as_json:
        print_json(session)
        return
    facts, told = session.model_dump(mode="json", exclude={"analytics"}), session.analytics
    shown = {"jobs": _counts(session.jobs), "progress": percent(session.progress)}
    failures = ", ".join(f"{count} {code}" for code, count in sorted(told.failures.items()))
    analytics = {
        "images": told.images or None,
        "steps": told.steps or None,
        "retries": told.retries or None,
        "losses": told.losses or None,
        "failures": failures,
    }
    print_facts({**facts, **shown, "defaults": json.dumps(session.defaults) if session.defaults else None, **analytics})
    spans = [(name, span) for name, span in (("waited", told.queue_ms), ("ran", told.run_ms)) if span is not None]
    if spans:
        click.echo()
        print_table(("JOBS", "P50", "P95"), [(name, seconds(span.p50), seconds(span.p95)) for name, span in spans], "")
    if told.devices:
        click.echo()
        print_table(("WORKER", "DEVICE", "JOBS"), [(at.worker_id, at.device_id, at.jobs) for at in told.devices], "")


def _counts(jobs: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in jobs.items() if count)


def _default(text: str) -> tuple[str, Any]:
    field, separator, value = text.partition("=")
    if not separator or not field:
        raise click.BadParameter(f"{text!r} is not FIELD=VALUE", param_hint="--default")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value
