"""`atelier worker`, which is `python -m worker`."""

import click

from orchestrator.cli.group import FAILED, end
from orchestrator.client.errors import WORKER_EXTRA


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: tuple[str, ...]) -> None:
    """Run one worker. Its options and its help are those of `python -m worker`."""
    try:
        from worker.main import main
    except ImportError as error:
        end(f"Workers need what is not installed here ({error.name}): {WORKER_EXTRA}", FAILED)
    raise click.exceptions.Exit(main(list(arguments)))
