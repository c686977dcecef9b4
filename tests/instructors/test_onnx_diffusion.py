"""The demo model converted to ONNX: it makes the torch model's pictures, in the same lanes, by the same tasks."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from PIL import Image

from instructors.pipelines.onnx_components import GraphForward
from instructors.pipelines.onnx_pipeline import OnnxModel
from instructors.registry import Registry
from instructors.task import Padding, step_units
from orchestrator.client import Client
from protocol.enums import EventName
from protocol.errors import AtelierError, Cancelled, InvalidRequest, ModelInvalid
from scripts.demo_model.judge import judge
from tests.e2e.house import House
from tests.instructors import tiny
from tests.instructors.conftest import Desk
from tests.instructors.converting import ConvertDesk
from tests.instructors.painting import box, difference, finish, make, noise, open_image, together

pytestmark = pytest.mark.timeout(300)  # the first test waits for the conversion

MODELS = Path(__file__).parents[2] / "models"
TORCH, ONNX = "demo", "demo-onnx:1"
GUIDANCE = 4.0  # what the model's card recommends
PROMPTS = (
    "a red circle on a white background",
    "a blue square on a black background",
    "a green triangle on a yellow background",
    "a large yellow circle on a purple background",
    "a small white square on a red background",
    "a black triangle on a green background",
)
PICTURES = {"text2img": 0, "img2img": 1, "inpainting": 2}  # that come with a request
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    *(("text2img", {"prompt": prompt, "seed": seed}) for seed, prompt in enumerate(PROMPTS)),
    ("text2img", {"prompt": PROMPTS[0], "seed": 6, "scheduler": "euler_a", "guidance_scale": 1.0}),
    ("text2img", {"prompt": PROMPTS[1], "seed": 7, "width": 72, "height": 40}),  # not halved without a rest
    ("img2img", {"prompt": PROMPTS[2], "seed": 8, "strength": 0.7}),
    ("inpainting", {"prompt": PROMPTS[3], "seed": 9, "negative_prompt": "a circle"}),
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvertDesk, dict[str, Any]]:
    """The model folder with the demo model and its conversion, and what `model.convert` answered."""
    root = tmp_path_factory.mktemp("onnx")
    shutil.copytree(MODELS / "demo", root / "demo")
    desk = ConvertDesk(root)
    return desk, desk.convert(source="demo", name="demo-onnx", within_s=290)


@pytest.fixture(scope="module")
def root(converted: tuple[ConvertDesk, dict[str, Any]]) -> Path:
    found = converted[0].models.root
    assert found is not None
    return found


@pytest.fixture(scope="module")
def desk(root: Path) -> Iterator[Desk]:
    desk = Desk(root)
    yield desk
    close(desk)


def close(desk: Desk) -> None:
    for loaded in desk._loaded.values():
        if isinstance(loaded, OnnxModel):
            loaded.close()


def loaded(desk: Desk) -> OnnxModel:
    return next(value for value in desk._loaded.values() if isinstance(value, OnnxModel))


def apart(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of all channels of all pixels, of 255."""
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def task_of(registry: Registry, desk: Desk, model_id: str, kind: str, **data: Any) -> Any:
    asked = {"model_id": model_id, "guidance_scale": GUIDANCE, "steps": 10, **data}
    return make(registry, desk, kind, [noise(64, 64), box(64, 64, (16, 16, 48, 48))][: PICTURES[kind]], **asked)


def paint(registry: Registry, desk: Desk, model_id: str, requests: Any = REQUESTS) -> list[Image.Image]:
    """Each request's picture, made without company."""
    return [together([task_of(registry, desk, model_id, kind, **data)])[0][0] for kind, data in requests]


@pytest.fixture(scope="module")
def alone(registry: Registry, desk: Desk) -> list[Image.Image]:
    """The pictures of the ONNX model."""
    return paint(registry, desk, ONNX)


def test_a_conversion_tells_how_far_each_part_is_from_its_source(
    converted: tuple[ConvertDesk, dict[str, Any]], root: Path
) -> None:
    desk, answer = converted
    assert answer["model_id"] == ONNX
    assert set(answer["components"]) == {"text_encoder", "unet", "vae_encoder", "vae_decoder"}
    assert all(0 < part["max_rel_error"] < 1e-5 for part in answer["components"].values())
    shares = [data["progress"] for data, _ in desk.named(EventName.PROGRESS)]
    assert shares == [0.0, 0.25, 0.5, 0.75]
    assert desk.staged == []
    model = desk.models.find("demo-onnx")
    assert model.family == "stable_diffusion"
    assert model.actions == ["inference.text2img", "inference.img2img", "inference.inpainting"]
    raw = b"".join(file.read_bytes() for file in (root / "demo-onnx/1").rglob("*.onnx"))
    assert b"site-packages" not in raw  # nothing of this machine is told
    assert str(MODELS.parent).encode() not in raw


