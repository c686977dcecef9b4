"""What the commands about pictures send, and what they make of the answers, beside a server that a test scripts."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from orchestrator.cli import cli
from protocol import recipe as recipes
from protocol.schemas import validate_data
from protocol.schemas.values import check_references
from tests.client.scripted import Received, ScriptedServer

RED, BLUE = (255, 0, 0), (0, 0, 255)
NUMERICS = {"device": "cpu", "threads": 2, "libraries": {"torch": "2.13"}, "dtype": "float32", "padding": "fast"}


def png(color: tuple[int, int, int] = RED, recipe: dict[str, Any] | None = None) -> bytes:
    image = Image.new("RGB", (8, 8), color)
    if recipe is not None:
        return recipes.encode(image, recipe, "png", 90)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@dataclass
class Desk:
    """A folder to work in, and a server whose answers a test writes."""

    server: ScriptedServer
    folder: Path

    def call(self, *arguments: str, script: Callable[[Received], None]) -> tuple[Received, Result]:
        """Run a command; answer its ping, and its request by the script."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(CliRunner().invoke, cli, [*arguments, "--connect", self.server.endpoint])
            ping = self.server.receive()
            assert ping.action == "system.ping"
            ping.respond({"time": "2026-01-31T12:00:00.000Z"})
            received = self.server.receive()
            script(received)
            done = running.result(20)
        if received.action != "inference.validate":
            check_references(validate_data(received.action, received.request.data), len(received.blobs))
        return received, done

    def generate(self, *arguments: str, recipe: dict[str, Any] | None = None) -> tuple[Received, Result]:
        made = png(BLUE)
        image = {"attachment": 0, "media_type": "image/png", "width": 8, "height": 8, "seed": 7}

        def script(received: Received) -> None:
            received.state(1, "completed")
            received.respond({"images": [{**image, "recipe": recipe or {}}]}, [made], job_id="j", status="completed")

        received, done = self.call("generate", *arguments, "-o", str(self.folder / "made.png"), script=script)
        assert done.exit_code == 0, done.output
        assert (self.folder / "made.png").read_bytes() == made
        return received, done


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    for name, color in (("house.png", RED), ("mask.png", BLUE), ("a,b.png", BLUE)):
        (tmp_path / name).write_bytes(png(color))
    with ScriptedServer() as server:
        yield Desk(server, tmp_path)


def test_a_picture_is_changed(desk: Desk) -> None:
    received, _ = desk.generate("a house", "--image", "house.png", "--strength", "0.6", "--priority", "7")
    assert received.action == "inference.img2img"
    assert received.request.data == {
        "prompt": "a house", "image": {"attachment": 0}, "strength": 0.6, "output": {"format": "png"}
    }  # fmt: skip
    assert (received.blobs, received.request.priority) == ([png()], 7)


def test_a_part_is_repainted(desk: Desk) -> None:
    pictures = ["--image", "house.png", "--mask", "mask.png"]
    received, _ = desk.generate("x", *pictures, "--mask-blur", "0", "--invert-mask", "--padding-mask-crop", "8")
    data = received.request.data
    assert (received.action, received.blobs) == ("inference.inpainting", [png(), png(BLUE)])
    assert (data["mask_image"], data["mask_blur"], data["invert_mask"]) == ({"attachment": 1}, 0, True)
    assert data["padding_mask_crop"] == 8


def test_a_picture_is_widened(desk: Desk) -> None:
    received, _ = desk.generate("x", "--image", "house.png", "--outpaint", "right=64,top=8")
    assert received.action == "inference.inpainting"
    assert received.request.data["outpaint"] == {"right": 64, "top": 8}


def test_loras_controlnets_and_sampling(desk: Desk) -> None:
    received, _ = desk.generate(
        "x", "--lora", "hollow:0.8", "--lora", "ink", "--lora", "a:b", "--lora", "dark:-1.5",
        "--controlnet", "edges=a,b.png,preprocessor=canny,scale=0.8,start=0.1,end=0.9,resolution=64,guess=yes",
        "--controlnet", "edges=house.png", "--sigmas", "14.6,2,0.5", "--eta", "0.5", "--guidance-rescale", "0.7",
        "--guidance-end", "0.8", "--vae", "fine",
    )  # fmt: skip
    data = received.request.data
    assert received.action == "inference.text2img"
    assert data["loras"] == [
        {"lora_id": "hollow", "scale": 0.8}, {"lora_id": "ink"}, {"lora_id": "a:b"}, {"lora_id": "dark", "scale": -1.5}
    ]  # fmt: skip
    assert data["controlnets"] == [
        {
            "controlnet_id": "edges", "image": {"attachment": 0}, "preprocessor": "canny", "conditioning_scale": 0.8,
            "control_guidance_start": 0.1, "control_guidance_end": 0.9, "preprocessor_resolution": 64,
            "guess_mode": True,
        },
        {"controlnet_id": "edges", "image": {"attachment": 1}},
    ]  # fmt: skip
    assert received.blobs == [png(BLUE), png()]
    assert (data["sigmas"], data["steps"], data["eta"]) == ([14.6, 2.0, 0.5], 3, 0.5)
    assert (data["guidance_rescale"], data["guidance_end"], data["vae_id"]) == (0.7, 0.8, "fine")


