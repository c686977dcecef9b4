"""ControlNets through the real server and worker: pictures judged by what is in them, and what is refused."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.client import Blob, Client
from protocol import recipe as recipes
from protocol.errors import AtelierError
from scripts.demo_model.controlnet import edge_map
from scripts.demo_model.evaluate import overlap_with
from scripts.demo_model.judge import judge
from scripts.demo_model.shapes import Scene, render, to_image
from tests.e2e.house import ROOT, House
from tests.e2e.neighbour import PROMPT, beside_a_neighbour

pytestmark = pytest.mark.timeout(120)

SCENE = Scene("square", "red", "white", 12, 20, 42)  # of the prompt's colours, and nothing else of it
WEIGHTS = "diffusion_pytorch_model.safetensors"


def spoil(controlnets: Path) -> None:
    """Beside the good one: one of pickles, one that calls pickles safetensors, one for another model, one cut short."""
    for name in ("pickle", "disguised", "elsewhere", "short"):
        shutil.copytree(controlnets / "demo-edges", controlnets / name)
    (controlnets / "pickle" / WEIGHTS).unlink()
    (controlnets / "pickle" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04anything")
    (controlnets / "disguised" / WEIGHTS).write_bytes(b"PK\x03\x04" + bytes(1000))
    config = json.loads((controlnets / "elsewhere" / "config.json").read_text())
    (controlnets / "elsewhere" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 768}))
    (controlnets / "short" / WEIGHTS).write_bytes((controlnets / "short" / WEIGHTS).read_bytes()[:-1])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server with one worker, which stays the same process from the first test to the last, and finishes somebody
    else's pictures beside all that is refused."""
    models = tmp_path_factory.mktemp("house") / "models"
    for folder in ("demo", "controlnets", "loras"):
        shutil.copytree(ROOT / "models" / folder, models / folder)
    spoil(models / "controlnets")
    with beside_a_neighbour(models, steps=500) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.endpoint, timeout_s=60) as connected:
        yield connected


def use(**fields: Any) -> dict[str, Any]:
    """The edges of a square that is elsewhere than the prompt's circle would be."""
    return {"controlnet_id": "demo-edges", "image": to_image(render(SCENE)), "preprocessor": "canny", **fields}


def painted(client: Client, **fields: Any) -> Any:
    return client.text2img(PROMPT, **{"guidance_scale": 4.0, "seed": 3, "controlnets": [use()], **fields})


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_the_picture_follows_the_edges_and_they_come_back(client: Client) -> None:
    result = painted(client)
    [image], [seen] = result.images, result.controlnet_images
    assert overlap_with(SCENE, image.pil) >= 0.7
    found = judge(image.pil)
    assert (found.shape_kind, found.shape_colour, found.background_colour) == ("square", "red", "white")
    assert np.array_equal(np.asarray(seen.pil), np.asarray(edge_map(to_image(render(SCENE)))))
    off = painted(client, controlnets=[use(conditioning_scale=0.0)]).images[0].pil
    assert overlap_with(SCENE, off) <= 0.4
    assert judge(off).shape_kind == "circle"


def test_its_recipe_makes_it_again(client: Client) -> None:
    result = painted(client, num_images=2)
    assert [len(result.images), len(result.controlnet_images)] == [2, 1]
    recipe = recipes.read(result.images[1].content)
    assert recipe is not None
    data = recipes.request_data(recipe, {"controlnets.0.image": {"attachment": 0}})
    again = client.run(recipe["action"], data, attachments=[Blob(png(use()["image"]), "image/png")])
    apart = np.abs(np.asarray(again.images[0].pil, int) - np.asarray(result.images[1].pil, int))
    assert apart.max() <= 1  # it had other company


def test_the_edges_hold_where_a_picture_is_changed(client: Client) -> None:
    whole = Image.new("L", (64, 64), 255)
    start = to_image(render(Scene("circle", "blue", "white", 18, 32, 32)))
    asked = {"guidance_scale": 4.0, "seed": 3, "controlnets": [use()]}
    assert overlap_with(SCENE, client.img2img(PROMPT, start, strength=1.0, **asked).images[0].pil) >= 0.7
    assert overlap_with(SCENE, client.inpainting(PROMPT, start, whole, **asked).images[0].pil) >= 0.7