def test_pictures_are_those_of_torch(registry: Registry, desk: Desk, alone: list[Image.Image]) -> None:
    for one, other in zip(alone, paint(registry, desk, TORCH), strict=True):
        assert one.size == other.size
        assert apart(one, other) <= 2
        assert judge(one) == judge(other)


def test_pictures_show_what_was_asked_for(alone: list[Image.Image]) -> None:
    seen = [judge(image) for image in alone[: len(PROMPTS)]]
    asked = zip(seen, PROMPTS, strict=True)
    right = [one.shape_colour in prompt and one.background_colour in prompt for one, prompt in asked]
    assert sum(right) >= len(PROMPTS) - 1


@pytest.mark.parametrize(("padding", "limit"), [(Padding(), 1), (Padding(fixed_rows=8), 0)])
def test_pictures_share_forwards(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch, padding: Padding, limit: int
) -> None:
    """And what company changes does not show; with reproducible padding it changes nothing."""
    rows: list[int] = []
    run = GraphForward.__call__

    def counted(self: GraphForward, given: Any, outputs: Any) -> Any:
        rows.append(next(iter(given.values())).shape[0])
        return run(self, given, outputs)

    monkeypatch.setattr(GraphForward, "__call__", counted)
    desk = Desk(root)
    desk.padding = padding
    try:
        single = paint(registry, desk, ONNX)
        rows.clear()
        made, mixed = together([task_of(registry, desk, ONNX, kind, **data) for kind, data in REQUESTS])
    finally:
        close(desk)
    assert max(rows) >= 8  # of four pictures or more
    assert mixed > 0  # all kinds at once
    assert max(difference(one, other) for one, other in zip(made, single, strict=True)) <= limit


