"""`inference.validate`: would this request run, where and how long? Nothing is done for it."""

from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.core import events as e
from orchestrator.core.forecast import Forecast, forecasts
from orchestrator.core.model import Job
from protocol.errors import AtelierError, InvalidRequest
from protocol.messages import Request
from protocol.schemas import ACTIONS, find_action

if TYPE_CHECKING:
    from orchestrator.broker import Broker


def validate(broker: "Broker", ask: Ask) -> dict[str, Any]:
    """Take the request as far as intake and core judge it, and no further. Attachments are not looked at."""
    known = ACTIONS.get(ask.data.action)
    if known is not None and known.answered_by != "worker":
        problem = "is answered by the server itself; only actions that workers run can be validated"
        raise InvalidRequest(f"action: {problem}.", details={"fields": [{"field": "action", "problem": problem}]})
    request = ask.request.model_copy(update={"action": ask.data.action, "data": ask.data.data, "attachments": []})
    broker.feed(e.Tick())  # judged by what holds now, not when something last happened
    job, error = _judge(broker, ask, request)
    answer = {"runs": error is None, "error": error, "data": {} if job is None else job.payload.data}
    if job is None or error is not None:
        return {**answer, "estimate_measured": False, "workers": []}
    workers = [_told(forecast, job) for forecast in forecasts(broker.core, job, broker.clock.now_ms())]
    return {**answer, "estimate_measured": broker.core.estimates.measured(job.cost), "workers": workers}


def _judge(broker: "Broker", ask: Ask, request: Request) -> tuple[Job | None, dict[str, Any] | None]:
    """The job that the request would make, if it can be told, and the error it would be answered."""
    try:
        job = broker.intake.job_for(ask.tenant, request, find_action(request.action), [])[0]
    except AtelierError as error:
        return None, error.to_wire()
    fault = broker.core.lifecycle.refusal(job, ask.connection)
    return job, None if fault is None else fault.to_wire()


def _told(forecast: Forecast, job: Job) -> dict[str, Any]:
    worker = forecast.worker
    return {
        "worker_id": worker.worker_id,
        "device_id": worker.device_id,
        "start_ms": forecast.start_ms,
        "load_ms": forecast.load_ms,
        "run_ms": forecast.run_ms,
        "memory_bytes": worker.model_nbytes.get(job.requirement.model_id or ""),
        "warm": forecast.warm,
    }


HANDLERS = {"inference.validate": validate}
