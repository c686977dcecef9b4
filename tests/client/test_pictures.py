"""Pictures on their way to the server: files, bytes and PIL images become attachments; LoRAs, ControlNets, validate."""

import asyncio
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PillowImage

from orchestrator.client import AsyncClient, Blob, Client, Image, attach_pictures
from protocol.errors import InvalidRequest, MalformedMessage, PayloadTooLarge
from protocol.schemas import validate_data
from protocol.schemas.values import check_references
from tests.client.scripted import Received, ScriptedServer

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(color: tuple[int, ...] = RED, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    PillowImage.new("RGB", (3, 2), color).save(stream, kind)
    return stream.getvalue()


PAINTED = {"images": [{"attachment": 0, "media_type": "image/png", "width": 3, "height": 2, "seed": 7, "recipe": {}}]}


@pytest.fixture
def ask(server: ScriptedServer, client: Client) -> "Iterator[Callable[..., tuple[Received, Any]]]":
    """Calls a method of the client on a thread; returns what the server received and what the method returned."""
    with ThreadPoolExecutor(1) as pool:

        def call(method: Callable[[], Any], answer: dict[str, Any], blobs: list[bytes] | None = None) -> Any:
            returned: Future[Any] = pool.submit(method)
            received = server.receive()
            received.respond(answer, blobs, job_id="job-1", status="completed")
            return received, returned.result(20)

        yield call


def check(received: Received) -> None:
    """The real server would take it: data by the action's schema, and every picture it names is there."""
    check_references(validate_data(received.action, received.request.data), len(received.blobs))


def test_img2img_sends_a_pil_image_as_png(client: Client, ask: Callable[..., Any]) -> None:
    picture = PillowImage.new("RGB", (3, 2), RED)
    received, result = ask(lambda: client.img2img("a house", picture, strength=0.5, priority=7), PAINTED, [png(BLUE)])
    check(received)
    assert received.action == "inference.img2img"
    assert received.request.data == {"prompt": "a house", "image": {"attachment": 0}, "strength": 0.5}
    assert (received.request.priority, received.request.attachments[0].media_type) == (7, "image/png")
    sent = PillowImage.open(io.BytesIO(received.blobs[0]))
    assert (sent.format, sent.size, sent.getpixel((0, 0))) == ("PNG", (3, 2), RED)
    assert result.images[0].pil.getpixel((0, 0)) == BLUE


def test_inpainting_sends_both_pictures_and_a_controlnets(
    client: Client, ask: Callable[..., Any], tmp_path: Path
) -> None:
    mask = tmp_path / "mask.webp"
    mask.write_bytes(png(kind="WEBP"))
    controlnet = {"controlnet_id": "edges", "image": mask, "preprocessor": "canny"}
    received, _ = ask(
        lambda: client.inpainting("x", png(kind="JPEG"), str(mask), controlnets=[controlnet]), PAINTED, [png()]
    )
    check(received)
    data = received.request.data
    assert (data["image"], data["mask_image"]) == ({"attachment": 0}, {"attachment": 1})
    assert data["controlnets"] == [{**controlnet, "image": {"attachment": 2}}]
    assert received.blobs == [png(kind="JPEG"), png(kind="WEBP"), png(kind="WEBP")]
    kinds = [entry.media_type for entry in received.request.attachments]
    assert kinds == ["image/jpeg", "image/webp", "image/webp"]


def test_a_picture_is_widened_without_a_mask(client: Client, ask: Callable[..., Any]) -> None:
    received, _ = ask(lambda: client.inpainting("x", png(), outpaint={"right": 8}), PAINTED, [png()])
    check(received)


def test_text2img_takes_loras_and_controlnets(client: Client, ask: Callable[..., Any]) -> None:
    loras = [{"lora_id": "hollow", "scale": 0.8}]
    uses = ({"controlnet_id": "edges", "image": png()},)
    seen = {"attachment": 1, "media_type": "image/png", "width": 3, "height": 2, "preprocessor": "none"}
    answer = PAINTED | {"controlnet_images": [seen]}
    received, result = ask(
        lambda: client.text2img("x", loras=loras, controlnets=uses, attachments=[Blob(b"mine")]), answer,
        [png(), png(BLUE)],
    )  # fmt: skip
    check(received)
    assert received.request.data["loras"] == loras
    assert received.request.data["controlnets"][0]["image"] == {"attachment": 1}  # behind the caller's own
    assert received.blobs == [b"mine", png()]
    assert result.controlnet_images[0].pil.getpixel((0, 0)) == BLUE
    assert result.controlnet_images[0].recipe is None


def test_what_the_caller_holds_is_not_changed() -> None:
    use = {"controlnet_id": "edges", "image": png()}
    data = {"prompt": "x", "image": png(), "controlnets": [use]}
    attach_pictures(data)
    assert (data["image"], use["image"]) == (png(), png())


def test_pictures_of_every_kind() -> None:
    made = Image(png(), "image/png", 7, {})
    stored = {"artifact_id": "a"}
    for picture in (made, Blob(png(), "image/png"), bytearray(png()), memoryview(png())):
        assert attach_pictures({"image": picture}) == ({"image": {"attachment": 0}}, [Blob(png(), "image/png")])
    assert attach_pictures({"image": stored, "mask_image": None}) == ({"image": stored, "mask_image": None}, [])
    assert attach_pictures({"image": b"?"})[1] == [Blob(b"?", "application/octet-stream")]
    with pytest.raises(TypeError, match="not a int"):
        attach_pictures({"image": 7})
    with pytest.raises(FileNotFoundError):
        attach_pictures({"image": "no such file"})


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"]
)
def test_pil_images_of_every_mode_become_png(mode: str) -> None:
    image = PillowImage.new("RGB", (3, 2), RED)
    made = PillowImage.new(mode, (3, 2), 60_000) if mode in ("I", "I;16", "F") else image.convert("RGBA").convert(mode)
    sent = PillowImage.open(io.BytesIO(attach_pictures({"image": made})[1][0].content))
    assert (sent.format, sent.size) == ("PNG", (3, 2))
    if mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV"):
        assert all(abs(a - b) < 3 for a, b in zip(sent.convert("RGBA").getpixel((0, 0)), (*RED, 255), strict=True))  # type: ignore[arg-type]


