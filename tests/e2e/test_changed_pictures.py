"""img2img, inpainting and outpainting through the real server and worker, judged by what is in the pictures."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from instructors import masks
from orchestrator.client import Blob, Client
from protocol import recipe as recipes
from scripts.demo_model.judge import judge
from tests.e2e.house import ROOT, House

pytestmark = pytest.mark.timeout(120)

GUIDANCE = {"guidance_scale": 4.0, "seed": 3}
BOX = (10, 10, 54, 54)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with House() as house:
        house.start_orchestrator()
        house.start_worker("w", "--models", str(ROOT / "models"))
        house.wait_for_workers("w")
        with house.client(timeout_s=60) as client:
            yield client


def square() -> Image.Image:
    """A blue one on white."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((18, 18, 46, 46), (40, 70, 220))
    return image


def mask() -> Image.Image:
    image = Image.new("L", (64, 64))
    ImageDraw.Draw(image).rectangle(BOX, 255)
    return image


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def opened(result: Any, index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(result.attachments[index].content))


def test_img2img_paints_the_prompts_colour_where_the_shape_is(client: Client) -> None:
    result = client.img2img("a red square on a white background", square(), strength=0.5, **GUIDANCE)
    seen = judge(opened(result))
    assert (seen.shape_kind, seen.shape_colour, seen.background_colour) == ("square", "red", "white")


@pytest.mark.parametrize("more", [{}, {"padding_mask_crop": 6}], ids=["whole", "region"])
def test_inpainting_paints_inside_the_mask_and_nowhere_else(client: Client, more: dict[str, Any]) -> None:
    prompt = "a green circle on a white background"
    result = client.inpainting(prompt, square(), mask(), mask_blur=2, **more, **GUIDANCE)
    made = opened(result)
    assert judge(made).shape_colour == "green"
    black = np.asarray(masks.blur(mask(), 2, "mask_image")) == 0
    assert black.sum() > 1000
    assert np.array_equal(np.asarray(made)[black], np.asarray(square())[black])


def test_outpainting_keeps_the_picture(client: Client) -> None:
    prompt = "a blue square on a white background"
    result = client.inpainting(prompt, square(), outpaint={"left": 16, "bottom": 8}, mask_blur=0, **GUIDANCE)
    made = opened(result)
    assert made.size == (80, 72)
    assert made.crop((16, 0, 80, 64)).tobytes() == square().tobytes()
    added = np.asarray(made, float)[:, :16].reshape(-1, 3)
    assert (added.mean(axis=0) > 200).all()  # white goes on


def test_the_file_tells_how_to_make_it_again(client: Client) -> None:
    files = {"image": png(square()), "mask_image": png(mask())}
    first = client.inpainting("a red circle on a white background", *files.values(), num_images=2, **GUIDANCE)
    recipe = recipes.read(bytes(first.attachments[1].content))
    assert recipe is not None
    refs = {name: {"attachment": index} for index, name in enumerate(files)}
    blobs = [Blob(raw, "image/png") for raw in files.values()]
    again = client.run(recipe["action"], recipes.request_data(recipe, refs), attachments=blobs)
    assert np.array_equal(np.asarray(opened(again)), np.asarray(opened(first, 1)))


def test_kinds_at_the_same_time(client: Client) -> None:
    """What each says is in its own picture."""
    colours = ["red", "green", "yellow", "purple", "orange", "black"]
    blobs = [Blob(png(image), "image/png") for image in (square(), mask())]
    jobs = []
    for index, colour in enumerate(colours):
        data = {"prompt": f"a {colour} circle on a white background", **GUIDANCE}
        if index % 3 == 0:
            jobs.append(client.submit("inference.text2img", data))
        elif index % 3 == 1:
            data |= {"image": {"attachment": 0}, "strength": 1.0}
            jobs.append(client.submit("inference.img2img", data, attachments=blobs[:1]))
        else:
            data |= {"image": {"attachment": 0}, "mask_image": {"attachment": 1}}
            jobs.append(client.submit("inference.inpainting", data, attachments=blobs))
    seen = [judge(opened(job.result(60))).shape_colour for job in jobs]
    assert seen == colours
