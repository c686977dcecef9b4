"""Pictures that follow ControlNets, on tiny random models: as stock alone, and each its own in company."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from instructors.task import Padding, step_units
from protocol import recipe as recipes
from protocol.errors import AtelierError, InvalidRequest, ModelInvalid, ModelNotFound
from protocol.schemas import ACTIONS
from tests.instructors import tiny, tiny_controlnet, tiny_lora
from tests.instructors.conftest import Desk, files
from tests.instructors.painting import box, difference, file, finish, make, noise, open_image, paint, run, unpasted

FAMILIES = ("sd", "sdxl")
SCHEDULERS = ["ddim", "ddpm", "deis", "dpm++_2m", "dpm++_2m_sde", "euler", "euler_a", "heun", "lcm", "pndm", "unipc"]
SIZE = {"width": 32, "height": 32}
KINDS: dict[str, dict[str, Any]] = {  # action -> what the stock pipeline takes beside the ControlNets
    "text2img": SIZE,
    "img2img": {"image": noise(seed=5), "strength": 0.8},
    "inpainting": {"image": noise(seed=5), "mask_image": box(), "strength": 1.0, **SIZE},
}
USES: dict[str, list[dict[str, Any]]] = {
    "one": [{"controlnet_id": "1", "conditioning_scale": 0.8}],
    "window": [{"controlnet_id": "2", "control_guidance_start": 0.2, "control_guidance_end": 0.7}],
    "guess": [{"controlnet_id": "1", "guess_mode": True}],
    "two": [
        {"controlnet_id": "1", "control_guidance_start": 0.3},
        {"controlnet_id": "2", "conditioning_scale": 0.4, "control_guidance_end": 0.6},
    ],
    "two that guess": [{"controlnet_id": name, "guess_mode": True} for name in ("1", "2")],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a model a family, and two ControlNets for each: "sd-1", "sdxl-2" …"""
    from diffusers import DiffusionPipeline

    root = tmp_path_factory.mktemp("controlnets")
    for family in (*FAMILIES, "sd_inpaint"):
        tiny.build(root / family, family)
    for family in FAMILIES:
        for seed in (1, 2):
            tiny_controlnet.build(root / "controlnets" / f"{family}-{seed}", root / family, seed)
        layers = tiny_lora.layers(DiffusionPipeline.from_pretrained(root / family), seed=3)
        tiny_lora.write(root / "loras" / f"{family}.safetensors", tiny_lora.kohya(layers))
    return root


@pytest.fixture(scope="module")
def desk(root: Path) -> Desk:
    return Desk(root)


def uses(name: str, family: str) -> list[dict[str, Any]]:
    """The ControlNets of a request, each with a control picture of its own."""
    return [
        {**use, "controlnet_id": f"{family}-{use['controlnet_id']}", "image": file(noise(seed=7 + index))}
        for index, use in enumerate(USES[name])
    ]


@cache
def stock_pipeline(root: Path, family: str, kind: str, names: tuple[str, ...], own: str) -> Any:
    import diffusers

    tail = {"text2img": "", "img2img": "Img2Img", "inpainting": "Inpaint"}[kind]
    head = "StableDiffusionXL" if family == "sdxl" else "StableDiffusion"
    nets = [diffusers.ControlNetModel.from_pretrained(root / "controlnets" / name) for name in names]
    pipeline = getattr(diffusers, f"{head}ControlNet{tail}Pipeline").from_pretrained(
        root / own, controlnet=nets if len(nets) > 1 else nets[0]
    )
    pipeline.set_progress_bar_config(disable=True)
    if kind == "inpainting":  # the overlay of padding_mask_crop is ours, and is left out of the comparison
        pipeline.image_processor.apply_overlay = lambda _mask, _image, generated, _region: generated
    return pipeline


