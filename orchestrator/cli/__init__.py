"""The `atelier` command. Each command's file is loaded when it is called, so that `--help` is quick."""

from collections.abc import Sequence

from orchestrator.cli.group import cli


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `atelier`; without `arguments`, with those of the command line. Does not return."""
    cli(arguments, prog_name="atelier")


__all__ = ["cli", "main"]
