"""`inference.img2img` on tiny random models: the stock pipeline's picture, and the sizes around it."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protocol import recipe as recipes
from protocol.enums import EventName
from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.schemas import ACTIONS
from tests.instructors import tiny
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import difference, file, noise, open_image, run, stock, unpasted

SCHEDULERS = [
    "ddim", "ddpm", "deis", "dpm++_2m", "dpm++_2m_sde", "dpm2_a", "euler", "euler_a", "heun", "lcm", "lms_karras",
    "pndm", "unipc",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("img2img")
    for family in ("sd", "sdxl", "sd3"):
        tiny.build(root / family, family)
    return root


@pytest.fixture(scope="module")
def desk(root: Path) -> Desk:
    return Desk(root)


@pytest.fixture
def change(registry: Any, desk: Desk) -> Any:
    """Run it to its end, on the Stable Diffusion model."""
    desk.reset()
    return lambda *pictures, **data: run(registry, desk, "img2img", pictures, **{"model_id": "sd", **data})


def picture(result: Any) -> Image.Image:
    return open_image(files(result)[0])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_alone_it_equals_the_stock_pipeline(registry: Any, desk: Desk, root: Path, family: str, scheduler: str) -> None:
    image = noise(24, 16)
    for strength in (0.3, 0.8, 1.0):
        asked = {"strength": strength, "negative_prompt": "blue", "guidance_scale": 3.0}
        ours = unpasted(registry, desk, "img2img", [image], model_id=family, scheduler=scheduler, steps=5, **asked)
        theirs = stock(root / family, "img2img", scheduler, image=image, num_inference_steps=5, **asked)
        assert ours.shape == (16, 24, 3)
        assert np.array_equal(ours, theirs), strength


def test_a_family_without_lanes_equals_stock_too(registry: Any, desk: Desk, root: Path) -> None:
    asked = {"strength": 0.7, "guidance_scale": 3.0}
    ours = unpasted(
        registry, desk, "img2img", [noise(24, 16)], model_id="sd3", scheduler="flow_euler", steps=5, **asked
    )
    size = {"width": 24, "height": 16}
    theirs = stock(root / "sd3", "img2img", "flow_euler", image=noise(24, 16), num_inference_steps=5, **size, **asked)
    assert np.array_equal(ours, theirs)
    [entry] = run(registry, desk, "img2img", [noise(25, 17)], model_id="sd3").data["images"]
    assert (entry["width"], entry["height"]) == (25, 17)


def test_without_guidance_too(registry: Any, desk: Desk, root: Path) -> None:
    for family in ("sd", "sdxl"):
        ours = unpasted(registry, desk, "img2img", [noise()], model_id=family, scheduler="ddim", guidance_scale=1.0)
        theirs = stock(root / family, "img2img", "ddim", image=noise(), strength=0.8, guidance_scale=1.0)
        assert np.array_equal(ours, theirs)


def test_a_picture_with_its_recipe(change: Any, desk: Desk) -> None:
    raw = file(noise())
    result = change(raw, strength=0.5, steps=4, num_images=2, seed=9)
    ACTIONS["inference.img2img"].result.model_validate(result.data)
    recipe = result.data["images"][1]["recipe"]
    assert recipes.read(files(result)[1]) == recipe
    assert (recipe["action"], recipe["strength"], recipe["seed"]) == ("inference.img2img", 0.5, 10)
    assert recipe["inputs"] == {"image": hashlib.sha256(raw).hexdigest()}
    again = recipes.request_data(recipe, {"image": {"attachment": 0}})
    assert files(change(raw, **again)) == [files(result)[1]]


@pytest.mark.parametrize(("steps", "strength", "run_steps"), [(10, 0.5, 5), (20, 0.8, 16), (3, 1.0, 3), (2, 0.5, 1)])
def test_only_a_share_of_the_steps_is_run(change: Any, desk: Desk, steps: int, strength: float, run_steps: int) -> None:
    change(noise(), steps=steps, strength=strength)
    progress = [data for data, _ in desk.named(EventName.PROGRESS)]
    assert [data["step"] for data in progress] == list(range(1, run_steps + 1))
    assert all(data["steps"] == run_steps for data in progress)
    assert progress[-1]["progress"] == 1


def test_previews(change: Any, desk: Desk) -> None:
    change(noise(), steps=4, strength=1.0, preview={"every_steps": 2})
    [(data, [blob])] = desk.named(EventName.PREVIEW)
    assert data["step"] == 2
    assert blob.data().startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("size", [(32, 24), (41, 30), (8, 8), (9, 15)])
def test_the_picture_has_the_images_own_size(change: Any, size: tuple[int, int]) -> None:
    result = change(noise(*size))
    [entry] = result.data["images"]
    assert (entry["width"], entry["height"]) == size
    assert entry["recipe"]["own_size"] is True


def test_or_the_size_that_was_asked_for(change: Any) -> None:
    result = change(noise(41, 30), width=24, height=40)
    [entry] = result.data["images"]
    assert (entry["width"], entry["height"]) == (24, 40)
    assert "own_size" not in entry["recipe"]
    scaled = noise(41, 30).resize((24, 40), Image.Resampling.LANCZOS)
    assert difference(picture(result), picture(change(scaled))) == 0


def test_pictures_are_taken_upright(change: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = noise(16, 24)
    turned = file(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert picture(change(turned)).tobytes() == picture(change(image)).tobytes()


def test_bytes_in_the_request_are_a_picture(change: Any) -> None:
    raw = file(noise())
    assert files(change(image=raw)) == files(change(raw))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"strength": 0.0}, "strength: 0.0 of 3 steps is less than one"),
        ({"strength": 0.3}, "less than one"),
        ({"strength": 1.1}, "strength"),
        ({"denoising_strength": 0.1}, "less than one"),
        ({"scheduler": "IPNDMScheduler"}, "cannot begin with a picture"),
        ({"width": 32}, "both width and height"),
        ({"width": 12, "height": 16}, "multiple of 8"),
        ({"image": {"attachment": 1}}, "no attachment 1"),
        ({"image": {"artifact_id": "a1"}}, "artifact"),
        ({"image": b"GIF89a"}, "not a PNG"),
        ({"image": 7}, "image"),
    ],
)
def test_what_cannot_be_done_is_said(change: Any, data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        change(noise(), **data)


def test_a_picture_too_small_for_the_model(change: Any) -> None:
    with pytest.raises(InvalidRequest, match="1 × 1; this model needs sides of at least 8"):
        change(noise(1, 1))
    assert change(noise(1, 1), width=16, height=16)  # asked for, it is blown up


def test_a_picture_too_large_for_the_model(change: Any) -> None:
    with pytest.raises(InvalidRequest, match="width: is 200, and this model makes pictures of at most 192"):
        change(noise(200, 9), model_id="sd3")


def test_all_pictures_of_a_job_together_have_a_limit(change: Any) -> None:
    with pytest.raises(PayloadTooLarge, match="pixels"):
        change(Image.new("RGB", (4096, 4096)), num_images=5)
