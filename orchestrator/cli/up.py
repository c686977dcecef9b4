"""`atelier up`."""

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.group import FAILED, end
from orchestrator.cli.options import as_arguments, settings_options
from orchestrator.client.errors import ClientClosed
from orchestrator.client.local import POLL_S, STOP_S, LocalStack, StartFailed, local_devices
from orchestrator.client.sync import Client
from orchestrator.settings import load_settings
from orchestrator.telemetry import configure_logging

if TYPE_CHECKING:
    from orchestrator.settings import Settings

AT_ONCE_S = 1.0  # for the workers to leave, after a second signal


@click.command()
@click.option(
    "--device",
    "devices",
    multiple=True,
    help="cpu or cuda:N, a worker each (repeatable).  [default: all GPUs, else cpu]",
)
@click.option(
    "--slots", type=click.IntRange(1, 4096), default=16, show_default=True, help="Jobs each worker takes at a time."
)
@settings_options
def up(devices: tuple[str, ...], slots: int, config: Path | None, **given: Any) -> None:
    """Run a server with its workers here, in the foreground.

    Ctrl-C (or SIGTERM) drains: running jobs end, no new ones are taken. A second one stops at once; durable jobs go
    on at the next start. Settings as in `atelier orchestrator`.

    Example: atelier up --device cuda:0 --device cuda:1
    """
    settings = load_settings(given, config)
    configure_logging(settings.log_level, settings.log_format)
    stack = LocalStack(
        as_arguments(config, given),
        settings.worker_endpoints[0],
        devices or local_devices(),
        settings.models_dir,
        slots,
        log_level=settings.log_level,
    )
    signals = Signals()
    try:
        stack.start()
        _serve(stack, settings, signals)
    except StartFailed as error:
        end(str(error), FAILED)
    finally:
        stack.stop(AT_ONCE_S if signals.count > 1 else STOP_S)


class Signals:
    """How often SIGINT and SIGTERM came, and a wait that they end."""

    def __init__(self) -> None:
        self.count = 0
        self._came = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._count)

    def wait(self, timeout_s: float) -> None:
        self._came.wait(timeout_s)
        self._came.clear()

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._came.set()


def _serve(stack: LocalStack, settings: "Settings", signals: Signals) -> None:
    """Until the first signal and the end of what runs then, or the second signal."""
    watch = threading.Thread(target=_announce, args=(stack, settings), daemon=True)
    watch.start()
    while not signals.count:
        stack.poll()
        if stack.all_workers_ended():
            end("No worker could start; see above. `atelier doctor` tells what is missing.", FAILED)
        signals.wait(POLL_S)
    click.echo("draining: running jobs end; press Ctrl-C again to stop now", err=True)
    stack.drain()
    while signals.count < 2 and stack.poll():
        signals.wait(POLL_S)


def _announce(stack: LocalStack, settings: "Settings") -> None:
    """Say when it can be used, and how."""
    endpoint = settings.client_endpoints[0]
    with suppress(ClientClosed), Client(endpoint, connect_timeout_s=None) as client:
        client.ping()
        stack.ready = True
        click.echo(f"clients connect to  {'  '.join(settings.client_endpoints)}")
        click.echo(f"workers connect to  {'  '.join(settings.worker_endpoints)}")
        while not client.workers():
            time.sleep(POLL_S)
        click.echo('ready; try:  atelier generate "a red circle on a white background" -o out.png')