def stock(root: Path, family: str, kind: str, name: str, scheduler: str, own: str = "", **arguments: Any) -> Any:
    """What the library's own pipeline makes; nothing of ours is between. `own`: the model, if not the family's."""
    import diffusers
    import torch

    from instructors.pipelines.schedulers import SHORT_NAMES

    asked = uses(name, family)
    pipeline = stock_pipeline(root, family, kind, tuple(use["controlnet_id"] for use in asked), own or family)
    class_name, settings = SHORT_NAMES[scheduler]
    own_config = diffusers.DiffusionPipeline.load_config(root / family)["scheduler"]
    config = getattr(diffusers, own_config[1]).from_pretrained(root / family, subfolder="scheduler").config
    pipeline.scheduler = getattr(diffusers, class_name).from_config(config, **settings)
    controls = {
        "image" if kind == "text2img" else "control_image": [open_image(use["image"]) for use in asked],
        "controlnet_conditioning_scale": [use.get("conditioning_scale", 1.0) for use in asked],
        "control_guidance_start": [use.get("control_guidance_start", 0.0) for use in asked],
        "control_guidance_end": [use.get("control_guidance_end", 1.0) for use in asked],
    }
    if len(asked) == 1:
        controls = {key: values[0] for key, values in controls.items()}
    arguments = KINDS[kind] | {"num_inference_steps": 5, "guidance_scale": 7.5, "output_type": "np"} | arguments
    return pipeline(
        "a red circle",
        guess_mode=asked[0].get("guess_mode", False),
        generator=torch.Generator("cpu").manual_seed(1),
        **controls,
        **arguments,
    ).images[0]


def ours(registry: Any, desk: Desk, family: str, kind: str, name: str, scheduler: str, **data: Any) -> Any:
    """The same through a task."""
    pictures = [KINDS[kind][field] for field in ("image", "mask_image") if field in KINDS[kind]]
    rest = {"strength": KINDS[kind]["strength"]} if pictures else SIZE
    if kind == "inpainting":
        rest["mask_blur"] = 0
    asked = {"model_id": family, "controlnets": uses(name, family), "scheduler": scheduler, "steps": 5}
    return unpasted(registry, desk, kind, pictures, **{**asked, **rest, **data})


@pytest.mark.parametrize("name", list(USES))
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_alone_it_equals_the_stock_pipeline(
    registry: Any, desk: Desk, root: Path, family: str, kind: str, name: str
) -> None:
    scheduler = dict(zip(USES, ("ddim", "euler_a", "dpm++_2m", "heun", "unipc"), strict=True))[name]
    made = ours(registry, desk, family, kind, name, scheduler)
    assert made.shape == (32, 32, 3)
    assert np.array_equal(made, stock(root, family, kind, name, scheduler))
    assert not np.array_equal(made, ours(registry, desk, family, kind, name, scheduler, controlnets=[]))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_with_any_scheduler(registry: Any, desk: Desk, root: Path, family: str, scheduler: str) -> None:
    made = ours(registry, desk, family, "text2img", "two", scheduler)
    assert np.array_equal(made, stock(root, family, "text2img", "two", scheduler))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_guidance_too(registry: Any, desk: Desk, root: Path, family: str) -> None:
    for name in ("two", "guess"):
        made = ours(registry, desk, family, "text2img", name, "ddim", guidance_scale=1.0)
        assert np.array_equal(made, stock(root, family, "text2img", name, "ddim", guidance_scale=1.0))


@pytest.mark.parametrize("name", ["one", "two", "two that guess"])
@pytest.mark.parametrize("kind", ["text2img", "img2img"])
@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_that_ends_takes_the_control_pictures_along(
    registry: Any, desk: Desk, family: str, kind: str, name: str
) -> None:
    pictures = [KINDS[kind][field] for field in ("image", "mask_image") if field in KINDS[kind]]
    asked = {"model_id": family, "controlnets": uses(name, family), "steps": 5, **SIZE}
    whole = paint(registry, desk, kind, pictures, **asked)
    assert difference(paint(registry, desk, kind, pictures, **asked, guidance_end=0.99), whole) == 0
    assert difference(paint(registry, desk, kind, pictures, **asked, guidance_end=0.4), whole) > 0


