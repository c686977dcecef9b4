"""One request to the orchestrator itself."""

from typing import Any, NamedTuple

from orchestrator.ports import Connection
from protocol.messages import Request


class Ask(NamedTuple):
    """`data` is the request's data as the action's model, checked."""

    connection: Connection
    tenant: str
    request: Request
    data: Any
    frames: list[Any]

    @property
    def request_id(self) -> str:
        return self.request.request_id
