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


@pytest.mark.parametrize(
    ("plane", "endpoint"), [("client_endpoints", "tcp://0.0.0.0:5599"), ("worker_endpoints", "tcp://*:5599")]
)
def test_only_loopback_until_there_are_keys(house: House, plane: str, endpoint: str) -> None:
    said = refuses(house, **{plane: endpoint})
    assert plane in said
    assert "can be reached from other machines" in said
    assert "CURVE" in said


def test_a_second_orchestrator_on_the_same_data_or_path(house: House) -> None:
    house.start_orchestrator()
    second = house.folder / "second"
    endpoints = {"client_endpoints": f"ipc://{second}/client", "worker_endpoints": f"ipc://{second}/workers"}
    assert "Another orchestrator has this database open" in refuses(house, runtime_dir=second, **endpoints)
    assert "in use by another orchestrator" in refuses(house, data_dir=second)
    assert house.orchestrator is not None
    assert house.orchestrator.alive
    assert house.client().ping().time  # it was not pushed aside


def test_a_port_that_is_taken(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = refuses(house, client_endpoints=f"tcp://127.0.0.1:{port}")
    assert "Address already in use" in said


def test_a_wrong_setting(house: House) -> None:
    assert "Did you mean ATELIER_LEASE_MS?" in refuses(house, leas_ms=1)


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
    house.orchestrator.signal(signal.SIGINT)  # at once: a terminal or a service manager may send the first one twice
    time.sleep(1.2)
    assert house.orchestrator.alive
    house.orchestrator.signal(signal.SIGINT)
    assert house.orchestrator.wait(10) == 0