def test_sigmas_by_a_rule_leave_the_steps_alone(desk: Desk) -> None:
    received, _ = desk.generate("x", "--sigmas", "karras")
    assert received.request.data == {"prompt": "x", "sigmas": "karras", "output": {"format": "png"}}


ORIGINAL = {
    "version": 1, "action": "inference.inpainting", "prompt": "a house", "steps": 9, "seed": 7, "width": 9, "height": 9,
    "own_size": True, "strength": 0.5, "mask_blur": 2, "model_hash": "00", "lora_hashes": ["11"],
    "loras": [{"lora_id": "hollow", "scale": 0.8}],
    "controlnets": [{"controlnet_id": "edges", "preprocessor": "canny", "conditioning_scale": 0.5}],
    "inputs": {"image": sha256(png()), "mask_image": sha256(png(BLUE)), "controlnets.0.image": sha256(png())},
    "numerics": NUMERICS,
}  # fmt: skip
INPUTS = ["--image", "house.png", "--mask", "mask.png", "--controlnet", "edges=house.png"]


def again(desk: Desk, *arguments: str, **made: Any) -> tuple[dict[str, Any], list[str]]:
    """(data, warnings) of a picture made again."""
    (desk.folder / "first.png").write_bytes(png(recipe=ORIGINAL))
    received, done = desk.generate("--from", "first.png", *arguments, recipe=ORIGINAL | made)
    assert received.action == "inference.inpainting"
    return received.request.data, done.stderr.splitlines()


def test_a_repainted_picture_is_made_again_from_its_recipe_and_its_pictures(desk: Desk) -> None:
    data, warnings = again(desk, *INPUTS)
    assert warnings == []
    assert data == {
        "prompt": "a house", "steps": 9, "seed": 7, "strength": 0.5, "mask_blur": 2, "image": {"attachment": 0},
        "mask_image": {"attachment": 1}, "loras": [{"lora_id": "hollow", "scale": 0.8}],
        "controlnets": [{"controlnet_id": "edges", "preprocessor": "canny", "conditioning_scale": 0.5,
                         "image": {"attachment": 2}}],
        "output": {"format": "png"},
    }  # fmt: skip


def test_options_change_what_the_recipe_says(desk: Desk) -> None:
    given = [*INPUTS[:-1], "edges=house.png,scale=1", "--steps", "3", "--lora", "ink"]
    data, _ = again(desk, *given)
    assert (data["steps"], data["loras"]) == (3, [{"lora_id": "ink"}])
    assert (data["controlnets"][0]["conditioning_scale"], data["controlnets"][0]["preprocessor"]) == (1.0, "canny")
    data, _ = again(desk, *INPUTS[:-1], "other=house.png")
    assert data["controlnets"] == [{"controlnet_id": "other", "image": {"attachment": 2}}]


def test_another_picture_than_the_originals_comes_with_a_warning(desk: Desk) -> None:
    _, warnings = again(desk, "--image", "mask.png", "--mask", "mask.png", "--controlnet", "edges=mask.png")
    assert sorted(warnings) == [
        "warning: --controlnet is another picture than the original's: the result differs",
        "warning: --image is another picture than the original's: the result differs",
    ]


def test_other_numerics_and_weights_come_with_a_warning(desk: Desk) -> None:
    _, warnings = again(
        desk, *INPUTS, numerics=NUMERICS | {"threads": 4, "padding": "reproducible"}, lora_hashes=["22"]
    )
    assert sorted(warnings) == [
        "warning: lora_hashes was 11, is 22: the picture may differ",
        "warning: padding was fast, is reproducible: the picture may differ",
        "warning: threads was 2, is 4: the picture may differ",
    ]


