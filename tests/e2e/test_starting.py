"""What refuses to start says why, in one line, and with an exit code."""

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator

import pytest

from tests.e2e.house import House, eventually


@pytest.fixture
def house() -> Iterator[House]:
    with House() as made:
        yield made


def refuses(house: House, **settings: object) -> str:
    """Start an orchestrator that must not start; what it says."""
    process = house.run(["-m", "orchestrator"], f"refused-{time.monotonic()}.log", **settings)
    assert process.wait(15) in (1, 2)
    assert "Traceback" not in process.log
    return process.log


@pytest.mark.parametrize("plane", ["client_endpoints", "worker_endpoints"])
def test_only_loopback_until_there_are_keys(house: House, plane: str) -> None:
    for endpoint in ("tcp://0.0.0.0:5599", "tcp://*:5599"):  # the other forms are tried on the function itself
        said = refuses(house, **{plane: endpoint})
        assert plane in said
        assert "can be reached from other machines" in said
        assert "CURVE" in said


def test_a_second_orchestrator_on_the_same_data(house: House) -> None:
    house.start_orchestrator()
    first, second = house.orchestrator, house.folder / "second"
    endpoints = {"client_endpoints": f"ipc://{second}/client", "worker_endpoints": f"ipc://{second}/workers"}
    said = refuses(house, runtime_dir=second, **endpoints)
    assert "Another orchestrator has this database open" in said
    assert first is not None
    assert first.alive
    assert house.client().ping().time


def test_a_second_orchestrator_on_the_same_port(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = refuses(house, client_endpoints=f"tcp://127.0.0.1:{port}")
    assert "Address already in use" in said


def test_a_second_orchestrator_on_the_same_ipc_path(house: House) -> None:
    house.start_orchestrator()
    first = house.orchestrator
    said = refuses(house, data_dir=house.folder / "other")
    assert "in use by another orchestrator" in said
    assert first is not None
    assert first.alive
    assert house.client().ping().time  # it was not pushed aside


def test_a_wrong_setting(house: House) -> None:
    assert "Did you mean ATELIER_LEASE_MS?" in refuses(house, leas_ms=1)
    assert "lease_ms must be at least twice heartbeat_ms" in refuses(house, lease_ms=100)


def test_folders_are_the_owner_s_alone(house: House) -> None:
    house.start_orchestrator()
    for folder in (house.folder / "run", house.data_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert house.orchestrator is not None
    house.orchestrator.signal(signal.SIGTERM)
    assert house.orchestrator.wait(10) == 0
    os.chmod(house.folder / "run", 0o755)
    assert "0700" in refuses(house)


def test_a_second_signal_stops_at_once(house: House) -> None:
    house.start_worker("w1")
    house.start_orchestrator()
    house.wait_for_workers("w1")
    job = house.client().submit("system.noop", {"sleep_ms": 60_000}, events=["state"])
    eventually(lambda: job.job_id is not None)
    assert house.orchestrator is not None
    house.orchestrator.signal(signal.SIGINT)
    eventually(lambda: house.orchestrator is not None and "draining" in house.orchestrator.log)
    assert house.orchestrator.alive
    house.orchestrator.signal(signal.SIGINT)
    assert house.orchestrator.wait(10) == 0
