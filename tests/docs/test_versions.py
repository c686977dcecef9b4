"""The examples of the guide to versions, run as they stand there, one after the other."""

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import Client
from tests.docs import pages
from tests.docs.pages import FENCE, ROOT
from tests.docs.test_examples import Studio, run, wait_for

GUIDE = "docs/guides/versions.md"


class Workshop(Studio):
    """With a model folder of its own, for versions are put into it."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"ATELIER_MODELS_DIR": f"{self.folder}/models"}


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    with tempfile.TemporaryDirectory(prefix="atl") as folder:
        here = Workshop(Path(folder))
        shutil.copytree(ROOT / "models/localisation", here.folder / "models/localisation")
        shutil.copytree(ROOT / "models/localisation/1", here.folder / "trained")
        log = here.folder / "up.log"
        server = here.start("atelier up --device cpu --log-format json", log)
        try:
            wait_for("ready; try:", log, server)
            yield here
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def told_by(workshop: Workshop) -> Iterator[str]:
    """What each line of a shell, and each block of Python, prints."""
    for _, language, body in FENCE.findall(pages.text(GUIDE)):
        if language == "python":
            code = body.replace("Client()", f"Client({workshop.endpoint!r})")
            yield run(workshop, [sys.executable, "-c", code])
        elif language == "sh":
            for line in body.splitlines():
                yield run(workshop, line)


@pytest.mark.timeout(120)
def test_the_guide(workshop: Workshop) -> None:
    told = list(told_by(workshop))
    listed, shown, registered, *moves = told[:6]
    assert "localisation:1 *" in listed
    assert "localisation:1" in shown
    assert "localisation:2" in registered
    assert [move.split()[1:4] for move in moves] == [["nothing", "->", "1"], ["1", "->", "2"], ["2", "->", "1"]]
    assert "Split(version='2', weight=10.0)" in told[6]
    assert "80 %" in told[7]
    assert "shadow, 50%" in told[9]
    assert told[10] == ""
    assert told[11] == "Trained on hall 3.\n"
    kinds = [line.split()[1] for line in told[12].splitlines()[1:]]
    assert kinds == ["metadata"] * 3 + ["traffic"] * 5 + ["rollback", "alias", "alias", "alias", "register"]
    with Client(workshop.endpoint, timeout_s=20) as client:
        assert client.models.info("localisation@stable").metadata.license == "Apache-2.0"
        assert client.models.info("localisation").version == "1"
