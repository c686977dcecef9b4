"""`atelier doctor`: on this machine, on a bare one, and beside what is broken."""

import json
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Studio


def findings(studio: Studio, **environment: str) -> tuple[int, list[dict[str, Any]]]:
    done = studio.run("doctor", "--json", **environment)
    assert "Traceback" not in done.stderr, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == sum(finding["level"] == "problem" for finding in report["findings"])
    assert done.returncode == (1 if report["problems"] else 0)
    return done.returncode, report["findings"]


def texts(found: list[dict[str, Any]], level: str) -> str:
    return "\n".join(f"{item['subject']}: {item['text']} {item['fix']}" for item in found if item["level"] == level)


def fake_packages(folder: Path, **versions: str) -> str:
    """A folder for PYTHONPATH in which these packages are installed, as far as their metadata goes."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


def test_all_is_well_here(studio: Studio) -> None:
    studio.models = ROOT / "models"
    code, found = findings(studio)
    assert code == 0, texts(found, "problem")
    fine = texts(found, "ok")
    for subject in ("python: 3.", "torch ", "cpu: ", "free", "model: demo: stable_diffusion", "data_dir: "):
        assert subject in fine
    assert "not installed" not in texts(found, "note")  # of the two packages of onnxruntime, one is enough
    assert "No problems." in studio.run("doctor").stdout


@pytest.mark.parametrize(
    ("torch", "torchvision", "refused"),
    [("2.13.0+cpu", "0.28.0", True), ("2.13.0+cpu", "0.28.0+cu130", True), ("2.13.0+cpu", "0.28.0+cpu", False)],
)
def test_torchvision_for_cuda_beside_a_cpu_torch_is_refused(
    studio: Studio, tmp_path: Path, torch: str, torchvision: str, refused: bool
) -> None:
    path = fake_packages(tmp_path, torch=torch, torchvision=torchvision)
    code, found = findings(studio, PYTHONPATH=f"{path}:{studio.environment['PYTHONPATH']}")
    assert code == int(refused)
    assert ("torchvision" in texts(found, "problem")) is refused


def test_two_packages_of_onnxruntime_are_a_problem(studio: Studio, tmp_path: Path) -> None:
    path = fake_packages(tmp_path, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    code, found = findings(studio, PYTHONPATH=f"{path}:{studio.environment['PYTHONPATH']}")
    assert code == 1
    assert "pip uninstall onnxruntime onnxruntime-gpu" in texts(found, "problem")


def test_it_works_on_the_base_install(studio: Studio, tmp_path: Path) -> None:
    """Without the packages of the worker extra: hidden both from imports and from the metadata."""
    (tmp_path / "sitecustomize.py").write_text("""
import sys
from importlib import metadata
HIDDEN = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "PIL", "numpy", "psutil")
for name in HIDDEN:
    sys.modules[name] = None
version = metadata.version
def without(name):
    if name in (*HIDDEN, "pillow"):
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = without
""")
    code, found = findings(studio, PYTHONPATH=f"{tmp_path}:{studio.environment['PYTHONPATH']}")
    assert code == 0, texts(found, "problem")
    assert "torch, diffusers" in texts(found, "note")
    assert 'pip install ".[worker]"' in texts(found, "note")


def test_what_is_wrong_is_a_problem_with_its_remedy(studio: Studio) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (studio.folder / "data").mkdir()
        (studio.folder / "data").chmod(0o755)
        bad = studio.folder / "models" / "bad"
        bad.mkdir(parents=True)
        (bad / "model_index.json").write_text("{")
        code, found = findings(
            studio,
            ATELIER_CLIENT_ENDPOINTS=f"tcp://127.0.0.1:{port}",
            ATELIER_MODELS_DIR=str(studio.folder / "models"),
        )
    assert code == 1
    problems = texts(found, "problem")
    assert f"tcp://127.0.0.1:{port}: Address already in use, and no Atelier answers there End the program" in problems
    assert f"chmod 700 {studio.folder}/data" in problems
    assert "bad: model_invalid" in problems
    assert stat.S_IMODE((studio.folder / "data").stat().st_mode) == 0o755  # looked at, not changed


def test_a_wrong_setting_and_no_models(studio: Studio) -> None:
    code, found = findings(studio, ATELIER_LEASE_MS="1")
    assert code == 1
    assert "lease_ms" in texts(found, "problem")
    code, found = findings(studio)
    assert code == 0
    assert "models: none in" in texts(found, "note")
