"""`inference.text2img` on a tiny random model: the real pipeline, in this process."""

import io
from typing import Any

import pytest
from PIL import Image, ImageChops

from instructors.task import step_units
from protocol import recipe as recipes
from protocol.enums import EventName
from protocol.errors import Cancelled, InvalidRequest, ModelNotFound, PayloadTooLarge
from protocol.schemas import ACTIONS
from tests.instructors.conftest import files
from tests.instructors.tiny import SIDE


def open_image(raw: bytes) -> Image.Image:
    return Image.open(io.BytesIO(raw)).convert("RGB")


def test_a_picture_with_all_its_facts(generate: Any) -> None:
    result = generate(seed=7)
    [image] = result.data["images"]
    assert open_image(files(result)[0]).size == (image["width"], image["height"]) == (SIDE, SIDE)
    assert image["seed"] == 7
    assert image["attachment"] == 0
    assert image["media_type"] == result.blobs[0].media_type == "image/png"
    recipe = image["recipe"]
    numerics = recipe["numerics"]
    assert (recipe["scheduler"], recipe["model_id"], numerics["dtype"]) == ("DDIMScheduler", "tiny", "float32")
    assert len(recipe["model_hash"]) == 64
    assert set(numerics["libraries"]) == {"torch", "diffusers", "transformers"}
    assert numerics["padding"] == "fast"
    ACTIONS["inference.text2img"].result.model_validate(result.data)


def test_the_same_request_gives_the_same_bytes(generate: Any) -> None:
    assert files(generate(seed=3)) == files(generate(seed=3))
    assert files(generate(seed=3)) != files(generate(seed=4))


@pytest.mark.parametrize("scheduler", ["euler_a", "ddpm", "lcm", "dpm++_2m_sde"])
def test_schedulers_that_draw_noise_repeat_as_well(generate: Any, scheduler: str) -> None:
    assert files(generate(seed=3, scheduler=scheduler)) == files(generate(seed=3, scheduler=scheduler))


def test_several_pictures_equal_single_ones(generate: Any) -> None:
    together = generate(seed=10, num_images=3)
    assert files(together) == [files(generate(seed=seed))[0] for seed in (10, 11, 12)]


def test_seeds_go_round_at_64_bits(generate: Any) -> None:
    result = generate(seed=str(2**64 - 1), num_images=2)
    assert [image["seed"] for image in result.data["images"]] == [str(2**64 - 1), 0]
    assert files(result)[1] == files(generate(seed=0))[0]


def test_a_random_seed_is_told_and_repeats(generate: Any) -> None:
    result = generate()
    seed = result.data["images"][0]["seed"]
    assert files(generate(seed=seed)) == files(result)
    assert generate(seed=-1).data["images"][0]["seed"] != seed


def test_progress_and_items(generate: Any, desk: Any) -> None:
    result = generate(seed=1, num_images=2)
    progress = [data for data, _ in desk.named(EventName.PROGRESS)]
    assert [(p["image"], p["step"]) for p in progress] == [(i, s) for i in (0, 1) for s in (1, 2, 3)]
    assert all(p["steps"] == 3 and p["images"] == 2 for p in progress)
    assert progress[-1]["eta_ms"] == 0
    assert progress[0]["eta_ms"] > 0
    items = desk.named(EventName.ITEM)
    assert [data["index"] for data, _ in items] == [0, 1]
    assert [blobs[0].data() for _, blobs in items] == files(result)


def test_previews_are_small_pictures(generate: Any, desk: Any) -> None:
    generate(seed=1, steps=6, preview={"every_steps": 2})
    previews = desk.named(EventName.PREVIEW)
    assert [data["step"] for data, _ in previews] == [2, 4]  # the last step's is the picture itself
    for _, [blob] in previews:
        assert blob.media_type == "image/jpeg"
        assert open_image(blob.data()).size == (SIDE, SIDE)


def test_the_preview_of_a_large_picture_is_shrunk(generate: Any, desk: Any) -> None:
    generate(seed=1, steps=2, width=256, height=128, preview={"every_steps": 1})
    [(_, [blob])] = desk.named(EventName.PREVIEW)
    assert open_image(blob.data()).size == (64, 32)