def test_a_cancelled_picture_ends_within_a_step(registry: Registry, desk: Desk) -> None:
    desk.reset()
    desk.cancel_at = 3
    try:
        with pytest.raises(Cancelled):
            finish(task_of(registry, desk, ONNX, "text2img", seed=1))
        assert len(desk.named(EventName.PROGRESS)) == 2
    finally:
        desk.reset()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"loras": [{"lora_id": "demo-hollow"}]}, "LoRAs"),
        ({"controlnets": [{"controlnet_id": "demo-edges", "image": {"attachment": 0}}]}, "ControlNets"),
        ({"vae_id": "other"}, "VAE"),
    ],
)
def test_what_needs_torch_is_refused(registry: Registry, desk: Desk, data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as told:
        task_of(registry, desk, ONNX, "text2img", **data)
    assert "made of" in told.value.message


def test_its_memory_is_counted_and_given_back(registry: Registry, root: Path) -> None:
    desk = Desk(root)
    paint(registry, desk, ONNX, REQUESTS[:1])
    model = loaded(desk)
    processes = [psutil.Process(part.graph._runner._process.pid) for part in model.parts.values()]
    assert len(processes) == 4
    assert model.nbytes == sum(part.nbytes for part in model.parts.values()) >= 14_000_000  # bytes of its weights
    assert all(process.is_running() for process in processes)
    model.close()
    assert not any(process.is_running() for process in processes)


def test_a_graph_whose_process_is_lost_is_started_again(
    registry: Registry, desk: Desk, alone: list[Image.Image]
) -> None:
    task = task_of(registry, desk, ONNX, *REQUESTS[0][:1], **REQUESTS[0][1])
    (unit,) = task.units
    for _ in range(6):
        step_units([unit])
    unet = loaded(desk).component("unet").graph
    before = unet._runner._process.pid
    os.kill(before, signal.SIGKILL)
    made, _ = together([task])
    assert unet._runner._process.pid != before
    assert difference(made[0], alone[0]) <= 1


def as_others_write(folder: Path) -> None:
    """The index of the torch pipeline, as optimum has it; a UNet that takes one timestep for all rows; and a VAE that
    tells no variance."""
    index = json.loads((MODELS / "demo/model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    file = folder / "unet/model.onnx"
    model = onnx.load(file)
    (timestep,) = (entry for entry in model.graph.input if entry.name == "timestep")
    timestep.CopyFrom(helper.make_tensor_value_info("timestep", TensorProto.FLOAT, []))
    for node in model.graph.node:
        node.input[:] = ["timesteps" if name == "timestep" else name for name in node.input]
    nodes = [
        helper.make_node("Shape", ["sample"], ["rows"], start=0, end=1),
        helper.make_node("Expand", ["timestep", "rows"], ["timesteps"]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, file)
    file = folder / "vae_encoder/model.onnx"
    model = onnx.load(file)
    (output,) = model.graph.output
    both, output.name = output.name, "latent_sample"
    output.type.tensor_type.shape.dim[1].dim_value //= 2
    model.graph.node.append(helper.make_node("Split", [both], ["latent_sample", "unused"], axis=1, num_outputs=2))
    onnx.save(model, file)


def test_folders_of_other_exporters_are_run(registry: Registry, root: Path, alone: list[Image.Image]) -> None:
    shutil.copytree(root / "demo-onnx/1", root / "other/1")
    as_others_write(root / "other/1")
    desk = Desk(root)
    try:
        model = desk.models.find("other")
        assert (model.family, model.runs_onnx) == ("stable_diffusion", True)
        changed = next(index for index, (kind, _) in enumerate(REQUESTS) if kind == "img2img")  # at other timesteps
        chosen = [0, 1, 2, changed]
        made, _ = together([task_of(registry, desk, "other", REQUESTS[at][0], **REQUESTS[at][1]) for at in chosen])
        assert max(difference(image, alone[at]) for image, at in zip(made[:3], chosen, strict=False)) <= 1
        assert apart(made[3], alone[changed]) <= 4
    finally:
        close(desk)


def damage(folder: Path, what: str) -> None:
    if what == "missing":
        (folder / "vae_decoder/model.onnx").unlink()
    elif what == "cut":
        raw = (folder / "unet/model.onnx").read_bytes()
        (folder / "unet/model.onnx").write_bytes(raw[: len(raw) // 2])
    elif what == "swapped":
        shutil.copy(folder / "vae_decoder/model.onnx", folder / "unet/model.onnx")
    elif what == "strings":
        model = onnx.load(folder / "text_encoder/model.onnx")
        model.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, [1]))
        onnx.save(model, folder / "text_encoder/model.onnx")
    elif what == "config":
        (folder / "unet/config.json").write_text('{"_class_name": "UNet2DConditionModel", "down_block_types": 3}')
    elif what == "scheduler":
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DiffusionPipeline"]}))


@pytest.mark.parametrize("what", ["missing", "cut", "swapped", "strings", "config", "scheduler"])
def test_damaged_folders_are_told(registry: Registry, root: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(root / "demo-onnx/1", tmp_path / "broken/1")
    damage(tmp_path / "broken/1", what)
    desk = Desk(tmp_path)
    before = len(psutil.Process().children())
    try:
        with pytest.raises(AtelierError) as told:
            paint(registry, desk, "broken", REQUESTS[:1])
    finally:
        close(desk)
    assert isinstance(told.value, ModelInvalid)
    assert str(tmp_path) not in json.dumps(told.value.to_wire())
    assert len(psutil.Process().children()) <= before  # no process is left


def test_a_worker_makes_its_pictures(root: Path, alone: list[Image.Image]) -> None:
    """Through the wire, several at a time."""
    with House() as house:
        house.start_worker("w1", "--models", str(root), "--slots", "4")
        house.start_orchestrator()
        house.wait_for_workers("w1")
        with Client(house.endpoint, timeout_s=120) as client:
            asked = {"model_id": ONNX, "guidance_scale": GUIDANCE, "steps": 10}
            jobs = [client.submit("inference.text2img", {**asked, **data}) for _, data in REQUESTS[:4]]
            made = [open_image(bytes(job.result().images[0].content)) for job in jobs]
            entry = next(model for model in client.models.list().models if model["model_id"] == ONNX)
            assert entry["resident_on"] == ["w1"]
            with pytest.raises(InvalidRequest, match="LoRAs"):
                client.text2img(PROMPTS[0], model_id=ONNX, loras=[{"lora_id": "demo-hollow"}])
    assert max(difference(one, other) for one, other in zip(made, alone, strict=False)) <= 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["sdxl", "sd_inpaint"])
def test_other_families_are_converted(registry: Registry, tmp_path: Path, family: str) -> None:
    tiny.build(tmp_path / "torch", family)
    converter = ConvertDesk(tmp_path)
    answer = converter.convert(source="torch", name="graphs", within_s=500)
    assert all(part["max_rel_error"] < 1e-4 for part in answer["components"].values())
    desk = Desk(tmp_path)
    kinds = ("inpainting",) if family == "sd_inpaint" else ("text2img", "img2img", "inpainting")
    requests = [(kind, {"seed": seed, "steps": 4}) for seed, kind in enumerate(kinds)]
    try:
        for one, other in zip(
            paint(registry, desk, "graphs", requests), paint(registry, desk, "torch", requests), strict=True
        ):
            assert apart(one, other) <= 2
    finally:
        close(desk)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("precision", "mean"), [("float16", 2), ("int8", 16)])
def test_other_precisions_show_the_same(
    registry: Registry, tmp_path: Path, root: Path, alone: list[Image.Image], precision: str, mean: float
) -> None:
    shutil.copytree(MODELS / "demo", tmp_path / "demo")
    ConvertDesk(tmp_path).convert(source="demo", name="demo-onnx", version="1", precision=precision, within_s=500)
    nbytes = [sum(file.stat().st_size for file in (base / "demo-onnx/1").rglob("*.onnx")) for base in (tmp_path, root)]
    assert nbytes[0] < 0.8 * nbytes[1]
    desk = Desk(tmp_path)
    try:
        made = paint(registry, desk, ONNX, REQUESTS[: len(PROMPTS)])
    finally:
        close(desk)
    assert max(apart(one, other) for one, other in zip(made, alone, strict=False)) <= mean
    assert sum(judge(one) == judge(other) for one, other in zip(made, alone, strict=False)) >= len(PROMPTS) - 1
