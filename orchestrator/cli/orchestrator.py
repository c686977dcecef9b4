"""`atelier orchestrator`, which is `python -m orchestrator`."""

from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import DBAPIError
from zmq import ZMQError

from orchestrator.cli.group import FAILED, end
from orchestrator.cli.options import settings_options
from orchestrator.server import run
from orchestrator.settings import load_settings
from orchestrator.store.engine import StoreInUse, StoreTooNew


@click.command()
@click.option("--exit-with-stdin", is_flag=True, help="End when standard input does, so as not to outlive a parent.")
@settings_options
def orchestrator(exit_with_stdin: bool, config: Path | None, **given: Any) -> None:
    """Run the orchestrator alone; workers and clients connect to it.

    SIGTERM and Ctrl-C drain: running jobs end, no new ones are taken. A second signal stops at once. Settings come
    from the command line, the environment (ATELIER_<NAME>), the settings file, and the defaults, in this order.

    Example: atelier orchestrator --worker-endpoints tcp://127.0.0.1:5556
    """
    try:
        run(load_settings(given, config), exit_with_stdin=exit_with_stdin)
    except ZMQError as error:
        end(f"A socket cannot be used: {error.strerror}. `atelier doctor` tells which.", FAILED)
    except (StoreInUse, StoreTooNew) as error:
        end(str(error), FAILED)
    except DBAPIError as error:
        end(f"The database cannot be used: {error.orig}.", FAILED)