def test_requests_of_all_kinds_at_once(client: Client) -> None:
    """Edges, a LoRA, both and neither: each picture is what its own request says."""
    kinds: list[tuple[bool, bool]] = [(True, False), (False, True), (True, True), (False, False)] * 2
    jobs = []
    for number, (edges, hollow) in enumerate(kinds):
        prompt = f"{PROMPT}, hollow" if hollow else PROMPT
        data: dict[str, Any] = {"prompt": prompt, "guidance_scale": 4.0, "seed": number, "steps": 20 + number}
        data["loras"] = [{"lora_id": "demo-hollow"}] if hollow else []
        data["controlnets"] = [use(image=png(to_image(render(SCENE))))] if edges else []
        jobs.append(client.submit("inference.text2img", data))
    for (edges, hollow), job in zip(kinds, jobs, strict=True):
        seen = judge(job.result(60).images[0].pil)
        assert (seen.shape_kind, seen.hollow) == ("square" if edges else "circle", hollow)
        assert seen.background_colour == "white"
        assert seen.shape_colour == "red" or hollow  # the LoRA's outlines on white are at times black


def test_list_and_preprocess(client: Client) -> None:
    found = client.controlnets.list()
    problems = {info.controlnet_id: info.problem for info in found.controlnets}
    assert problems.pop("demo-edges") is None
    assert problems.pop("elsewhere") is None  # only a model tells
    assert [*problems] == ["disguised", "pickle", "short"]
    assert all(problems.values())
    assert found.preprocessors == ["none", "canny", "scribble", "softedge", "tile"]
    scene = to_image(render(SCENE))
    edges = client.controlnets.preprocess(scene, "canny")
    assert np.array_equal(np.asarray(edges.pil), np.asarray(edge_map(scene)))


BAD_USES: list[tuple[dict[str, Any], str, str]] = [
    ({"controlnet_id": "demo-edge"}, "model_not_found", "no ControlNet"),
    ({"controlnet_id": "../demo"}, "model_not_found", "no ControlNet"),
    ({"controlnet_id": "pickle"}, "model_invalid", "pickle"),
    ({"controlnet_id": "disguised"}, "model_invalid", "pickle"),
    ({"controlnet_id": "short"}, "model_invalid", "not a whole safetensors"),
    ({"controlnet_id": "elsewhere"}, "model_invalid", "another base model"),
    ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "invalid_request", "must be less than"),
    ({"control_guidance_start": 0.9, "control_guidance_end": 0.1}, "invalid_request", "must be less than"),
    ({"control_guidance_end": 1.5}, "invalid_request", "control_guidance_end"),
    ({"conditioning_scale": float("nan")}, "invalid_request", "conditioning_scale"),
    ({"conditioning_scale": 1000.0}, "invalid_request", "conditioning_scale"),
    ({"preprocessor": "cany"}, "invalid_request", "preprocessor"),
    ({"preprocessor": "depth"}, "invalid_request", "needs a model file"),
    ({"preprocessor": "pose"}, "invalid_request", "needs a model file"),
    ({"preprocessor_resolution": 8192}, "payload_too_large", "preprocessor_resolution"),
    ({"image": {"attachment": 1}}, "invalid_request", "no attachment 1"),
    ({"image": None}, "invalid_request", "image"),
    ({"image": b"GIF89a"}, "invalid_request", "not a PNG, JPEG or WebP"),
    ({"imag": {"attachment": 0}}, "invalid_request", "imag"),
]


@pytest.mark.parametrize("index", range(len(BAD_USES)))
def test_what_is_refused(client: Client, index: int) -> None:
    changed, code, words = BAD_USES[index]
    refused(client, code, words, [{**use(image={"attachment": 0}), **changed}])


def test_what_does_not_go_together(client: Client) -> None:
    good = use(image={"attachment": 0})
    refused(client, "invalid_request", "guess_mode", [good, {**good, "guess_mode": True}])
    refused(client, "invalid_request", "controlnets", [good] * 5)
    refused(client, "invalid_request", "controlnets", [])


def refused(client: Client, code: str, words: str, uses: list[dict[str, Any]]) -> None:
    blob = Blob(png(to_image(render(SCENE))), "image/png")
    data = {"prompt": PROMPT, "steps": 2, "controlnets": uses}
    with pytest.raises(AtelierError) as caught:
        client.run("inference.controlnet", data, attachments=[blob])
    error = caught.value
    assert error.code == code, error
    text = f"{error.message} {json.dumps(error.details)}"
    assert words in text
    assert not error.retryable
    assert "Traceback" not in text
    assert not re.search(r"(?<![\w.])/\w", text), text  # a path