def test_a_pil_images_pixels_are_sent_as_they_are() -> None:
    """Its EXIF orientation is not sent: the caller sees the pixels as they are, and so shall the server."""
    stream, exif = io.BytesIO(), PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.new("RGB", (3, 2), RED).save(stream, "JPEG", exif=exif)
    sent = PillowImage.open(io.BytesIO(attach_pictures({"image": PillowImage.open(stream)})[1][0].content))
    assert (sent.size, sent.getexif().get(0x0112)) == ((3, 2), None)


def test_transparency_is_kept() -> None:
    image = PillowImage.new("PA", (3, 2))
    image.putalpha(PillowImage.new("L", (3, 2), 7))
    sent = PillowImage.open(io.BytesIO(attach_pictures({"image": image})[1][0].content))
    assert sent.mode == "RGBA"
    assert sent.getpixel((0, 0))[3] == 7  # type: ignore[index]


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(2**40)  # a hole: takes no room on the disk, and no machine's memory could hold it
    with pytest.raises(PayloadTooLarge, match=r"large\.png has more than 64 MiB"):
        attach_pictures({"image": large})


def test_validate_names_its_pictures_and_sends_none(client: Client, ask: Callable[..., Any]) -> None:
    worker = {"worker_id": "w", "device_id": "cpu", "start_ms": 1, "load_ms": 2, "run_ms": 3, "warm": False}
    received, told = ask(
        lambda: client.validate(
            "inference.img2img", {"prompt": "x", "image": png(), "seed": 2**64 - 1}, session_id="s", worker_id="w"
        ),
        {"runs": True, "workers": [worker], "data": {}},
    )
    asked = received.request
    assert (asked.action, asked.session_id, asked.worker_id, received.blobs) == ("inference.validate", "s", "w", [])
    assert asked.data["action"] == "inference.img2img"
    assert asked.data["data"] == {"prompt": "x", "image": {"attachment": 0}, "seed": str(2**64 - 1)}
    validate_data(asked.action, asked.data)
    validate_data(asked.data["action"], asked.data["data"])
    assert (told.runs, told.error, told.workers[0].run_ms, told.workers[0].memory_bytes) == (True, None, 3, None)


LORA = {"lora_id": "hollow", "rank": 4, "targets": ["unet"], "base_model": "demo", "trigger_words": ["hollow"],
        "nbytes": 1000, "loaded": True, "format": "peft", "problem": None}  # fmt: skip


