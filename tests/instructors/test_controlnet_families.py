"""ControlNets that run on stock pipelines without lanes: of Stable Diffusion 3, and ControlNet-Unions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import AtelierError, InvalidRequest, ModelInvalid
from tests.instructors import tiny, tiny_controlnet
from tests.instructors.conftest import Desk
from tests.instructors.painting import box, difference, file, make, noise, open_image, paint, unpasted

SIZE = {"width": 32, "height": 32}
UNION = {"controlnet_id": "union", "image": file(noise()), "preprocessor": "canny"}
THREE = {"controlnet_id": "three", "image": file(noise())}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    root = tmp_path_factory.mktemp("families")
    tiny.build(root / "sdxl", "sdxl")
    tiny_controlnet.build(root / "controlnets" / "union", root / "sdxl", kind="ControlNetUnionModel")
    build_three(root)
    return Desk(root)


def build_three(root: Path) -> None:
    """A model of Stable Diffusion 3, and a ControlNet for it. Its last block takes none, so it needs two."""
    import torch
    from diffusers import SD3ControlNetModel, SD3Transformer2DModel

    folder = tiny.build(root / "sd3", "sd3") / "transformer"
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel.from_config({**SD3Transformer2DModel.load_config(folder), "num_layers": 2})
    transformer.save_pretrained(folder)
    net = SD3ControlNetModel.from_transformer(
        transformer, num_layers=1, num_extra_conditioning_channels=0, load_weights_from_transformer=False
    )
    for layer in (*net.controlnet_blocks, net.pos_embed_input.proj):
        torch.nn.init.normal_(layer.weight, std=0.3)
    net.save_pretrained(root / "controlnets" / "three")


def test_stable_diffusion_3_equals_stock(registry: Any, desk: Desk) -> None:
    import torch
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline

    root = desk.models.root
    assert root is not None
    net = SD3ControlNetModel.from_pretrained(root / "controlnets" / "three")
    pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(
        root / "sd3", controlnet=net, text_encoder_3=None, tokenizer_3=None
    )
    made = unpasted(registry, desk, "text2img", [], model_id="sd3", controlnets=[THREE], **SIZE)
    generator = torch.Generator("cpu").manual_seed(1)
    torch.manual_seed(1)  # of the noise with which it encodes the control picture
    theirs = pipeline(
        "a red circle", num_inference_steps=3, guidance_scale=7.5, control_image=open_image(THREE["image"]),
        generator=generator, output_type="np", **SIZE,
    ).images[0]  # fmt: skip
    assert np.array_equal(made, theirs)
    assert not np.array_equal(made, unpasted(registry, desk, "text2img", [], model_id="sd3", **SIZE))


def test_several_at_once(registry: Any, desk: Desk) -> None:
    one = paint(registry, desk, "text2img", [], model_id="sd3", controlnets=[THREE], **SIZE)
    two = paint(registry, desk, "text2img", [], model_id="sd3", controlnets=[THREE, THREE], **SIZE)
    assert difference(one, two) > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_union_equals_stock(registry: Any, desk: Desk, count: int) -> None:
    import torch
    from diffusers import ControlNetUnionModel, StableDiffusionXLControlNetUnionPipeline

    root = desk.models.root
    assert root is not None
    net = ControlNetUnionModel.from_pretrained(root / "controlnets" / "union")
    pipeline = StableDiffusionXLControlNetUnionPipeline.from_pretrained(root / "sdxl", controlnet=net)
    uses = [UNION, {**UNION, "preprocessor": "tile", "conditioning_scale": 0.5}][:count]
    task = make(registry, desk, "text2img", [], model_id="sdxl", controlnets=uses, **SIZE)
    generator = torch.Generator("cpu").manual_seed(1)
    theirs = pipeline(
        "a red circle", num_inference_steps=3, guidance_scale=7.5, control_mode=[3, 6][:count],
        control_image=[control.image for control in task._controls], generator=generator, output_type="np",
        controlnet_conditioning_scale=[1.0, 0.5][:count], **SIZE,
    ).images[0]  # fmt: skip
    made = unpasted(registry, desk, "text2img", [], model_id="sdxl", controlnets=uses, **SIZE)
    assert np.array_equal(made, theirs)
    assert not np.array_equal(made, unpasted(registry, desk, "text2img", [], model_id="sdxl", **SIZE))


@pytest.mark.parametrize(("kind", "pictures"), [("img2img", [noise()]), ("inpainting", [noise(), box()])])
def test_a_union_where_a_picture_is_changed(registry: Any, desk: Desk, kind: str, pictures: list[Any]) -> None:
    changed = paint(registry, desk, kind, pictures, model_id="sdxl", controlnets=[UNION])
    assert difference(changed, paint(registry, desk, kind, pictures, model_id="sdxl")) > 0


@pytest.mark.parametrize(
    ("kind", "model_id", "use", "error", "words"),
    [
        ("img2img", "sd3", THREE, InvalidRequest, "cannot do img2img"),
        ("text2img", "sdxl", THREE, ModelInvalid, "for models of the family sd3"),
        ("text2img", "sd3", UNION, ModelInvalid, "for models of the family sdxl"),
        ("text2img", "sd3", {**THREE, "guess_mode": True}, InvalidRequest, "take no guess_mode"),
        ("text2img", "sdxl", {**UNION, "preprocessor": "none"}, InvalidRequest, "must know what kind"),
    ],
)
def test_what_a_family_cannot_do_is_told(
    registry: Any, desk: Desk, kind: str, model_id: str, use: dict[str, Any], error: type[AtelierError], words: str
) -> None:
    with pytest.raises(error, match=words):
        make(registry, desk, kind, [noise()] if kind == "img2img" else [], model_id=model_id, controlnets=[use])
