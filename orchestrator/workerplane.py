"""What workers send, from the wire to the core's events."""

from typing import TYPE_CHECKING, Any

import structlog

from orchestrator.core import events as e
from orchestrator.core.model import Fault, Outcome
from orchestrator.payload import is_light
from orchestrator.ports import Connection, Received
from orchestrator.registry.offers import with_names
from protocol import PROTOCOL_VERSION
from protocol.codec import check_attachments, unpack_header
from protocol.enums import ErrorCode, EventName, Status
from protocol.errors import AtelierError, UnsupportedProtocol
from protocol.limits import INT_MAX
from protocol.messages import (
    FROM_WORKER,
    Goodbye,
    Heartbeat,
    HeldJob,
    Hello,
    WorkerEvent,
    WorkerResult,
    parse_message,
)
from protocol.schemas.inference import scheduler_key

if TYPE_CHECKING:
    from orchestrator.broker import Broker

log = structlog.get_logger("orchestrator")


class WorkerPlane:
    def __init__(self, broker: "Broker") -> None:
        self._broker = broker

    def take(self, received: Received) -> None:
        """One message; what cannot be read is logged and answered `refused`; the sender's lease tells the rest."""
        peer = received.connection
        try:
            header = unpack_header(received.header, self._broker.limits)
            if header.get("kind") == "hello" and header.get("protocol") != PROTOCOL_VERSION:
                raise UnsupportedProtocol(details={"supported": [PROTOCOL_VERSION]})
            check_attachments(header, [len(frame) for frame in received.frames], self._broker.limits)
            message = parse_message(header, FROM_WORKER)
        except AtelierError as error:
            log.warning("a worker's message was refused", code=error.code.value, problem=error.message)
            self._broker.workers.post(peer, {"kind": "refused", "error": error.to_wire()})
            return
        match message:
            case WorkerResult():
                self._broker.feed(self._result(peer, message, received.frames))
            case WorkerEvent():
                self._broker.feed(self._event(peer, message, received.frames))
            case Heartbeat():
                worker = self._broker.core.fleet.by_peer.get(peer)
                if worker is not None:
                    self._broker.model_stats.take(worker, message.models)
                self._broker.feed(self._heartbeat(peer, message))
            case Hello():
                self._hello(peer, message)
            case Goodbye():
                self._broker.feed(e.WorkerGoodbye(peer))

    def _hello(self, peer: Connection, hello: Hello) -> None:
        capabilities = hello.capabilities
        models = {str(model["model_id"]): model for model in capabilities.models or [] if "model_id" in model}
        self._broker.schedulers |= {scheduler_key(name): name for name in capabilities.schedulers}
        self._broker.feed(
            e.WorkerHello(
                peer=peer,
                worker_id=hello.worker_id,
                instance_id=hello.instance_id,
                device_id=hello.device.device_id,
                device_kind=hello.device.kind,
                memory_total=hello.device.memory_total,
                memory_free=hello.device.memory_free,
                actions=frozenset(capabilities.actions),
                models=None if capabilities.models is None else frozenset(with_names(models)),
                slots=hello.slots,
                resident=frozenset(hello.resident_models),
                held=[_held(job) for job in hello.held],
                draining=hello.draining,
                model_nbytes={name: model["nbytes"] for name, model in models.items() if _is_size(model.get("nbytes"))},
                light_slots=hello.light_slots,
            )
        )
        if peer in self._broker.core.fleet.by_peer:  # else it was refused
            self._broker.offers.said(hello.worker_id, None if capabilities.models is None else models)

    def _heartbeat(self, peer: Connection, heartbeat: Heartbeat) -> e.WorkerHeartbeat:
        held = [_held(job) for job in heartbeat.held]
        resident = frozenset(heartbeat.resident_models)
        about = heartbeat.memory_free, resident, heartbeat.quantum_age_ms, heartbeat.models_upto
        return e.WorkerHeartbeat(peer, held, *about)

    def _event(self, peer: Connection, event: WorkerEvent, frames: list[Any]) -> e.WorkerEvent:
        attachments = [entry.to_wire() for entry in event.attachments]
        progress = _progress(event.data) if event.event is EventName.PROGRESS else None
        name = event.event.value
        return e.WorkerEvent(peer, event.job_id, event.attempt, name, event.data, attachments, frames, progress)

    def _result(self, peer: Connection, result: WorkerResult, frames: list[Any]) -> e.WorkerResult:
        code = None if result.success else _code(result.error)
        status = Status.COMPLETED if code is None else Status.FAILED
        if code is ErrorCode.CANCELLED:
            status = Status.CANCELLED
        attachments = [entry.to_wire() for entry in result.attachments] if frames else ()
        error = None if code is None else _error(code, result.error or {})
        nbytes = sum([entry["nbytes"] for entry in attachments])
        outcome = Outcome(status, result.data, error, attachments, frames, nbytes)
        return e.WorkerResult(peer, result.job_id, result.attempt, outcome, code, result.load_ms, result.running_ms)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= INT_MAX


def _held(job: HeldJob) -> e.Held:
    about = job.tenant, job.request_id, job.fingerprint, job.action, job.durable
    return e.Held(job.job_id, job.attempt, job.state, *about, light=is_light(job.action))


def _code(error: dict[str, Any] | None) -> ErrorCode:
    try:
        return ErrorCode((error or {}).get("code"))  # type: ignore[call-arg, arg-type]
    except ValueError:
        return ErrorCode.INTERNAL


def _error(code: ErrorCode, error: dict[str, Any]) -> dict[str, Any]:
    """A worker's error in the catalogue's form, whatever it sent."""
    message, details, retry_after_ms = error.get("message"), error.get("details"), error.get("retry_after_ms")
    return Fault(
        code,
        message if isinstance(message, str) else "",
        details if isinstance(details, dict) else {},
        retry_after_ms if isinstance(retry_after_ms, int) else None,
    ).to_wire()


def _progress(data: dict[str, Any]) -> float | None:
    """0 to 1 over all of the job; None where the worker did not say."""
    progress, step, steps = (data.get(key) for key in ("progress", "step", "steps"))
    if isinstance(progress, int | float) and 0 <= progress <= 1:
        return float(progress)
    if isinstance(step, int) and isinstance(steps, int) and steps > 0:
        return max(0.0, min(1.0, step / steps))
    return None
