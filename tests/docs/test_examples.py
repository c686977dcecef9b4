"""The examples of the pages, run as they stand there, against a real server."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instructors.manifest import Batching, Manifest
from instructors.processing import chain
from orchestrator.client import Client
from scripts.demo_model.judge import judge
from tests.docs import pages
from tests.docs.pages import ROOT

PYTHON = pages.blocks(pages.text("README.md"), "python")
SHELL = [line for block in pages.blocks(pages.text("README.md"), "sh") for line in block.splitlines()]
# Against the server; the others start one or install.
RUN = ("atelier generate", "atelier predict", "atelier models", "atelier jobs", "atelier workers")
GUIDE_SHOWS = {
    "square.png": ("square", "blue", "yellow"),
    "circle.png": ("circle", "red", "yellow"),
    "triangle.png": ("triangle", "green", "yellow"),
}
JAVASCRIPT = ROOT / "examples" / "javascript"


@dataclass
class Studio:
    """A server as `atelier up` starts it: everything in one folder, every setting pointing there."""

    folder: Path

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.folder}/run/client"

    @property
    def environment(self) -> dict[str, str]:
        """`atelier` and `python` are those of this test."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
        return plain | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{plain['PATH']}",
            "ATELIER_RUNTIME_DIR": f"{self.folder}/run",
            "ATELIER_DATA_DIR": f"{self.folder}/data",
            "ATELIER_MODELS_DIR": str(ROOT / "models"),
            "ATELIER_CLIENT_ENDPOINTS": self.endpoint,
        }

    def start(self, command: str, log: Path) -> "subprocess.Popen[bytes]":
        """Its output goes to `log`."""
        with log.open("wb") as out:
            return subprocess.Popen(
                shlex.split(command), cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip


def wait_for(text: str, log: Path, process: "subprocess.Popen[bytes]") -> None:
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with tempfile.TemporaryDirectory(prefix="atl") as folder:
        here = Studio(Path(folder))
        log = here.folder / "up.log"
        server = here.start("atelier up --device cpu --log-level debug --log-format json", log)
        try:
            wait_for("ready; try:", log, server)
            yield here
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def run(studio: Studio, command: list[str] | str, *, limit_s: float = 50) -> str:
    """Its standard output."""
    done = subprocess.run(
        command, shell=isinstance(command, str), cwd=studio.folder, env=studio.environment,
        capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize("code", PYTHON, ids=[f"block {number}" for number in range(1, len(PYTHON) + 1)])
def test_python(studio: Studio, code: str) -> None:
    """Only the endpoint is another: the default port may be in use here."""
    here = code.replace("Client()", f"Client({studio.endpoint!r})")
    told = run(studio, [sys.executable, "-c", here])
    for name in re.findall(r'"(\w+\.png)"', code):
        assert_picture(studio.folder / name)
    if "event.data" in code:
        assert [line for line in told.splitlines() if line.startswith("step ")] == [
            f"step {step} of 30" for step in range(1, 31)
        ]
    if "predict" in code:
        assert re.search(r"'lat': 52\.\d+, 'lon': 13\.\d+", told)
    if "except" in code:
        assert "invalid_request" in told
        assert "steps" in told


def test_shell(studio: Studio) -> None:
    lines = [line for line in SHELL if line.startswith(RUN) and "--local" not in line]
    told = {line: run(studio, line) for line in lines}
    for name in ("circle.png", "again.png", "squares-1.png", "squares-2.png"):
        assert_picture(studio.folder / name)
    assert (studio.folder / "again.png").read_bytes() == (studio.folder / "circle.png").read_bytes()
    assert next(told[line] for line in lines if line.endswith("circle.png")) == "circle.png\n"
    assert "completed" in told["atelier jobs list"]
    assert np.load(studio.folder / "answer" / "position_m.npy").shape == (1, 2)
    assert "localisation:1" in told["atelier models list"]
    assert "passed" in told["atelier models validate localisation --deep"]


def test_shell_without_a_server(studio: Studio) -> None:
    (line,) = [line for line in SHELL if "--local" in line]
    assert run(studio, line) == "triangle.png\n"
    assert_picture(studio.folder / "triangle.png")


@pytest.mark.timeout(180)
def test_changing_pictures(studio: Studio) -> None:
    """The guide's examples, one after the other: each goes on with the pictures of those before."""
    guide = pages.text("docs/guides/change.md")
    for code in pages.blocks(guide, "python"):
        run(studio, [sys.executable, "-c", code.replace("Client()", f"Client({studio.endpoint!r})")])
    for name, scene in GUIDE_SHOWS.items():
        with Image.open(studio.folder / name) as picture:
            seen = judge(picture)
        assert (seen.shape_kind, seen.shape_colour, seen.background_colour) == scene
    for line in "".join(pages.blocks(guide, "sh")).splitlines():
        name = line.rpartition(" ")[2]
        (studio.folder / name).unlink()
        assert run(studio, line) == f"{name}\n"
        with Image.open(studio.folder / name) as picture:
            assert picture.size == ((80, 72) if name == "wide.png" else (64, 64))


@pytest.mark.timeout(180)
def test_following_an_outline(studio: Studio) -> None:
    """The guide's examples, one after the other."""
    guide = pages.text("docs/guides/control.md")
    for code in pages.blocks(guide, "python"):
        run(studio, [sys.executable, "-c", code.replace("Client()", f"Client({studio.endpoint!r})")])
    pictures = {
        name: Image.open(studio.folder / f"{name}.png").convert("RGB") for name in ("followed", "edges", "soft")
    }
    assert {picture.size for picture in pictures.values()} == {(64, 64)}
    seen = judge(pictures["followed"])
    assert (seen.shape_kind, seen.shape_colour, seen.background_colour) == ("square", "red", "white")
    generate, listing = "".join(pages.blocks(guide, "sh")).splitlines()
    (studio.folder / "followed.png").unlink()
    assert run(studio, generate) == "followed.png\n"
    assert judge(Image.open(studio.folder / "followed.png").convert("RGB")).shape_kind == "square"
    assert "demo-edges" in run(studio, listing)


@pytest.mark.timeout(180)
def test_mixing_in_loras(studio: Studio) -> None:
    """The guide's examples, one after the other."""
    guide = pages.text("docs/guides/loras.md")
    said = "".join(
        run(studio, [sys.executable, "-c", code.replace("Client()", f"Client({studio.endpoint!r})")])
        for code in pages.blocks(guide, "python")
    )
    assert said == "16\nFalse\n"
    generate, listing = "".join(pages.blocks(guide, "sh")).splitlines()
    for _ in range(2):
        seen = judge(Image.open(studio.folder / "hollow.png").convert("RGB"))
        assert (seen.hollow, seen.shape_colour, seen.background_colour) == (True, "red", "white")
        (studio.folder / "hollow.png").unlink()
        assert run(studio, generate) == "hollow.png\n"
    assert "demo-hollow" in run(studio, listing)


def test_predicting(studio: Studio) -> None:
    """The guide's examples, one after the other; its manifests are ones that a model could have."""
    guide = pages.text("docs/guides/predict.md")
    said = "".join(
        run(studio, [sys.executable, "-c", re.sub(r"Client\(\)", f"Client({studio.endpoint!r})", code)])
        for code in pages.blocks(guide, "python")
    )
    assert said == "0.95 (1, 2)\n4\n['Prediction', 'InvalidRequest']\n8\n"
    (line,) = "".join(pages.blocks(guide, "sh")).splitlines()
    assert json.loads(run(studio, line))["predictions"][0]["confidence"] == 0.95
    (studio.folder / "labels.txt").write_text("cat\ndog")
    *with_steps, all_else = pages.blocks(guide, "toml")
    for toml in with_steps:
        manifest = Manifest.model_validate(tomllib.loads(toml))
        assert chain(manifest.preprocess, studio.folder).steps
        assert chain(manifest.postprocess, studio.folder).steps
    assert Manifest.model_validate(tomllib.loads(all_else)).batching == Batching()
    defaults = "".join(line for line in all_else.splitlines(keepends=True) if "without it" not in line)
    assert Manifest.model_validate(tomllib.loads(defaults)) == Manifest()


def test_asking_before_and_looking_after(studio: Studio) -> None:
    """The guide's examples, one after the other; what the last one shows is what stands there."""
    guide = pages.text("docs/guides/sessions.md")
    before, after = (
        run(studio, [sys.executable, "-c", code.replace("Client()", f"Client({studio.endpoint!r})")])
        for code in pages.blocks(guide, "python")
    )
    worker, refusal = before.splitlines()
    assert int(worker.split()[3]) > 0
    assert refusal.startswith("False ")
    assert "did you mean prompt?" in refusal
    assert after.split()[:2] == ["4", "120"]
    validate, show = "".join(pages.blocks(guide, "sh")).splitlines()
    assert run(studio, validate).split()[:2] == ["WORKER", "DEVICE"]
    shown, told = (
        [line.split() for line in text.splitlines() if line]
        for text in (run(studio, show), pages.blocks(guide, "text")[0])
    )
    assert [words[0] for words in shown[:-1]] == [words[0] for words in told[:-1]]
    same = ("name", "status", "defaults", "jobs", "images", "steps")
    assert [words for words in shown if words[0] in same] == [words for words in told if words[0] in same]
    assert shown[-1][1:] == told[-1][1:] == ["cpu", "2"]


def test_a_worker_by_hand_and_a_request_that_is_followed(studio: Studio) -> None:
    line = next(line for line in SHELL if line.startswith("atelier worker "))
    line = re.sub(r"ipc://\S+", f"ipc://{studio.folder}/run/workers", line).replace(
        "--models models", f"--models {ROOT}/models"
    )
    log = studio.folder / "second.log"
    worker = studio.start(f"{line} --device cpu --log-level debug", log)
    try:
        logs = pages.section("docs/operations.md", "Logs")
        call = pages.blocks(logs, "python")[0]
        with Client(studio.endpoint, timeout_s=40) as client:
            while "second" not in [known.worker_id for known in client.workers()]:
                time.sleep(0.1)
            exec(call.replace('"poster-18"', '"poster-18", worker_id="second"'), {"client": client})
        wait_for('"ended"', log, worker)
        lines = [*(studio.folder / "up.log").read_text().splitlines(), *log.read_text().splitlines()]
        seen = [json.loads(line) for line in lines if "poster-18" in line]
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    shown = [json.loads(line) for line in pages.blocks(logs, "json")[0].splitlines()]
    assert [(line["event"], set(line)) for line in seen] == [(line["event"], set(line)) for line in shown]
    assert {line["request_id"] for line in seen} == {"poster-18"}
    assert len({line["job_id"] for line in seen}) == 1


def test_javascript(studio: Studio) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (JAVASCRIPT / "node_modules" / "zeromq").is_dir():
        pytest.skip("its packages are not installed: npm install in examples/javascript")
    picture = studio.folder / "javascript.png"
    command = ["node", str(JAVASCRIPT / "generate.mjs"), "a red circle on a white background", str(picture)]
    told = run(studio, [*command, studio.endpoint])
    assert told.splitlines()[-1] == "step 20 of 20"
    assert_picture(picture)
    samples = studio.folder / "samples.bin"
    np.random.default_rng(1).normal(size=(1, 4, 256, 2)).astype(np.float32).tofile(samples)
    (line,) = [line for line in SHELL if line.startswith("node predict.mjs ")]
    program, *arguments = line.removeprefix("node ").replace("samples.bin", str(samples)).split()
    told = run(studio, ["node", str(JAVASCRIPT / program), *arguments, studio.endpoint])
    assert json.loads(told.splitlines()[-1])[0]["confidence"] == 0.68


def test_an_action_is_added_as_told(tmp_path: Path) -> None:
    """The steps of CONTRIBUTING.md, on a copy of the packages."""
    for package in ("protocol", "orchestrator", "worker", "instructors"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    steps = pages.section("CONTRIBUTING.md", "Adding an action")
    schema, task = pages.blocks(steps, "python")
    (tmp_path / "protocol" / "schemas" / "text.py").write_text(schema)
    (tmp_path / "instructors" / "text.py").write_text(task)
    add(tmp_path / "protocol" / "schemas" / "__init__.py", "from protocol.schemas import (", "text, ")
    add(tmp_path / "protocol" / "schemas" / "__init__.py", "for domain in (", "text, ")
    add(tmp_path / "instructors" / "registry.py", "for name in [", '"instructors.text", ')
    call = re.search(r"`(client\.run\(.*?\))`", steps)
    assert call is not None
    script = f"""
from orchestrator.client import LocalServer
with LocalServer(devices=["cpu"], models={str(tmp_path / "none")!r}) as client:
    print({call[1]}.data)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50
    )
    assert done.stdout == "{'text': 'cba'}\n", done.stderr


def add(file: Path, after: str, text: str) -> None:
    before = file.read_text()
    assert before.count(after) == 1, f"{file.name} has changed: are the steps still right?"
    file.write_text(before.replace(after, after + text))
