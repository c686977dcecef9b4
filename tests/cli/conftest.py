"""The command run as a person runs it: in processes, in a folder of its own, beside a real `atelier up`."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
ATELIER = [sys.executable, "-m", "orchestrator.cli"]
PROMPT = "a red circle on a white background"


@dataclass
class Studio:
    """A folder to work in and the environment that points every setting into it."""

    folder: Path
    models: Path

    @property
    def environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
        return plain | {
            "ATELIER_RUNTIME_DIR": f"{self.folder}/run",
            "ATELIER_DATA_DIR": f"{self.folder}/data",
            "ATELIER_MODELS_DIR": str(self.models),
            "ATELIER_CLIENT_ENDPOINTS": f"ipc://{self.folder}/run/client",
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*ATELIER, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=100,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *arguments: str, stdout: int | IO[str] = subprocess.PIPE) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*ATELIER, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def studio() -> Iterator[Studio]:
    """No server runs here. There are no models, so that workers load no libraries for them."""
    with tempfile.TemporaryDirectory(prefix="atl") as folder:
        yield Studio(Path(folder), models=Path(folder, "models"))


@pytest.fixture(scope="module")
def up() -> Iterator[Studio]:
    """`atelier up` runs here, with a worker on the CPU and the demo model."""
    with tempfile.TemporaryDirectory(prefix="atl") as folder:
        here = Studio(Path(folder), models=ROOT / "models")
        log = here.folder / "up.log"
        with log.open("w") as out:
            server = here.start("up", "--device", "cpu", stdout=out)
        try:
            wait_for_line(log, "ready; try:", server)
            yield here
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        assert server.returncode == 0, log.read_text()


def wait_for_line(log: Path, text: str, process: "subprocess.Popen[str]", timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
