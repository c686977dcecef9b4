"""`system.*`: health, facts and counters."""

from typing import Annotated, Any

from pydantic import Field

from protocol.messages import Int
from protocol.schemas.base import Action, ActionData, ResultData


class NoData(ActionData):
    """An action that takes no fields."""


class NoopData(ActionData):
    """Any value to be echoed; attachments are echoed too. `sleep_ms` makes it take time, in steps of 10 ms."""

    echo: Any = None
    sleep_ms: Annotated[Int, Field(ge=0, le=3_600_000)] = 0


class NoopResult(ResultData):
    echo: Any = None


class PingResult(ResultData):
    time: str  # RFC 3339, the orchestrator's clock


class InfoResult(ResultData):
    version: str
    protocol: int
    epoch: str  # new at each start of the orchestrator
    started_at: str
    limits: dict[str, int]


class CapabilitiesResult(ResultData):
    actions: list[str]
    models: list[dict[str, Any]]
    schedulers: list[str]


class StatsResult(ResultData):
    jobs: dict[str, int]  # by status, of the jobs in memory
    queued: int
    workers: int
    workers_free: int
    connections: int
    draining: bool


ACTIONS = [
    Action("system.ping", "orchestrator", NoData, PingResult, "Is the server there?"),
    Action("system.info", "orchestrator", NoData, InfoResult, "Version, start and limits of the server."),
    Action("system.capabilities", "orchestrator", NoData, CapabilitiesResult, "What the connected workers can run."),
    Action("system.stats", "orchestrator", NoData, StatsResult, "Counters of jobs and workers."),
    Action("system.noop", "worker", NoopData, NoopResult, "Echo data and attachments; for health and benchmarks."),
]
