"""`inference.inpainting` on tiny random models: the stock pipeline's picture, and around it the image's own pixels."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from instructors import masks
from protocol import recipe as recipes
from protocol.enums import EventName
from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.schemas import ACTIONS
from tests.instructors import tiny
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import box, difference, file, noise, open_image, run, stock, unpasted

SCHEDULERS = ["ddim", "ddpm", "deis", "dpm++_2m", "dpm++_2m_sde", "euler", "euler_a", "heun", "lcm", "unipc"]
FAMILIES = ["sd", "sdxl", "sd_inpaint", "sdxl_inpaint"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inpainting")
    for family in [*FAMILIES, "sd3"]:
        tiny.build(root / family, family)
    return root


@pytest.fixture(scope="module")
def desk(root: Path) -> Desk:
    return Desk(root)


@pytest.fixture
def repaint(registry: Any, desk: Desk) -> Any:
    """Run it to its end, on the Stable Diffusion model that has four channels."""
    desk.reset()
    return lambda *pictures, **data: run(registry, desk, "inpainting", pictures, **{"model_id": "sd", **data})


def picture(result: Any) -> Image.Image:
    return open_image(files(result)[0])


def pixels(image: Image.Image) -> Any:
    return np.asarray(image)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_before_the_paste_it_equals_the_stock_pipeline(
    registry: Any, desk: Desk, root: Path, family: str, scheduler: str
) -> None:
    image, mask = noise(24, 16), box(24, 16, (8, 4, 20, 14))
    for strength in (0.3, 0.8, 1.0):
        asked = {"strength": strength, "negative_prompt": "blue", "guidance_scale": 3.0}
        ours = unpasted(
            registry,
            desk,
            "inpainting",
            [image, mask],
            model_id=family,
            scheduler=scheduler,
            steps=5,
            mask_blur=1,
            **asked,
        )
        blurred = masks.blur(mask, 1, "mask_image")
        pictures = {"image": image, "mask_image": blurred, "width": 24, "height": 16}
        theirs = stock(root / family, "inpainting", scheduler, num_inference_steps=5, **pictures, **asked)
        assert ours.shape == (16, 24, 3)
        assert np.array_equal(ours, theirs), strength


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "dpm++_2m"])
@pytest.mark.parametrize("family", ["sd_inpaint", "sdxl_inpaint"])
def test_models_made_for_inpainting_equal_stock_too(
    registry: Any, desk: Desk, root: Path, family: str, scheduler: str, guidance: float
) -> None:
    for strength in (0.5, 1.0):
        asked = {"strength": strength, "guidance_scale": guidance}
        ours = unpasted(
            registry, desk, "inpainting", [noise(), box()], model_id=family, scheduler=scheduler, mask_blur=0, **asked
        )
        pictures = {"image": noise(), "mask_image": box(), "width": 32, "height": 32}
        assert np.array_equal(ours, stock(root / family, "inpainting", scheduler, **pictures, **asked))


def test_a_family_without_lanes_equals_stock_too(registry: Any, desk: Desk, root: Path) -> None:
    asked = {"strength": 0.7, "guidance_scale": 3.0}
    ours = unpasted(
        registry, desk, "inpainting", [noise(), box()], model_id="sd3", scheduler="flow_euler", mask_blur=0, **asked
    )
    pictures = {"image": noise(), "mask_image": box(), "width": 32, "height": 32}
    assert np.array_equal(ours, stock(root / "sd3", "inpainting", "flow_euler", **pictures, **asked))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "padding"), [((16, 16), 4), ((48, 40), 3), ((97, 61), 10), ((61, 97), 0)])
def test_a_region_equals_the_stock_padding_mask_crop(
    registry: Any, desk: Desk, root: Path, family: str, size: tuple[int, int], padding: int
) -> None:
    """The model works at its own size, whatever the image's."""
    image, mask = noise(*size), box(*size, (3, 2, 14, 12))
    asked = {"padding_mask_crop": padding, "strength": 1.0}
    ours = unpasted(
        registry, desk, "inpainting", [image, mask], "pil", model_id=family, scheduler="ddim", mask_blur=0, **asked
    )
    pictures = {"image": image, "mask_image": mask, "width": tiny.SIDE, "height": tiny.SIDE, "output_type": "pil"}
    theirs = stock(root / family, "inpainting", "ddim", **pictures, **asked)
    assert ours.size == (tiny.SIDE, tiny.SIDE)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("output", [{"format": "png"}, {"format": "webp", "quality": 100}])
