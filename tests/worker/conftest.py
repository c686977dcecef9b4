from collections.abc import Callable, Iterator

import pytest

from tests.instructors.conftest import tiny_root  # noqa: F401 (the same fixture here)
from tests.worker.fakes import FakeClock
from tests.worker.scripted import PLUGIN, ScriptedOrchestrator, WorkerProcess
from worker.engine import engine, running

Start = Callable[..., WorkerProcess]


@pytest.fixture
def orchestrator() -> Iterator[ScriptedOrchestrator]:
    scripted = ScriptedOrchestrator()
    yield scripted
    scripted.close()


@pytest.fixture
def start(orchestrator: ScriptedOrchestrator) -> Iterator[Start]:
    """Start a worker with the test plug-in, connected to the scripted orchestrator."""
    started: list[WorkerProcess] = []

    def run(*arguments: str, **more: int) -> WorkerProcess:
        started.append(WorkerProcess(orchestrator.endpoint, *PLUGIN, *arguments, **more))
        return started[-1]

    yield run
    for worker in started:
        worker.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    for module in (engine, running):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(engine, "IDLE_S", 0.0)  # nothing comes while a test's turn waits
    return clock
