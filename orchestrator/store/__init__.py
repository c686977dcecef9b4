"""What must survive a restart: see store.py."""

from orchestrator.store.engine import StoreInUse, StoreTooNew
from orchestrator.store.rows import (
    AliasRow,
    ArtifactRow,
    ChangeRow,
    Duplicate,
    EventRow,
    Expire,
    Expired,
    JobRecord,
    JobRow,
    JobStats,
    JobSummary,
    JobUpdate,
    ModelRow,
    Outcome,
    Recovered,
    RegistryRow,
    Row,
    SessionRow,
    TrafficRow,
    VersionRow,
)
from orchestrator.store.store import Store
from orchestrator.store.writer import Completion

__all__ = [
    "AliasRow",
    "ArtifactRow",
    "ChangeRow",
    "Completion",
    "Duplicate",
    "EventRow",
    "Expire",
    "Expired",
    "JobRecord",
    "JobRow",
    "JobStats",
    "JobSummary",
    "JobUpdate",
    "ModelRow",
    "Outcome",
    "Recovered",
    "RegistryRow",
    "Row",
    "SessionRow",
    "Store",
    "StoreInUse",
    "StoreTooNew",
    "TrafficRow",
    "VersionRow",
]
