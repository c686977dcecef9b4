"""`inference.validate`: would this request run, where and how long? Nothing is done for it."""

from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.core import events as e
from orchestrator.core.forecast import Forecast, forecasts
from orchestrator.core.model import Job
from protocol.errors import AtelierError, InvalidRequest, ModelNotFound, NoCapableWorker
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
    data, job, error = _judge(broker, ask, request)
    answer = {"runs": error is None, "error": error, "data": data}
    if job is None or error is not None:
        return {**answer, "estimate_measured": False, "workers": []}
    workers = [_told(forecast, job) for forecast in forecasts(broker.core, job, broker.clock.now_ms())]
    return {**answer, "estimate_measured": broker.core.estimates.measured(job.cost), "workers": workers}


def _judge(broker: "Broker", ask: Ask, request: Request) -> tuple[dict[str, Any], Job | None, dict[str, Any] | None]:
    """The data with its defaults where its fields are right, the job that the request would make, if it can be told,
    and the error it would be answered."""
    try:
        action = find_action(request.action)
        job = broker.intake.job_for(ask.tenant, request, action, [])[0]
    except (ModelNotFound, NoCapableWorker) as error:  # its fields were looked at before
        return broker.intake.data_for(ask.tenant, request, action)[0], None, error.to_wire()
    except AtelierError as error:
        return {}, None, error.to_wire()
    fault = broker.core.lifecycle.refusal(job, ask.connection)
    return job.payload.data, job, None if fault is None else fault.to_wire()


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
