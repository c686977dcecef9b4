"""What must survive a restart: see store.py."""

from orchestrator.store.engine import StoreInUse, StoreTooNew
from orchestrator.store.rows import (
    ArtifactRow,
    Duplicate,
    EventRow,
    Expire,
    Expired,
    JobRecord,
    JobRow,
    JobStats,
    JobSummary,
    JobUpdate,
    Outcome,
    Recovered,
    Row,
    SessionRow,
)
from orchestrator.store.store import Store
from orchestrator.store.writer import Completion

__all__ = [
    "ArtifactRow",
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
    "Outcome",
    "Recovered",
    "Row",
    "SessionRow",
    "Store",
    "StoreInUse",
    "StoreTooNew",
]
