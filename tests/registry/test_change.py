"""What is kept of a change for those who ask for it again."""

from types import SimpleNamespace
from typing import Any

from orchestrator.actions.ask import Ask
from orchestrator.ports import Connection
from orchestrator.registry.change import Changes
from protocol.messages import Request


def ask(connection: bytes, *frames: bytes, is_req: bool = False) -> Ask:
    request = Request(request_id="r", action="model.register", data={})
    return Ask(Connection(connection, is_req), "t", request, None, list(frames))


def test_attachments_that_come_again_are_not_kept() -> None:
    broker: Any = SimpleNamespace()
    changes = Changes(broker)
    change = changes.open(ask(b"a", b"model"))
    assert change is not None
    for connection in (b"a", b"b", b"b", b"c"):
        assert changes.open(ask(connection, b"model", is_req=connection == b"c")) is None
    assert [len(each.frames) for each in change.asks.values()] == [0, 0, 0]
    assert change.ask.frames == [b"model"]
    assert [connection.identity for connection in changes.waiting()] == [b"a", b"b"]