def test_cancel_takes_effect_within_a_step(generate: Any, desk: Any) -> None:
    desk.cancel_at = 2
    with pytest.raises(Cancelled):
        generate(seed=1, steps=50)
    assert desk.quanta == 2
    assert len(desk.named(EventName.PROGRESS)) == 1
    desk.reset()
    assert len(files(generate(seed=1))) == 1


def test_saved_between_pictures_and_restored(registry: Any, desk: Any, generate: Any) -> None:
    data = {"prompt": "a red circle", "steps": 3, "num_images": 3}
    first = registry.make_task("inference.text2img", data, desk)
    while not first.units[1].done:
        step_units([first.units[1]])
    desk.reset()
    second = registry.make_task("inference.text2img", data, desk)
    second.restore(first.save())
    while (result := second.step()) is None:
        pass
    assert [data["index"] for data, _ in desk.named(EventName.ITEM)] == [0, 2]  # the other was made before
    seed = result.data["images"][0]["seed"]
    assert files(result)[1] == files(generate(seed=seed + 1))[0]
    for made, alone in zip(files(result), files(generate(seed=seed, num_images=3)), strict=True):
        assert difference(open_image(made), open_image(alone)) <= 1


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest of any channel of any pixel."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


@pytest.mark.parametrize("output", ["png", "jpeg", "webp"])
def test_the_recipe_in_the_file_makes_the_picture_again(generate: Any, output: str) -> None:
    asked = {"prompt": 'a "bröwn" square ☃', "negative_prompt": "blue", "seed": str(2**60), "guidance_scale": 3.5}
    result = generate(**asked, scheduler="Euler Karras", width=24, height=16, output={"format": output, "quality": 80})
    [raw] = files(result)
    recipe = recipes.read(raw)
    assert recipe == result.data["images"][0]["recipe"]
    assert recipe["scheduler"] == "euler_karras"
    assert files(generate(**recipes.request_data(recipe))) == [raw]


def test_webp_at_full_quality_is_lossless(generate: Any) -> None:
    exact = open_image(files(generate(seed=5))[0]).tobytes()
    assert open_image(files(generate(seed=5, output={"format": "webp", "quality": 100}))[0]).tobytes() == exact
    assert open_image(files(generate(seed=5, output={"format": "jpeg", "quality": 30}))[0]).tobytes() != exact


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({"scheduler": "eulerr"}, InvalidRequest, "Did you mean euler?"),
        ({"scheduler": "\0../../x"}, InvalidRequest, "no such scheduler"),
        ({"scheduler": "flow_euler"}, InvalidRequest, "flow matching"),
        ({"scheduler": "vqdiffusionscheduler"}, InvalidRequest, "does not suit"),
        ({"scheduler": "lcm", "steps": 51}, InvalidRequest, "cannot do 51 steps"),
        ({"model_id": "tinny"}, ModelNotFound, "no model"),
        ({"width": 8192, "height": 8192}, PayloadTooLarge, "pixels"),
        ({"width": 4096, "height": 4096, "num_images": 5}, PayloadTooLarge, "pixels"),
        ({"prompt": "😀" * 10_000, "output": {"format": "jpeg"}}, PayloadTooLarge, "too long"),
        ({"prompt": "☃" * 10_000, "num_images": 16}, PayloadTooLarge, "too long"),
        ({"steps": 10_000}, InvalidRequest, "steps"),
        ({"guidance_scale": float("nan")}, InvalidRequest, "guidance_scale"),
        ({"width": 7}, InvalidRequest, "width"),
        ({"promt": "x"}, InvalidRequest, "promt"),
    ],
)
def test_what_cannot_be_done_is_said(generate: Any, data: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words.replace("?", r"\?")):
        generate(**data)


def test_an_enormous_guidance_is_told_or_drawn(generate: Any) -> None:
    assert len(files(generate(seed=1, guidance_scale=100.0, scheduler="dpm++_2m"))) == 1


def test_the_smallest_picture(generate: Any) -> None:
    assert open_image(files(generate(seed=1, width=8, height=8))[0]).size == (8, 8)


def test_the_shared_scheduler_stays_as_it_was(generate: Any, desk: Any) -> None:
    before = files(generate(seed=2))
    generate(seed=2, scheduler="euler_a", steps=7)
    assert files(generate(seed=2)) == before
