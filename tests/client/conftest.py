from collections.abc import Iterator

import pytest

from orchestrator.client import Client
from tests.client.scripted import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.endpoint, timeout_s=20) as connected:
        yield connected
