"""What a job carries to its worker: its data and attachments, in memory or on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from orchestrator.core.model import Cost, Requirement
from protocol.codec import Buffer
from protocol.schemas import ACTIONS


@dataclass(slots=True)
class Payload:
    """`frames` None: the attachments are in the artifacts of these ids."""

    action: str
    data: dict[str, Any]
    attachments: list[dict[str, Any]] = field(default_factory=list)  # {media_type, nbytes}
    frames: Sequence[Buffer] | None = ()
    artifact_ids: Sequence[str] = ()
    digests: Sequence[bytes] = ()  # SHA-256 of each attachment; empty for a job that was restored
    shadow: str | None = None  # the model that is asked the same when the job has ended, for comparison


_requirement = lru_cache(4096)(Requirement)  # a few different ones for very many jobs
_cost = lru_cache(4096)(Cost)


@cache
def _default_steps(action: str) -> int | None:
    """Of requests that name none; None for an action without steps."""
    steps = ACTIONS[action].data.model_fields.get("steps") if action in ACTIONS else None
    return None if steps is None else steps.default


def is_light(action: str) -> bool:
    return action in ACTIONS and ACTIONS[action].light


def requirement_of(action: str, data: dict[str, Any], worker_id: str | None, device_id: str | None) -> Requirement:
    return _requirement(action, data.get("model_id"), worker_id, device_id, light=is_light(action))


def cost_of(action: str, data: dict[str, Any]) -> Cost:
    """Jobs of one model and size take time in proportion to their steps and pictures, or to their requests."""
    steps = data.get("steps", _default_steps(action))
    if steps is None:
        model_id = data.get("model_id")
        return _cost(f"{action} {model_id}" if model_id else action, float(len(data.get("requests") or (1,))))
    key = f"{action} {data.get('model_id')} {data.get('width')}x{data.get('height')}"
    return _cost(key, float(steps) * float(data.get("num_images", 1)))
