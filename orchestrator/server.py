"""One orchestrator process, from its settings to its end."""

import gc
import os
import signal
import sys
import threading
from types import FrameType

import structlog

from orchestrator.artifacts import ArtifactStore
from orchestrator.broker import Broker
from orchestrator.core.core import Core
from orchestrator.core.settings import CoreSettings
from orchestrator.settings import Settings
from orchestrator.store import Store
from orchestrator.telemetry import configure_logging
from orchestrator.wakeup import Wakeup
from protocol.frames import keep_memory

SWITCH_INTERVAL_S = 0.0005  # a busy writer thread must not keep the GIL from the loop
GC_THRESHOLDS = (20_000, 50, 100)  # kept jobs are many objects and no cycles: looking through them all is lost time
CLOSE_TIMEOUT_S = 10.0

log = structlog.get_logger("orchestrator")


def core_settings(settings: Settings) -> CoreSettings:
    """The core's knobs; they bear the same names in the settings."""
    names = [name for name in CoreSettings.__dataclass_fields__ if name in Settings.model_fields]
    return CoreSettings(**{name: getattr(settings, name) for name in names})


def run(settings: Settings, *, exit_with_stdin: bool = False) -> None:
    """Serve until SIGTERM or SIGINT: the first drains, a second stops at once.

    With `exit_with_stdin` the process also ends when its standard input does, so that it never outlives a parent
    that holds the other end. Raises SettingsError, StoreInUse, EndpointRefused or ZMQError where it cannot start.
    """
    configure_logging(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_memory()
    settings.make_folders()
    wakeup = Wakeup()
    store = Store(settings.database_url, wakeup.wake)
    artifacts = ArtifactStore(settings.artifacts_dir, wakeup.wake)
    try:
        broker = Broker(settings, Core(core_settings(settings)), store, artifacts, wakeup)
        try:
            _obey_signals(broker)
            if exit_with_stdin:
                threading.Thread(target=_watch_stdin, args=(broker,), name="stdin", daemon=True).start()
            broker.restore()
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            log.info("ready", clients=settings.client_endpoints, workers=settings.worker_endpoints)
            broker.run()
        finally:
            broker.close()
    finally:
        artifacts.close(CLOSE_TIMEOUT_S)
        store.close(CLOSE_TIMEOUT_S)
        log.info("stopped")


def _obey_signals(broker: Broker) -> None:
    def drain(number: int, frame: FrameType | None) -> None:
        broker.drain()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, drain)


def _watch_stdin(broker: Broker) -> None:
    while os.read(0, 4096):
        pass
    broker.stop()
