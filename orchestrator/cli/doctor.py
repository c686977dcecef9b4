"""`atelier doctor`: what is here, what is missing, how to fix it. Works on the base install; never imports torch."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import click

from orchestrator.cli.common import json_option
from orchestrator.cli.group import FAILED

if TYPE_CHECKING:
    from orchestrator.settings import Settings

Level = Literal["ok", "note", "problem"]
COLORS = {"ok": "green", "note": "yellow", "problem": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. A `note` limits what works here, a `problem` keeps something from working that should."""

    level: Level
    subject: str
    text: str
    fix: str = ""


Check = Callable[["Settings"], Iterator[Finding]]


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Look for what is missing here, and say how to fix it. Exit code 1 when there is a problem.

    Example: atelier doctor --json
    """
    findings = list(examine())
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        click.echo(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print(findings, problems)
    if problems:
        raise click.exceptions.Exit(FAILED)


def examine() -> Iterator[Finding]:
    """All findings, in the order of the checks. A check that fails is a finding of its own."""
    from orchestrator.cli import checks
    from orchestrator.settings import SettingsError, load_settings
    from orchestrator.telemetry import configure_logging

    configure_logging("error")  # what the log would warn of is told as a finding
    yield from checks.installed()
    try:
        settings = load_settings({})
    except SettingsError as error:
        yield Finding("problem", "settings", str(error), "Correct the setting; the checks that need it were left out.")
        return
    for check in checks.OF_SETTINGS:
        try:
            yield from check(settings)
        except Exception as error:
            yield Finding("problem", check.__name__, f"could not be looked at: {error}")


def _print(findings: list[Finding], problems: int) -> None:
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        level = click.style(f"{finding.level:<7}", fg=COLORS[finding.level])
        click.echo(f"{level}  {finding.subject:<{width}}  {finding.text}")
        if finding.fix:
            click.echo(f"{'':<{width + 9}}  fix: {finding.fix}")
    click.echo(f"{problems} problems" if problems else "No problems.")
