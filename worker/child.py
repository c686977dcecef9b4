"""The process that does the work: the socket thread (main), the device thread, the encoder thread.

Started by worker.parent, which may kill it at any time; it never outlives its parent.
"""

import os
import signal
import sys
import threading
from functools import partial
from socket import gethostname
from typing import Any

import structlog

from instructors import inference, model, registry
from instructors.digests import Digests
from instructors.keeping import Keeping
from instructors.models import ONNX, ModelFolder
from instructors.redis_cache import RedisUnusable
from instructors.results_cache import ResultsCache
from instructors.sources import staging
from instructors.task import Padding, Place
from protocol.errors import ModelInvalid
from protocol.frames import keep_memory
from protocol.limits import MIB
from protocol.messages import Capabilities, DeviceFacts, Hello
from worker import hardware, logs
from worker.delivery import Delivery, Outbox
from worker.engine.engine import CRASHED, Engine
from worker.engine.mailbox import Mailbox
from worker.engine.workplace import Letter, WorkerPlace, Workplace
from worker.link import BadEndpoint, Link
from worker.offer import Entries, Offer
from worker.options import Options, parse
from worker.pulse import Pulse
from worker.residency import Residency
from worker.session import RefusedForGood, Session

WRONG_USAGE, REFUSED = 2, 3  # exit codes

log = structlog.get_logger("worker.child")


def main(argv: list[str] | None = None) -> int:
    """Run until told to leave. Exit codes: worker.options."""
    options = parse(argv)
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    threading.Thread(target=_die_with_parent, name="death pipe", daemon=True).start()
    _prepare_libraries()
    device = hardware.find(options.device)
    worker_id = options.name or f"{gethostname()}-{device.device_id}"
    logs.configure(options.log_level, worker_id=worker_id)
    outbox = Outbox()
    staging.clean(options.models)
    place = _workplace(options, device, Delivery(outbox))
    digests, keeping = Digests(place.models, options.cache_dir), Keeping()
    offer = Offer(place.models, device.device_id, place.residency, digests)
    makes_pictures = any(entry["family"] != ONNX for entry in offer.entries)

    def warm_up(first: Place) -> None:
        if makes_pictures:
            inference.warm_up()
        keeping.apply(first)

    engine = Engine(place, warm_up)
    hello = _hello(options, worker_id, device.facts(engine.memory_free), place.registry.names, offer.entries)

    def facts() -> dict[str, Any]:
        return {
            "memory_free": engine.memory_free,
            "resident_models": place.residency.names,
            "quantum_age_ms": place.pulse.age_ms,
        }

    session = Session(Link(options.connect), engine, outbox, hello, facts, place.statistics)
    signal.signal(signal.SIGTERM, lambda *_: session.hand_back(options.grace_s))
    signal.signal(signal.SIGHUP, lambda *_: place.mailbox.put(partial(_reload, place, keeping)))

    def changed(entries: Entries, gone: list[str]) -> None:
        session.offer(entries)
        place.mailbox.put(partial(_let_go, place, gone))

    place.delivery.start()
    engine.start()
    offer.watch(changed)
    log.info("started", device=device.device_id, kind=device.kind, slots=options.slots)
    try:
        session.run()
    except RefusedForGood as error:
        log.error("refused for good", reason=str(error))
        return REFUSED
    return 0


def _hello(options: Options, worker_id: str, device: DeviceFacts, actions: list[str], models: Entries) -> Hello:
    return Hello(
        worker_id=worker_id,
        instance_id=options.instance,
        device=device,
        capabilities=Capabilities(actions=actions, models=models, schedulers=inference.scheduler_names()),
        slots=options.slots,
        light_slots=options.light_slots,
    )


def _workplace(options: Options, device: hardware.Device, delivery: Delivery) -> Workplace:
    mailbox = Mailbox[Letter]()
    return Workplace(
        registry=registry.load(options.instructors),
        device=device,
        models=ModelFolder(options.models),
        residency=_residency(options, device),
        delivery=delivery,
        pulse=Pulse(options.pulse_fd),
        padding=Padding(options.rows_max, options.fixed_rows if options.padding == "reproducible" else None),
        quantum_s=options.quantum_ms / 1000,
        results=ResultsCache(options.cache_mb * MIB, options.cache_url, mailbox.put),
        cache_dir=options.cache_dir,
        mailbox=mailbox,
    )


def _residency(options: Options, device: hardware.Device) -> Residency:
    budget = options.memory_budget or device.default_budget
    aside = hardware.aside_budget() if device.is_cuda else 0
    return Residency(budget, device.free_cached, device.device_id, aside)


def _reload(workplace: Workplace, keeping: Keeping) -> None:
    """On the device thread: look at the files of models, and at what is to be kept."""
    place = WorkerPlace(workplace)
    try:
        model.reload_all(place)
        keeping.apply(place)
    except Exception:  # a worker is not lost over that
        log.exception("reloading failed")
    finally:
        place.close()


def _let_go(workplace: Workplace, gone: list[str]) -> None:
    """On the device thread: models whose files were taken away leave when the jobs that use them have ended."""
    place = WorkerPlace(workplace)
    for model_id in gone:
        model.let_go(model_id, place)


def _prepare_libraries() -> None:
    """Read by the libraries when they are imported: models come from the model folder, never from the network, and
    nobody is told of them (onnxruntime would, as built); one core is left to the other threads (threads that share a
    core wait for each other at every operation)."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) - 1, 1)))


def _die_with_parent() -> None:
    """The parent holds the other end of standard input and writes nothing: its end is the parent's end."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(CRASHED)


if __name__ == "__main__":
    code = CRASHED
    try:
        code = main()
    except (hardware.NoSuchDevice, BadEndpoint, registry.NoSuchModule, ModelInvalid, RedisUnusable) as error:
        print(error, file=sys.stderr)
        code = WRONG_USAGE
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else CRASHED
    except BaseException:
        log.critical("the worker failed", exc_info=True)
    sys.stderr.flush()
    os._exit(code)  # without waiting for a device thread that may hang
