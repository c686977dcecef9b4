from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.client import Client
from tests.e2e.house import House, open_houses


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed test shows what its processes said."""
    report = yield
    if report.failed:
        for house in open_houses:
            report.sections.append((f"logs of {house.folder.name}", house.logs()))
    return report


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """A server with one worker of one slot, `w1`, shared by the tests of a module that leave it as they found it."""
    with House() as started:
        started.start_worker("w1")
        started.start_orchestrator()
        started.wait_for_workers("w1")
        yield started


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.endpoint, timeout_s=30) as connected:
        yield connected
