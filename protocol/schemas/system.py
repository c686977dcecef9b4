"""`system.*`: health, facts and counters."""

from typing import Annotated, Any

from pydantic import Field

from protocol.limits import MIB
from protocol.messages import Int
from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.model_figures import RunFigures


class NoData(ActionData):
    """An action that takes no fields."""


class NoopData(ActionData):
    """Attachments are echoed too."""

    echo: Any = None  # any value, to be echoed
    sleep_ms: Annotated[Int, Field(ge=0, le=3_600_000)] = 0  # take so long, in steps of 10 ms
    reply_nbytes: Annotated[Int, Field(ge=0, le=64 * MIB)] = 0  # add an attachment of so many zero bytes to the answer


class NoopResult(ResultData):
    echo: Any = None


class PingResult(ResultData):
    time: str  # RFC 3339, the orchestrator's clock


class InfoResult(ResultData):
    version: str  # of the server
    protocol: int  # the version of the wire
    epoch: str  # new at each start of the orchestrator
    started_at: str
    limits: dict[str, int]  # the server's, by the names in Limits


class CapabilitiesResult(ResultData):
    actions: list[str]  # that some worker runs
    models: list[dict[str, Any]]  # of connected workers, at most 1,000; `model.list` tells more of each, and all
    schedulers: list[str]  # names that `scheduler` takes


class StatsResult(ResultData):
    jobs: dict[str, int]  # by status, of the jobs in memory
    queued: int  # jobs waiting for a worker
    workers: int  # connected
    workers_free: int  # of these, with a free slot
    connections: int  # of clients
    draining: bool  # the server is stopping and takes no work
    inference: RunFigures = RunFigures()  # of all models together


ACTIONS = [
    Action("system.ping", "orchestrator", NoData, PingResult, "Is the server there?"),
    Action("system.info", "orchestrator", NoData, InfoResult, "Version, start and limits of the server."),
    Action("system.capabilities", "orchestrator", NoData, CapabilitiesResult, "What the connected workers can run."),
    Action("system.stats", "orchestrator", NoData, StatsResult, "Counters of jobs and workers."),
    Action("system.noop", "worker", NoopData, NoopResult, "Echo data and attachments; for health and benchmarks."),
]
