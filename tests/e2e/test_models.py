"""Models by name, on a real worker: nothing outside the model folder is read, and no pickle is taken."""

import ast
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.client import Client
from protocol.errors import AtelierError, Forbidden, InvalidRequest, ModelInvalid, ModelNotFound
from tests.e2e.house import ROOT, House

DEMO = ROOT / "models" / "demo"


class Trap:
    """A pickle that leaves a file behind if it is ever loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def trapped(house: House) -> Path:
    return house.file("trap")


def add_bad_models(models: Path, house: House) -> None:
    """Beside the demo model: pickles under several names, and links that lead out."""
    plain = pickle.dumps(Trap(trapped(house)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", plain)
    for name, content in {
        "pickled": plain,
        "zipped": buffer.getvalue(),
        "torn": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    }.items():
        shutil.copytree(DEMO, models / name)
        (models / name / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    for suffix in ("ckpt", "bin", "pt"):
        shutil.copytree(DEMO, models / f"with-{suffix}")
        (models / f"with-{suffix}" / "vae" / f"diffusion_pytorch_model.{suffix}").write_bytes(plain)
        (models / f"single.{suffix}").write_bytes(plain)
    shutil.copytree(DEMO, models / "own-code")
    index = json.loads((DEMO / "model_index.json").read_text())
    (models / "own-code" / "model_index.json").write_text(json.dumps({**index, "unet": ["os", "system"]}))
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}).encode()
    shutil.copytree(DEMO, models / "lying")
    lie = struct.pack("<Q", len(header)) + header + bytes(8)
    (models / "lying" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(lie)
    outside = house.folder / "outside"
    shutil.copytree(DEMO, outside)
    (models / "linked").symlink_to(outside)
    shutil.copytree(DEMO, models / "file-linked")
    linked = models / "file-linked" / "unet" / "diffusion_pytorch_model.safetensors"
    linked.unlink()
    linked.symlink_to(outside / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        models = started.folder / "models"
        shutil.copytree(DEMO, models / "demo")
        add_bad_models(models, started)
        started.start_worker("w1", "--models", str(models))
        started.start_orchestrator()
        started.wait_for_workers("w1")
        yield started
        assert not trapped(started).exists(), "a pickle was loaded"


def paint(client: Client, **data: object) -> Image.Image:
    result = client.text2img("a red circle on a white background", steps=2, seed=7, **data)
    return result.images[0].pil


def refusal(client: Client, model_id: str, expected: type[AtelierError]) -> AtelierError:
    with pytest.raises(expected) as caught:
        paint(client, model_id=model_id)
    message = f"{caught.value.message} {json.dumps(caught.value.details)}"
    assert "/tmp" not in message
    assert "Traceback" not in message
    return caught.value


def test_the_good_model_among_the_bad_ones(client: Client) -> None:
    assert paint(client, model_id="demo").size == (64, 64)


@pytest.mark.parametrize(
    "name",
    ["../../etc", "../models/demo", "/etc/passwd", "/etc", "demo/", "demo/unet", ".", "..", "~", "demo\x00", "C:\\demo",
     "..\\demo", "%2e%2e%2fdemo", "demo " , "x" * 200],
)  # fmt: skip
def test_names_that_are_none(client: Client, house: House, name: str) -> None:
    refusal(client, name, ModelNotFound)


def test_an_absolute_path_to_a_good_model(client: Client, house: House) -> None:
    refusal(client, str(house.folder / "models" / "demo"), ModelNotFound)


def test_an_unknown_name_is_told_the_known_ones(client: Client) -> None:
    assert "demo" in refusal(client, "dmo", ModelNotFound).details["known"]


def test_links_that_lead_out(client: Client) -> None:
    with pytest.raises((Forbidden, ModelNotFound)):
        paint(client, model_id="linked")
    refusal(client, "file-linked", Forbidden)


@pytest.mark.parametrize(
    "name",
    [
        "pickled",
        "zipped",
        "torn",
        "lying",
        "own-code",
        "with-ckpt",
        "with-bin",
        "with-pt",
        "single.ckpt",
        "single.bin",
        "single.pt",
    ],
)
def test_files_that_are_not_trusted(client: Client, name: str) -> None:
    refusal(client, name, ModelInvalid)


def test_what_only_the_model_can_judge(client: Client) -> None:
    with pytest.raises(InvalidRequest):
        paint(client, model_id="demo", scheduler="no_such_scheduler")
    assert paint(client, model_id="demo", scheduler="euler").size == (64, 64)


def test_no_code_of_ours_reads_pickles() -> None:
    files = [
        file for room in ("protocol", "orchestrator", "worker", "instructors") for file in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            words = {word for name in names for word in name.split(".")}
            assert words.isdisjoint(
                {"pickle", "dill", "cloudpickle", "shelve", "marshal", "recv_pyobj", "send_pyobj"}
            ), file
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("torch.load", "numpy.load", "np.load", "joblib.load", "eval", "exec"), file


def test_the_worker_is_the_one_it_was(client: Client, house: House) -> None:
    """After all of the above."""
    assert house.workers[0].log.count("child started") == 1
    assert paint(client, model_id="demo").size == (64, 64)
