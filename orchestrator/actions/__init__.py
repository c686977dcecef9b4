"""The actions that the orchestrator answers itself, one file per domain.

A handler returns the answer's `data`, or None where the answer comes later; it raises AtelierError to refuse.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.actions import (
    artifact,
    inference,
    job,
    model,
    model_benchmarks,
    model_changes,
    model_register,
    session,
    system,
    worker,
)
from orchestrator.actions.ask import Ask

if TYPE_CHECKING:
    from orchestrator.broker import Broker

Handler = Callable[["Broker", Ask], dict[str, Any] | None]

HANDLERS: dict[str, Handler] = {
    **system.HANDLERS,
    **session.HANDLERS,
    **job.HANDLERS,
    **artifact.HANDLERS,
    **worker.HANDLERS,
    **model.HANDLERS,
    **model_changes.HANDLERS,
    **model_register.HANDLERS,
    **model_benchmarks.HANDLERS,
    **inference.HANDLERS,
}

__all__ = ["HANDLERS", "Ask", "Handler"]
