"""Recipes as requests: what is kept of a request, and how it comes back; input pictures by their SHA-256."""

import hashlib
from typing import Any

import pytest

from protocol import recipe as recipes
from protocol.errors import InvalidRequest
from protocol.schemas import validate_data
from protocol.schemas.inference import PictureData
from protocol.schemas.values import ArtifactRef, AttachmentRef

PICTURES = [b"house", b"mask", b"edges"]
PATHS = ["image", "mask_image", "controlnets.0.image"]


def digest(ref: AttachmentRef | ArtifactRef | bytes) -> str:
    assert not isinstance(ref, ArtifactRef)
    return hashlib.sha256(ref if isinstance(ref, bytes) else PICTURES[ref.attachment]).hexdigest()


def recipe_of(action: str, data: dict[str, Any], **size: int) -> dict[str, Any]:
    """As a worker makes it: the request's fields, the picture's own on top."""
    model = validate_data(action, {"prompt": "x", **data})
    assert isinstance(model, PictureData)
    kept = recipes.request_fields(model, digest)
    return {"version": 1, "action": action, **kept, "width": 64, "height": 64, "seed": 7, **size}


CONTROLNET = {"controlnet_id": "edges", "preprocessor": "canny", "conditioning_scale": 0.5}
MANY: dict[str, Any] = {
    "image": {"attachment": 0},
    "mask_image": {"attachment": 1},
    "strength": 0.5,
    "mask_blur": 0,
    "invert_mask": True,
    "padding_mask_crop": 32,
    "outpaint": {"left": 8},
    "steps": 2,
    "sigmas": [3.0, 1.5],
    "eta": 0.5,
    "guidance_rescale": 0.7,
    "guidance_end": 0.8,
    "vae_id": "fine",
    "loras": [{"lora_id": "hollow", "scale": 0.8}],
    "controlnets": [{**CONTROLNET, "image": {"attachment": 2}}],
}


def test_a_recipe_repeats_every_field_of_its_request() -> None:
    recipe = recipe_of("inference.inpainting", MANY)
    asked = {path: {"attachment": index} for index, path in enumerate(PATHS)}
    again = validate_data("inference.inpainting", recipes.request_data(recipe, asked))
    first = validate_data("inference.inpainting", {"prompt": "x", **MANY, "seed": 7})
    assert again.model_dump() == first.model_dump()
    assert set(PictureData.model_fields) - set(recipes.REPEATED) == {"num_images", "preview"}


def test_of_an_input_picture_the_hash_is_kept() -> None:
    recipe = recipe_of("inference.inpainting", MANY)
    hashes = {path: hashlib.sha256(raw).hexdigest() for path, raw in zip(PATHS, PICTURES, strict=True)}
    assert recipes.inputs(recipe) == hashes
    assert "image" not in recipe["controlnets"][0]
    inline = recipe_of("inference.img2img", {"image": b"house"})
    assert recipes.inputs(inline) == {"image": hashes["image"]}


def test_a_recipe_without_one_of_its_pictures_is_told() -> None:
    recipe = recipe_of("inference.inpainting", MANY)
    with pytest.raises(InvalidRequest, match="mask_image"):
        recipes.request_data(recipe, {"image": b"x", "controlnets.0.image": b"x"})


def test_the_images_own_size_is_taken_from_the_image_again() -> None:
    """It may be one that cannot be asked for: 65 is no multiple of 8."""
    recipe = recipe_of("inference.img2img", {"image": {"attachment": 0}}, width=65, height=33)
    data = recipes.request_data(recipe, {"image": {"attachment": 0}})
    assert not {"width", "height"} & data.keys()
    scaled = recipe_of("inference.img2img", {"image": {"attachment": 0}, "width": 64, "height": 64})
    assert recipes.request_data(scaled, {"image": b"x"})["width"] == 64


def test_a_plain_recipe_stays_small_and_an_old_one_can_be_read() -> None:
    recipe = recipe_of("inference.text2img", {})
    assert not {"inputs", "own_size", "loras", "controlnets", "sigmas", "vae_id"} & recipe.keys()
    old = {
        "version": 1,
        "prompt": "x",
        "steps": 20,
        "seed": 7,
        "width": 64,
        "height": 64,
        "device": "cpu",
        "threads": 2,
    }
    assert recipes.request_data(old) == {"prompt": "x", "steps": 20, "seed": 7, "width": 64, "height": 64}
    assert recipes.numerics(old) == {"device": "cpu", "threads": 2}
    assert recipes.numerics({**old, "numerics": {"device": "cpu", "padding": "fast"}}) == {
        "device": "cpu",
        "padding": "fast",
    }


@pytest.mark.parametrize(
    "damage",
    [
        {"inputs": {"prompt": "00"}},
        {"inputs": {"controlnets.1.image": "00"}},
        {"inputs": {"controlnets.-1.image": "00"}},
        {"inputs": {"image": 7}},
        {"inputs": [1]},
        {"inputs": {"controlnets.0.image": "00"}, "controlnets": [7]},
        {"inputs": {"controlnets.0.image": "00"}, "controlnets": "edges"},
        {"inputs": {}, "controlnets": [7]},
        {"inputs": {}, "controlnets": {"0": {}}},
    ],
    ids=str,
)
def test_a_recipe_of_somebody_elses_making_cannot_reach_other_fields(damage: dict[str, Any]) -> None:
    recipe = {**recipe_of("inference.controlnet", {"controlnets": MANY["controlnets"]}), **damage}
    with pytest.raises(InvalidRequest, match="cannot be read"):
        recipes.request_data(recipe, dict.fromkeys(damage["inputs"], b"x"))


def test_the_recipe_given_is_not_changed() -> None:
    recipe = recipe_of("inference.controlnet", {"controlnets": MANY["controlnets"]})
    recipes.request_data(recipe, {"controlnets.0.image": b"x"})
    assert "image" not in recipe["controlnets"][0]
