"""The README's way from a prompt to a picture: `atelier up` in one terminal, `atelier generate` in another."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protocol.recipe import read
from scripts.demo_model.judge import judge
from tests.e2e.house import ROOT, House, Process, eventually

PROMPT = "a red circle on a white background"


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[House, Process]]:
    with House(models_dir=ROOT / "models") as house:
        process = house.run(["-m", "orchestrator.cli", "up", "--device", "cpu"], "up.log")
        eventually(lambda: "ready; try:" in process.log, 60)
        yield house, process
        process.signal(signal.SIGINT)
        assert process.wait(30) == 0


def generate(house: House, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "orchestrator.cli", "generate", *arguments]
    return subprocess.run(command, cwd=ROOT, env=house.environment(), capture_output=True, text=True, timeout=60)


@pytest.mark.timeout(120)
def test_from_a_prompt_to_a_picture(up: tuple[House, Process], tmp_path: Path) -> None:
    house, _ = up
    first, again = tmp_path / "out.png", tmp_path / "again.png"
    done = generate(house, PROMPT, "--seed", "7", "-o", str(first))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(first)
    picture = Image.open(first)
    assert picture.size == (64, 64)
    seen = judge(picture)
    assert (seen.shape_colour, seen.background_colour) == ("red", "white")
    recipe = read(first.read_bytes())
    assert recipe is not None
    assert (recipe["prompt"], recipe["seed"]) == (PROMPT, 7)

    done = generate(house, "--from", str(first), "-o", str(again))
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(again)))


def test_several_pictures_as_json(up: tuple[House, Process], tmp_path: Path) -> None:
    house, _ = up
    target = tmp_path / "p.png"
    done = generate(
        house, "a blue square on a yellow background", "--count", "2", "--seed", "1", "--json", "-o", str(target)
    )
    assert done.returncode == 0, done.stderr
    images = json.loads(done.stdout)["images"]
    assert [image["seed"] for image in images] == [1, 2]
    for image in images:
        assert judge(Image.open(image["path"])).background_colour == "yellow"


def test_what_goes_wrong_is_one_line(up: tuple[House, Process], tmp_path: Path) -> None:
    house, _ = up
    done = generate(house, PROMPT, "--steps", "0", "-o", str(tmp_path / "x.png"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: invalid_request: ")
    assert "steps" in done.stderr
    assert "Traceback" not in done.stderr