def test_a_model_made_for_inpainting(registry: Any, desk: Desk, root: Path) -> None:
    made = ours(registry, desk, "sd", "inpainting", "two", "ddim", model_id="sd_inpaint")
    assert np.array_equal(made, stock(root, "sd", "inpainting", "two", "ddim", own="sd_inpaint"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_region_is_seen_of_the_control_picture_too(registry: Any, desk: Desk, root: Path, family: str) -> None:
    crop = {"padding_mask_crop": 2, **SIZE}
    made = unpasted(
        registry, desk, "inpainting", [noise(seed=5), box()], "pil",
        model_id=family, controlnets=uses("one", family), scheduler="ddim", steps=5, mask_blur=0, **crop,
    )  # fmt: skip
    theirs = stock(root, family, "inpainting", "one", "ddim", output_type="pil", **crop)
    assert made.tobytes() == theirs.tobytes()


REQUESTS: list[tuple[str, str | None, dict[str, Any]]] = [  # action, its ControlNets, what else differs
    ("text2img", "one", {"seed": 1, "steps": 4, "scheduler": "euler_a"}),
    ("text2img", None, {"seed": 2, "steps": 3}),
    ("img2img", "two", {"seed": 3, "steps": 6, "strength": 0.7, "negative_prompt": "blue"}),
    ("inpainting", "window", {"seed": 4, "steps": 5, "scheduler": "dpm++_2m", "mask_blur": 0}),
    ("text2img", "two that guess", {"seed": 5, "steps": 3, "guidance_scale": 4.0}),
    ("text2img", "one", {"seed": 6, "steps": 5, "lora": 0.8}),
    ("img2img", None, {"seed": 7, "steps": 5, "lora": -0.5}),
    ("text2img", "two", {"seed": 8, "steps": 4, "guidance_scale": 1.0}),
    ("text2img", "two that guess", {"seed": 9, "steps": 5}),
]


def request(registry: Any, desk: Desk, family: str, index: int) -> Any:
    kind, name, data = REQUESTS[index]
    pictures = [KINDS[kind][field] for field in ("image", "mask_image") if field in KINDS[kind]]
    asked = {**SIZE, **data, "model_id": family, "controlnets": uses(name, family) if name else []}
    if scale := asked.pop("lora", None):
        asked["loras"] = [{"lora_id": family, "scale": scale}]
    return make(registry, desk, kind, pictures, **asked)


def at_unet(unit: Any) -> bool:
    return unit.call is not None and "sample" in unit.call.shape and "controlnet_cond" not in unit.call.shape


def together(tasks: list[Any]) -> tuple[list[Image.Image], int]:
    """Each task's picture, the UNet's lanes last, so that they fill; and how often the UNet ran rows with ControlNets
    and without."""
    units = {task.units[0]: task for task in tasks}
    mixed = 0
    while waiting := [unit for unit in units if not unit.done]:
        first = min(waiting, key=at_unet)
        chosen = [unit for unit in waiting if unit.lane is first.lane]
        if at_unet(first):
            mixed += len({"down_block_additional_residuals" in unit.call.shape for unit in chosen}) == 2
        step_units(chosen)
    for unit in units:
        if unit.error is not None:
            raise unit.error
    return [open_image(files(task.result())[0]) for task in tasks], mixed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("padding", "limit"), [(Padding(), 1), (Padding(fixed_rows=4), 0)])
def test_company_changes_nothing_that_shows(
    registry: Any, root: Path, family: str, padding: Padding, limit: int
) -> None:
    desk = Desk(root)
    desk.padding = padding
    numbers = range(len(REQUESTS))
    apart = [together([request(registry, desk, family, index)])[0][0] for index in numbers]
    for order in ([*numbers], [*reversed(numbers)], [4, 1, 0, 6, 8, 3, 7, 2, 5]):
        made, mixed = together([request(registry, desk, family, index) for index in order])
        assert mixed >= 3
        for picture, index in zip(made, order, strict=True):
            assert difference(picture, apart[index]) <= limit, index


def test_one_controlnet_shares_its_forward_with_itself_beside_others(registry: Any, root: Path) -> None:
    """The stock pipelines call a single ControlNet, and one of several, with arguments of other forms."""
    desk = Desk(root)
    made = [
        make(registry, desk, "text2img", [], model_id="sd", controlnets=uses(name, "sd"), **SIZE)
        for name in ("one", "two", "guess")
    ]
    made.append(make(registry, desk, "img2img", [noise()], model_id="sd", controlnets=uses("one", "sd")))
    together(made)
    first = made[0]._controls[0].net.module
    assert first is made[1]._controls[0].net.module
    assert len(first.forward._lanes) == 2  # with guess mode and without
    assert len(made[0]._loaded.pipeline("text2img").unet.forward._lanes) == 1


def test_saved_between_pictures_and_restored(registry: Any, desk: Desk) -> None:
    asked = {"model_id": "sd", "controlnets": uses("two", "sd"), "num_images": 2, "seed": 4}
    whole = run(registry, desk, "text2img", [], **asked)
    first = make(registry, desk, "text2img", [], **asked)
    while not first.units[0].done:
        step_units([first.units[0]])
    second = make(registry, desk, "text2img", [], **asked)
    second.restore(first.save())
    result = finish(second)
    assert result.data == whole.data
    assert files(result)[0] == files(whole)[0]
    assert files(result)[2:] == files(whole)[2:]


def test_what_the_controlnets_saw_comes_back_once(registry: Any, desk: Desk) -> None:
    asked = [{**use, "preprocessor": name} for use, name in zip(uses("two", "sd"), ("canny", "none"), strict=True)]
    result = run(registry, desk, "text2img", [], model_id="sd", controlnets=asked, num_images=2)
    ACTIONS["inference.controlnet"].result.model_validate(result.data)
    told = result.data["controlnet_images"]
    assert [(image["attachment"], image["preprocessor"]) for image in told] == [(2, "canny"), (3, "none")]
    raws = files(result)
    assert len(raws) == 4
    side = tiny.SIDE  # the control pictures are brought to the size of the result
    assert [open_image(raw).size for raw in raws] == [(side, side)] * 4
    edges = np.asarray(open_image(raws[2]))
    assert set(np.unique(edges)) == {0, 255}
    assert open_image(raws[3]).tobytes() == noise(seed=8).resize((side, side), Image.Resampling.LANCZOS).tobytes()
    again = paint(registry, desk, "text2img", [], model_id="sd", controlnets=[
        {**use, "preprocessor": "none", "image": raws[2 + index]} for index, use in enumerate(asked)
    ])  # fmt: skip
    assert difference(again, open_image(raws[0])) == 0


def test_inference_controlnet_is_text2img_with_one(registry: Any, desk: Desk) -> None:
    asked = {"model_id": "sd", "controlnets": uses("one", "sd")}
    same = run(registry, desk, "text2img", [], **asked)
    made = run(registry, desk, "controlnet", [], **asked)
    assert difference(open_image(files(made)[0]), open_image(files(same)[0])) == 0
    with pytest.raises(InvalidRequest, match="controlnets"):
        run(registry, desk, "controlnet", [], model_id="sd", controlnets=[])


def test_the_recipe_names_the_controlnets_and_repeats(registry: Any, desk: Desk) -> None:
    asked = uses("two", "sd")
    result = run(registry, desk, "text2img", [], model_id="sd", controlnets=asked, seed=4)
    recipe = recipes.read(files(result)[0])
    assert recipe is not None
    assert [len(digest) for digest in recipe["controlnet_hashes"]] == [64, 64]
    assert recipe["controlnet_hashes"][0] != recipe["controlnet_hashes"][1]
    assert [use["controlnet_id"] for use in recipe["controlnets"]] == ["sd-1", "sd-2"]
    pictures = {f"controlnets.{index}.image": use["image"] for index, use in enumerate(asked)}
    data = recipes.request_data(recipe, pictures)
    again = finish(registry.make_task("inference.text2img", data, desk))
    assert files(again)[0] == files(result)[0]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"controlnet_id": "sd-3"}, ModelNotFound, "no ControlNet"),
        ({"controlnet_id": "../sd"}, ModelNotFound, "no ControlNet"),
        ({"controlnet_id": "sdxl-1"}, ModelInvalid, "another base model: its cross_attention_dim is 64"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, InvalidRequest, "must be less than"),
        ({"preprocessor": "cany"}, InvalidRequest, "preprocessor"),
        ({"preprocessor": "depth"}, InvalidRequest, "needs a model file"),
        ({"image": {"attachment": 3}}, InvalidRequest, "controlnets.0.image: there is no attachment 3"),
        ({"image": b"GIF89a"}, InvalidRequest, "controlnets.0.image: is not a PNG"),
        ({"conditioning_scale": float("nan")}, InvalidRequest, "conditioning_scale"),
    ],
)
def test_what_cannot_be_done(
    registry: Any, desk: Desk, changed: dict[str, Any], error: type[AtelierError], words: str
) -> None:
    [use] = uses("one", "sd")
    with pytest.raises(error, match=words):
        make(registry, desk, "text2img", [], model_id="sd", controlnets=[{**use, **changed}])


def test_what_the_stock_pipelines_cannot_do_is_told(registry: Any, desk: Desk) -> None:
    one, two = uses("two", "sd")
    with pytest.raises(InvalidRequest, match="guess_mode must be the same"):
        make(registry, desk, "text2img", [], model_id="sd", controlnets=[one, {**two, "guess_mode": True}])
    with pytest.raises(InvalidRequest, match="guidance_end: must be 1"):
        make(registry, desk, "inpainting", [noise(), box()], model_id="sd", controlnets=[one], guidance_end=0.5)
    with pytest.raises(InvalidRequest, match="take no guidance_rescale with ControlNets"):
        make(registry, desk, "text2img", [], model_id="sd", controlnets=[one], guidance_rescale=0.5)