def test_a_recipe_without_its_pictures_is_wrong_usage(desk: Desk) -> None:
    (desk.folder / "first.png").write_bytes(png(recipe=ORIGINAL))
    done = CliRunner().invoke(cli, ["generate", "--from", "first.png", "--mask", "mask.png"])
    assert done.exit_code == 2
    assert "--controlnet and --image" in done.stderr


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"steps": "many"}, "steps"),
        ({"output": "png"}, "output"),
        ({"loras": [7]}, "loras.0"),
        ({"controlnets": [7]}, "recipe cannot be read"),
        ({"inputs": {"prompt": "00"}}, "recipe cannot be read"),
    ],
    ids=str,
)
def test_a_damaged_recipe_is_told_in_one_line(desk: Desk, damage: dict[str, Any], told: str) -> None:
    (desk.folder / "first.png").write_bytes(png(recipe=ORIGINAL | damage))
    done = CliRunner().invoke(cli, ["generate", "--from", "first.png", *INPUTS, "--preview"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: invalid_request")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_validate_tells_where_and_how_long(desk: Desk) -> None:
    worker = {"worker_id": "studio", "device_id": "cuda:0", "start_ms": 1500, "load_ms": 2000, "run_ms": 3100,
              "memory_bytes": 2**30, "warm": False}  # fmt: skip
    answer = {"runs": True, "workers": [worker], "estimate_measured": False}
    arguments = ["validate", "a house", "--image", "house.png", "--session", "s"]
    received, done = desk.call(*arguments, script=lambda received: received.respond(answer))
    assert (received.request.session_id, received.blobs) == ("s", [])
    assert received.request.data == {
        "action": "inference.img2img", "data": {"prompt": "a house", "image": {"attachment": 0}}
    }  # fmt: skip
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1].split() == ["studio", "cuda:0", "1.5", "s", "2.0", "s", "3.1", "s", "1.0", "GiB"]
    assert "guesses" in done.stderr
    _, done = desk.call(*arguments, "--json", script=lambda received: received.respond(answer))
    assert json.loads(done.stdout)["workers"][0]["run_ms"] == 3100


def test_validate_fails_where_the_request_would(desk: Desk) -> None:
    error = {"code": "model_not_found", "message": "No worker has this model.", "details": {"nearest": "demo"}}
    answer = {"runs": False, "error": error}
    _, done = desk.call("validate", "x", "--model", "dem", script=lambda received: received.respond(answer))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "model_not_found" in done.stderr
    assert "Did you mean demo?" in done.stderr
    _, done = desk.call("validate", "x", "--json", script=lambda received: received.respond(answer))
    assert (done.exit_code, json.loads(done.stdout)["runs"]) == (1, False)


LORA = {"lora_id": "hollow", "rank": 4, "targets": ["unet"], "base_model": None, "trigger_words": ["hollow"],
        "nbytes": 2048, "loaded": True, "format": "peft", "problem": None}  # fmt: skip


def test_loras(desk: Desk) -> None:
    def script(received: Received) -> None:
        answer = {"loras": [LORA]} if received.action == "lora.list" else LORA
        received.respond(answer, job_id="j", status="completed")

    received, done = desk.call("loras", "list", "--worker", "studio", script=script)
    assert (received.action, received.request.worker_id) == ("lora.list", "studio")
    assert done.stdout.splitlines()[1].split() == ["hollow", "peft", "4", "unet", "hollow", "2.0", "KiB", "yes"]
    received, done = desk.call("loras", "load", "hollow", "--model", "demo", "--json", script=script)
    assert received.request.data == {"lora_id": "hollow", "model_id": "demo"}
    assert json.loads(done.stdout)["trigger_words"] == ["hollow"]
    received, done = desk.call("loras", "unload", "hollow", script=script)
    assert (received.action, done.exit_code) == ("lora.unload", 0)


def test_controlnets(desk: Desk) -> None:
    answer = {"controlnets": [{"controlnet_id": "edges", "family": "sd", "nbytes": 2048, "problem": "is damaged"}],
              "preprocessors": ["none", "canny"]}  # fmt: skip
    script = lambda received: received.respond(answer, job_id="j", status="completed")  # noqa: E731
    _, done = desk.call("controlnets", "list", script=script)
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["edges", "sd", "2.0", "KiB", "no", "is", "damaged"]
    assert lines[-1] == "Preprocessors: none, canny"
    _, done = desk.call("controlnets", "list", "--json", script=script)
    assert json.loads(done.stdout)["preprocessors"] == ["none", "canny"]


def test_a_control_picture_is_written(desk: Desk) -> None:
    image = {"attachment": 0, "media_type": "image/png", "width": 8, "height": 8, "preprocessor": "canny"}
    script = lambda received: received.respond({"images": [image]}, [png(BLUE)], job_id="j", status="completed")  # noqa: E731
    arguments = ["controlnets", "preprocess", "house.png", "canny", "--resolution", "64", "-o", "edges.png"]
    received, done = desk.call(*arguments, script=script)
    assert received.request.data == {"image": {"attachment": 0}, "preprocessor": "canny", "resolution": 64}
    assert (done.stdout, (desk.folder / "edges.png").read_bytes()) == ("edges.png\n", png(BLUE))


def test_a_refusal_is_one_line_with_its_code(desk: Desk) -> None:
    details = {"fields": [{"field": "preprocessor", "problem": "is none of those allowed", "nearest": "canny"}]}
    arguments = ["controlnets", "preprocess", "house.png", "cany"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(CliRunner().invoke, cli, [*arguments, "--connect", desk.server.endpoint])
        desk.server.receive().respond({"time": "2026-01-31T12:00:00.000Z"})
        desk.server.receive().fail("invalid_request", details=details)
        done = running.result(20)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: invalid_request")
    assert "Did you mean canny?" in done.stderr