@pytest.mark.parametrize("extra", [{}, {"padding_mask_crop": 5}], ids=["whole", "region"])
@pytest.mark.parametrize("size", [(32, 32), (41, 30)])
def test_where_the_mask_is_black_the_pixels_stay(
    repaint: Any, size: tuple[int, int], extra: dict[str, Any], output: dict[str, Any], family: str
) -> None:
    image, mask = noise(*size), box(*size, (8, 6, 22, 20))
    result = repaint(image, mask, model_id=family, mask_blur=1, output=output, **extra)
    made, blurred = pixels(picture(result)), pixels(masks.blur(mask, 1, "mask_image"))
    black, white = blurred == 0, blurred == 255
    assert black.sum() > 500
    assert white.sum() > 50
    assert made.shape == pixels(image).shape
    assert np.array_equal(made[black], pixels(image)[black])
    assert (made[white] != pixels(image)[white]).any(axis=1).mean() > 0.9


def test_the_paste_is_all_that_differs_from_stock(registry: Any, desk: Desk, repaint: Any) -> None:
    asked = {"scheduler": "ddim", "mask_blur": 2, "seed": 5}
    raw = unpasted(registry, desk, "inpainting", [noise(), box()], "pil", model_id="sd", **asked)
    made = picture(repaint(noise(), box(), **asked))
    blurred = masks.blur(box(), 2, "mask_image")
    assert made.tobytes() == Image.composite(raw, noise(), blurred).tobytes()
    assert difference(raw, made) > 0


def test_a_picture_with_its_recipe(repaint: Any) -> None:
    raws = file(noise()), file(box())
    result = repaint(*raws, strength=0.7, steps=4, num_images=2, seed=9, padding_mask_crop=2, invert_mask=True)
    ACTIONS["inference.inpainting"].result.model_validate(result.data)
    recipe = result.data["images"][1]["recipe"]
    assert recipes.read(files(result)[1]) == recipe
    assert (recipe["strength"], recipe["padding_mask_crop"], recipe["invert_mask"]) == (0.7, 2, True)
    digests = [hashlib.sha256(raw).hexdigest() for raw in raws]
    assert recipe["inputs"] == dict(zip(("image", "mask_image"), digests, strict=True))
    again = recipes.request_data(recipe, {"image": {"attachment": 0}, "mask_image": {"attachment": 1}})
    assert files(repaint(*raws, **again)) == [files(result)[1]]


def test_black_and_white_may_be_swapped(repaint: Any) -> None:
    swapped = repaint(noise(), ImageOps.invert(box()), invert_mask=True)
    assert picture(swapped).tobytes() == picture(repaint(noise(), box())).tobytes()


def test_all_white_repaints_everything(repaint: Any, desk: Desk) -> None:
    made = pixels(picture(repaint(noise(), Image.new("L", (32, 32), 255))))
    assert (made != pixels(noise())).any(axis=2).mean() > 0.95
    assert [data["step"] for data, _ in desk.named(EventName.PROGRESS)] == [1, 2, 3]


def test_only_a_share_of_the_steps_is_run(repaint: Any, desk: Desk) -> None:
    repaint(noise(), box(), steps=10, strength=0.5, preview={"every_steps": 2})
    progress = [data for data, _ in desk.named(EventName.PROGRESS)]
    assert [data["step"] for data in progress] == [1, 2, 3, 4, 5]
    previews = desk.named(EventName.PREVIEW)
    assert [data["step"] for data, _ in previews] == [2, 4]
    assert all(open_image(blob.data()).size == (32, 32) for _, [blob] in previews)


def test_a_size_that_was_asked_for_scales_image_and_mask(repaint: Any) -> None:
    image, mask = noise(64, 48), box(64, 48, (16, 12, 48, 36))
    made = picture(repaint(image, mask, width=32, height=24, mask_blur=0))
    scaled = image.resize((32, 24), Image.Resampling.LANCZOS)
    black = pixels(mask.resize((32, 24), Image.Resampling.LANCZOS)) == 0
    assert made.size == (32, 24)
    assert np.array_equal(pixels(made)[black], pixels(scaled)[black])


