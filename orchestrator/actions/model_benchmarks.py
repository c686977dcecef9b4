"""`model.benchmarks`"""

from typing import TYPE_CHECKING, Any

from orchestrator.actions.ask import Ask
from orchestrator.clock import rfc3339
from orchestrator.store import BenchmarkRow, queries
from orchestrator.store.writer import Completion
from orchestrator.stored import disk_error
from protocol.codec import unpack
from protocol.errors import ModelNotFound

if TYPE_CHECKING:
    from orchestrator.broker import Broker


def list_benchmarks(broker: "Broker", ask: Ask) -> None:
    def read(completion: Completion) -> None:
        if completion.error is not None:
            broker.reject(ask.connection, ask.request_id, disk_error(completion.error))
        else:
            broker.answer(ask, {"benchmarks": [_told(row) for row in completion.value]})

    data = ask.data
    try:
        model_id = broker.resolver.resolve(ask.tenant, data.model_id).model_id
    except ModelNotFound:  # gone, but what was measured of it is not
        model_id = data.model_id
    query = queries.benchmarks_of(ask.tenant, model_id, data.limit, data.before)
    # One that has just ended is on its way to the disk: behind that.
    broker.store.write([], broker.expect(lambda _: broker.store.read(query, broker.expect(read))))


def _told(row: BenchmarkRow) -> dict[str, Any]:
    return {**unpack(row.result), "job_id": row.job_id, "at": rfc3339(row.at_ms), "worker_id": row.worker_id}


HANDLERS = {"model.benchmarks": list_benchmarks}
