"""`LocalLauncher`: workers that are started, watched, started again and never left behind."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.worker.scripted import ROOT, ScriptedOrchestrator
from tests.worker.test_process import gone
from worker.launcher import LocalLauncher

HOST = socket.gethostname()


@pytest.fixture
def launch(orchestrator: ScriptedOrchestrator, tmp_path: Path) -> Iterator[Callable[..., LocalLauncher]]:
    launchers: list[LocalLauncher] = []

    def run(*devices: str, **more: object) -> LocalLauncher:
        launchers.append(LocalLauncher(orchestrator.endpoint, devices, log_dir=tmp_path / "logs", **more))
        launchers[-1].start()
        return launchers[-1]

    yield run
    for launcher in launchers:
        launcher.stop(0)


def processes(launcher: LocalLauncher) -> list[psutil.Process]:
    parents = [psutil.Process(worker.process.pid) for worker in launcher.workers if worker.process is not None]
    return [process for parent in parents for process in (parent, *parent.children())]


def test_one_worker_per_device(
    orchestrator: ScriptedOrchestrator, launch: Callable[..., LocalLauncher], tmp_path: Path
) -> None:
    launcher = launch("cpu", "cpu", slots=3)
    hellos = [orchestrator.welcome(), orchestrator.welcome()]
    assert {hello["worker_id"] for hello in hellos} == {f"{HOST}-cpu-1", f"{HOST}-cpu-2"}
    assert {(hello["slots"], hello["light_slots"]) for hello in hellos} == {(3, 128)}
    everyone = processes(launcher)
    assert len(everyone) == 4
    begun = time.monotonic()
    launcher.stop(10)
    assert time.monotonic() - begun < 5
    assert not any(process.is_running() for process in everyone)
    assert [(worker.process, worker.exit_code) for worker in launcher.workers] == [(None, 0)] * 2
    assert sorted(file.name for file in (tmp_path / "logs").iterdir()) == [f"{HOST}-cpu-1.log", f"{HOST}-cpu-2.log"]
    assert "goodbye" in (tmp_path / f"logs/{HOST}-cpu-1.log").read_text()


def test_a_killed_worker_is_started_again(
    orchestrator: ScriptedOrchestrator, launch: Callable[..., LocalLauncher]
) -> None:
    launcher = launch("cpu")
    first = orchestrator.welcome()
    parent, child = processes(launcher)
    parent.kill()
    assert gone(child, 2)
    orchestrator.wait_for(lambda: launcher.poll()[0].starts == 2)
    second = orchestrator.welcome()
    assert second["worker_id"] == first["worker_id"] == f"{HOST}-cpu"
    assert second["instance_id"] != first["instance_id"]


def test_a_drained_or_refused_worker_is_not(
    orchestrator: ScriptedOrchestrator, launch: Callable[..., LocalLauncher]
) -> None:
    launcher = launch("cpu")
    orchestrator.welcome()
    orchestrator.send("drain")
    orchestrator.wait_for(lambda: launcher.poll()[0].exit_code == 0)
    launcher = launch("cpu")
    orchestrator.expect("hello")
    orchestrator.send("refused", error={"code": "unsupported_protocol", "message": ""})
    orchestrator.wait_for(lambda: launcher.poll()[0].exit_code == 3)
    assert launcher.workers[0].starts == 1


def test_stop_kills_who_does_not_listen(
    orchestrator: ScriptedOrchestrator, launch: Callable[..., LocalLauncher]
) -> None:
    launcher = launch("cpu")
    orchestrator.welcome()
    parent, child = processes(launcher)
    parent.suspend()
    launcher.stop(0.5)
    assert gone(parent, 1)
    assert gone(child, 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_their_launcher(orchestrator: ScriptedOrchestrator, number: signal.Signals) -> None:
    code = f"""
import time
from worker.launcher import LocalLauncher
LocalLauncher({orchestrator.endpoint!r}, ["cpu"]).start()
time.sleep(600)
"""
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        orchestrator.welcome()
        [parent] = psutil.Process(launcher.pid).children()
        [child] = parent.children()
    finally:
        launcher.send_signal(number)
        launcher.wait()
    assert gone(parent, 3)
    assert gone(child, 3)