def test_loras(client: Client, ask: Callable[..., Any]) -> None:
    received, found = ask(lambda: client.loras.list(worker_id="w"), {"loras": [LORA]})
    assert (received.action, received.request.worker_id) == ("lora.list", "w")
    assert (found[0].rank, found[0].trigger_words, found[0].loaded) == (4, ["hollow"], True)
    received, loaded = ask(lambda: client.loras.load("hollow", "demo"), LORA)
    check(received)
    assert (received.action, received.request.data) == ("lora.load", {"lora_id": "hollow", "model_id": "demo"})
    assert loaded.loaded
    received, unloaded = ask(lambda: client.loras.unload("hollow"), {**LORA, "loaded": False})
    check(received)
    assert (received.action, unloaded.loaded) == ("lora.unload", False)


def test_controlnets(client: Client, ask: Callable[..., Any]) -> None:
    answer = {"controlnets": [{"controlnet_id": "edges", "nbytes": 7}], "preprocessors": ["none", "canny"]}
    received, found = ask(client.controlnets.list, answer)
    assert received.action == "controlnet.list"
    assert (found.controlnets[0].controlnet_id, found.preprocessors) == ("edges", ["none", "canny"])
    seen = {"attachment": 0, "media_type": "image/png", "width": 3, "height": 2, "preprocessor": "canny"}
    received, image = ask(lambda: client.controlnets.preprocess(png(), "canny", 512), {"images": [seen]}, [png(BLUE)])
    check(received)
    assert received.request.data == {"image": {"attachment": 0}, "preprocessor": "canny", "resolution": 512}
    assert image.pil.getpixel((0, 0)) == BLUE


def test_an_answer_without_the_preprocessed_picture_is_an_error(client: Client, ask: Callable[..., Any]) -> None:
    with pytest.raises(MalformedMessage, match="0 pictures"):
        ask(lambda: client.controlnets.preprocess(png(), "canny"), {"images": []})


def test_a_wrong_picture_is_refused_by_its_field(server: ScriptedServer, client: Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        returned = pool.submit(lambda: client.img2img("x", b"not a picture"))
        server.receive().fail("invalid_request", details={"fields": [{"field": "image", "problem": "is no picture"}]})
        with pytest.raises(InvalidRequest) as caught:
            returned.result(20)
    assert caught.value.details["fields"][0]["field"] == "image"


async def test_the_same_awaited(server: ScriptedServer) -> None:
    """Each method of the asyncio client sends what the blocking one does."""
    picture = PillowImage.new("RGB", (3, 2), RED)
    seen = {"attachment": 0, "media_type": "image/png", "width": 3, "height": 2, "preprocessor": "canny"}

    async def ask(call: Any, answer: dict[str, Any], blobs: list[bytes] | None = None) -> tuple[Received, Any]:
        task = asyncio.create_task(call)
        received = await asyncio.to_thread(server.receive)
        received.respond(answer, blobs, job_id="job-1", status="completed")
        return received, await task

    async with AsyncClient(server.endpoint, timeout_s=20) as client:
        received, result = await ask(client.img2img("x", picture, strength=0.5), PAINTED, [png(BLUE)])
        check(received)
        assert PillowImage.open(io.BytesIO(received.blobs[0])).getpixel((0, 0)) == RED
        assert result.images[0].pil.getpixel((0, 0)) == BLUE
        received, _ = await ask(client.inpainting("x", png(), png(BLUE)), PAINTED, [png()])
        check(received)
        assert received.blobs == [png(), png(BLUE)]
        received, _ = await ask(client.text2img("x", loras=[{"lora_id": "hollow"}]), PAINTED, [png()])
        assert received.request.data == {"prompt": "x", "loras": [{"lora_id": "hollow"}]}
        received, told = await ask(client.validate("inference.img2img", {"image": png()}), {"runs": False})
        assert (received.request.data["data"], told.runs) == ({"image": {"attachment": 0}}, False)
        assert (await ask(client.loras.list(), {"loras": [LORA]}))[1][0].rank == 4
        assert (await ask(client.loras.load("hollow"), LORA))[1].loaded
        assert (await ask(client.loras.unload("hollow"), LORA))[0].action == "lora.unload"
        assert (await ask(client.controlnets.list(), {"controlnets": [], "preprocessors": []}))[1].controlnets == []
        received, image = await ask(client.controlnets.preprocess(picture, "canny"), {"images": [seen]}, [png(BLUE)])
        check(received)
        assert image.pil.getpixel((0, 0)) == BLUE
