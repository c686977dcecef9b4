"""`atelier models`: what changes the registry."""

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import connect_option, connected, json_option, print_facts, print_json, print_table
from orchestrator.cli.models import print_traffic

if TYPE_CHECKING:
    from protocol.schemas.model import AliasInfo, VersionInfo


def _whoami() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id
        return None


author_option = click.option("--author", default=_whoami, help="Who does it, for the history.  [default: your user]")


@click.command()
@click.argument("name")
@click.argument("source", metavar="PATH|URL|NAME")
@click.option("--version", help="[default: the next number]")
@click.option("--alias", help="Let this alias point to it then.")
@click.option("--meta", "meta", multiple=True, metavar="FIELD=VALUE", help="Metadata of the version (repeatable).")
@click.option("--worker", "worker_id", metavar="ID", help="In whose model folder it is to lie.  [default: any]")
@author_option
@json_option
@connect_option
def register(
    name: str,
    source: str,
    version: str | None,
    alias: str | None,
    meta: tuple[str, ...],
    worker_id: str | None,
    author: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Bring in a new version of a model.

    SOURCE is a file or folder here, which is sent; else a URL (s3://…), what MLflow calls a model (models:/name@alias),
    or a folder in the worker's model folder.

    \b
    Examples:
      atelier models register localisation ./trained --alias default
      atelier models register localisation models:/localisation@champion
    """
    path = Path(source)
    with connected(connect) as client:
        made = client.models.register(
            name,
            path if path.exists() else source,
            version=version,
            metadata=dict(map(_field, meta)),
            alias=alias,
            author=author,
            worker_id=worker_id,
        )
    _print_version(made, as_json)


@click.command()
@click.argument("name")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Take the alias away.")
@author_option
@json_option
@connect_option
def alias(
    name: str,
    alias_name: str,
    version: str | None,
    delete: bool,
    author: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Let an alias point to a version, or take it away. Workers that serve the version before load the new one first.

    \b
    Examples:
      atelier models alias localisation default 2
      atelier models alias localisation canary --delete
    """
    if (version is None) != delete:
        raise click.UsageError("Give a version, or --delete.")
    with connected(connect) as client:
        moved = client.models.set_alias(name, alias_name, version, author=author)
    _print_alias(moved, as_json)


@click.command()
@click.argument("name")
@click.argument("alias_name", metavar="[ALIAS]", default="default")
@author_option
@json_option
@connect_option
def rollback(name: str, alias_name: str, author: str | None, as_json: bool, connect: str | None) -> None:
    """Let an alias (that called `default`, if none is named) point to the version before.

    Example: atelier models rollback localisation
    """
    with connected(connect) as client:
        moved = client.models.rollback(name, alias_name, author=author)
    _print_alias(moved, as_json)


@click.command()
@click.argument("name")
@click.option("--split", "splits", multiple=True, metavar="VERSION=WEIGHT", help="In percent (repeatable).")
@click.option("--shadow", metavar="VERSION=FRACTION", help="A version that gets copies of a share of the requests.")
@click.option("--fallback", "fallbacks", multiple=True, metavar="MODEL", help="To use where those cannot (repeatable).")
@click.option("--latency-ms-max", type=click.IntRange(1), help="Pass over a model that takes longer.")
@click.option("--device", "devices", multiple=True, help="Only on this device or kind, e.g. cuda (repeatable).")
@click.option("--cost-max", type=click.FloatRange(0), help="Only models whose metadata tells no greater cost.")
@click.option("--clear", is_flag=True, help="As without traffic.")
@author_option
@json_option
@connect_option
def traffic(
    name: str,
    splits: tuple[str, ...],
    shadow: str | None,
    fallbacks: tuple[str, ...],
    latency_ms_max: int | None,
    devices: tuple[str, ...],
    cost_max: float | None,
    clear: bool,
    author: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Split the requests for a name between versions; without options, show how they are. Replaces what was there.

    \b
    Examples:
      atelier models traffic localisation --split 1=90 --split 2=10
      atelier models traffic localisation --split 1=100 --shadow 2=0.1
      atelier models traffic localisation --clear
    """
    policy = {"latency_ms_max": latency_ms_max, "devices": list(devices) or None, "cost_max": cost_max}
    given = bool(splits or shadow or fallbacks or any(value is not None for value in policy.values()))
    if given and clear:
        raise click.UsageError("--clear takes no other options.")
    with connected(connect) as client:
        if given or clear:
            shadowed = None if shadow is None else dict(zip(("version", "fraction"), _share(shadow), strict=True))
            fields = {"shadow": shadowed, "fallbacks": list(fallbacks), "policy": policy, "author": author}
            found = client.models.set_traffic(name, dict(map(_share, splits)), **fields)
        else:
            from protocol.schemas.model import TrafficInfo

            found = client.models.info(name).traffic or TrafficInfo(name=name)
    if as_json:
        print_json(found)
    else:
        print_traffic(found)


@click.command()
@click.argument("model_id", metavar="NAME[:VERSION]")
@click.option(
    "--set", "fields", multiple=True, metavar="FIELD=VALUE", help="JSON where it can be, else text (repeatable)."
)
@click.option("--unset", multiple=True, metavar="FIELD", help="Take a field away (repeatable).")
@click.option("--revision", type=click.IntRange(0), help="Change it only if this is its revision.")
@author_option
@json_option
@connect_option
def metadata(
    model_id: str,
    fields: tuple[str, ...],
    unset: tuple[str, ...],
    revision: int | None,
    author: str | None,
    as_json: bool,
    connect: str | None,
) -> None:
    """Show or change what is known of a model, or of one of its versions.

    \b
    Examples:
      atelier models metadata localisation
      atelier models metadata localisation:2 --set license=MIT --set 'tags=["trained"]'
    """
    name, _, version = model_id.partition(":")
    changes = {**dict(map(_field, fields)), **dict.fromkeys(unset)}
    with connected(connect) as client:
        if changes:
            found = client.models.put_metadata(name, changes, version or None, revision=revision, author=author)
        else:
            found = client.models.get_metadata(name, version or None)
    if as_json:
        print_json(found)
        return
    known = found.metadata.model_dump(mode="json", exclude_none=True)
    print_facts({"revision": found.revision, **{key: _plain(value) for key, value in known.items()}})


@click.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
@connect_option
def history(name: str, limit: int, as_json: bool, connect: str | None) -> None:
    """Show who changed what of a model, and when, newest first.

    Example: atelier models history localisation
    """
    with connected(connect) as client:
        found = client.models.history(name, limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (item.at, item.kind, item.subject, _short(item.before), _short(item.after), item.author or item.tenant)
        for item in found
    ]
    print_table(("WHEN", "WHAT", "OF", "BEFORE", "AFTER", "WHO"), rows, "Nothing was changed.")


@click.command()
@click.argument("name")
@click.argument("version")
@author_option
@json_option
@connect_option
def delete(name: str, version: str, author: str | None, as_json: bool, connect: str | None) -> None:
    """Take a version out of the registry. Its files stay where they are.

    Example: atelier models delete localisation 1
    """
    with connected(connect) as client:
        gone = client.models.delete_version(name, version, author=author)
    _print_version(gone, as_json)


def _print_version(version: "VersionInfo", as_json: bool) -> None:
    for warning in version.warnings:
        click.echo(warning, err=True)
    if as_json:
        print_json(version)
        return
    shown = version.model_dump(mode="json", exclude={"source", "metrics", "tags", "name", "version", "warnings"})
    print_facts({**shown, "aliases": ", ".join(version.aliases)})


def _print_alias(moved: "AliasInfo", as_json: bool) -> None:
    if as_json:
        print_json(moved)
        return
    now, before = moved.version or "nothing", moved.before or "nothing"
    loaded = f", loaded on {', '.join(moved.loaded_on)}" if moved.loaded_on else ""
    click.echo(f"{moved.name}@{moved.alias}  {before} -> {now}{loaded}")


def _share(text: str) -> tuple[str, float]:
    version, separator, share = text.partition("=")
    try:
        return version, float(share)
    except ValueError:
        problem = f"{text!r} is not VERSION=NUMBER" if separator else f"{text!r} lacks its =NUMBER"
        raise click.BadParameter(problem) from None


def _field(text: str) -> tuple[str, Any]:
    field, separator, value = text.partition("=")
    if not separator or not field:
        raise click.BadParameter(f"{text!r} is not FIELD=VALUE")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else _plain(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