def test_that_size_is_the_one_after_outpainting(repaint: Any) -> None:
    made = picture(repaint(noise(48, 48), outpaint={"right": 16}, mask_blur=0, width=32, height=24))
    kept = noise(48, 48).resize((24, 24), Image.Resampling.LANCZOS)
    assert made.size == (32, 24)
    assert np.array_equal(pixels(made)[:, :20], pixels(kept)[:, :20])  # the filter reaches three pixels of the result


@pytest.mark.parametrize("family", ["sd", "sd_inpaint"])
def test_outpainting_keeps_the_image_and_paints_around_it(repaint: Any, family: str) -> None:
    image, border = noise(24, 24), {"left": 16, "top": 8}
    made = picture(repaint(image, model_id=family, outpaint=border, mask_blur=0))
    assert made.size == (40, 32)
    assert made.crop((16, 8, 40, 32)).tobytes() == image.tobytes()
    canvas, _ = masks.outpaint(image, None, left=16, top=8, right=0, bottom=0, field="outpaint")
    assert (pixels(made)[:, :16] != pixels(canvas)[:, :16]).any(axis=2).mean() > 0.9


def test_outpainting_and_a_mask_together(repaint: Any) -> None:
    image = noise(24, 24)
    made = pixels(picture(repaint(image, box(24, 24), outpaint={"right": 16}, mask_blur=0)))
    assert made.shape == (24, 40, 3)
    assert np.array_equal(made[:8, :24], pixels(image)[:8])
    assert (made[9:23, 9:23] != pixels(image)[9:23, 9:23]).any(axis=2).mean() > 0.9


@pytest.mark.parametrize("kind", ["text2img", "img2img"])
def test_a_model_made_for_inpainting_does_nothing_else(registry: Any, desk: Desk, kind: str) -> None:
    pictures = [noise()] if kind == "img2img" else []
    for family in ("sd_inpaint", "sdxl_inpaint"):
        with pytest.raises(InvalidRequest, match=f"inpainting alone: it cannot do {kind}"):
            run(registry, desk, kind, pictures, model_id=family)


@pytest.mark.parametrize(
    ("mask", "data", "words"),
    [
        (box(16, 32), {}, "mask_image: is 16 × 32 and the picture is 32 × 32"),
        (Image.new("L", (32, 32)), {}, "nothing is to be painted"),
        (Image.new("L", (32, 32), 255), {"invert_mask": True}, "nothing is to be painted"),
        (box(32, 32, (9, 9, 10, 10)), {}, "mask_blur of 4; lower it"),
        (box(32, 32, (9, 9, 10, 10)), {"mask_blur": 0}, "too small for the model"),
        (box(), {"strength": 0.1}, "strength: 0.1 of 3 steps is less than one"),
        (box(), {"scheduler": "DDIMInverseScheduler"}, "cannot begin with a picture"),
        (box(), {"mask_image": None}, "mask_image: is missing"),
        (box(), {"mask_image": {"attachment": 9}}, "mask_image: there is no attachment 9"),
        (box(), {"width": 12, "height": 12}, "multiple of 8"),
        (b"\x89PNG\r\n\x1a\nnothing more", {}, "mask_image: is damaged"),
    ],
)
def test_what_cannot_be_done_is_said(repaint: Any, mask: Any, data: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        repaint(noise(), mask, **data)


def test_a_small_mask_is_painted_in_its_region(repaint: Any) -> None:
    dot = box(32, 32, (9, 9, 12, 12))
    made = pixels(picture(repaint(noise(), dot, mask_blur=0, padding_mask_crop=2)))
    assert (made[9:12, 9:12] != pixels(noise())[9:12, 9:12]).any(axis=2).mean() > 0.7


def test_a_border_without_end_is_refused(repaint: Any) -> None:
    with pytest.raises(PayloadTooLarge, match="outpaint"):
        repaint(Image.new("RGB", (4096, 4000)), outpaint={"left": 2048, "right": 2048})
