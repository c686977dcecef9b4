"""From options and the recipe in a picture to the request they mean."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from orchestrator.client import Blob

FIELDS = (
    "prompt", "model_id", "negative_prompt", "seed", "steps", "num_images", "image", "strength", "mask_image",
    "mask_blur", "invert_mask", "padding_mask_crop", "outpaint", "scheduler", "sigmas", "eta", "guidance_scale",
    "guidance_rescale", "guidance_end", "vae_id",
)  # fmt: skip
OF_A_MASK = ("mask_blur", "invert_mask", "padding_mask_crop")
OF_AN_IMAGE = ("mask_image", "outpaint", "strength", *OF_A_MASK)
OPTION = {"image": "--image", "mask_image": "--mask"}


@dataclass
class PictureRequest:
    """`data` names its pictures as attachments; `original` is the recipe that it repeats, if any."""

    action: str
    data: dict[str, Any]
    attachments: "list[Blob]"
    original: dict[str, Any] | None


def request_of(prompt: str | None, options: dict[str, Any]) -> PictureRequest:
    """The request: the recipe's fields, then what was said; nothing else, so that the server's defaults hold.

    Raises click's UsageError.
    """
    from orchestrator.client import attach_pictures

    original = _recipe_of(options["source"]) if options["source"] else None
    data = _repeated(original, options) if original else {}
    data |= {
        name: value for name, value in {**options, "prompt": prompt}.items() if name in FIELDS and value is not None
    }
    if options["size"]:
        data["width"], data["height"] = options["size"]
    if isinstance(options["sigmas"], list) and options["steps"] is None:
        data["steps"] = len(options["sigmas"])
    if options["loras"]:
        data["loras"] = list(options["loras"])
    if options["controlnets"]:
        data["controlnets"] = _controlnets(data.get("controlnets", []), options["controlnets"])
    _check(data)
    action = "img2img" if "image" in data else "text2img"
    action = "inpainting" if "mask_image" in data or "outpaint" in data else action
    data, attachments = attach_pictures(data)
    return PictureRequest(f"inference.{action}", data, attachments, original)


def told_differences(request: PictureRequest, made: dict[str, Any]) -> list[str]:
    """Where the picture made, by its recipe, may or will differ from the one that it repeats."""
    from protocol.recipe import WEIGHTS, inputs, numerics

    original = request.original or {}
    before = {name: original[name] for name in WEIGHTS if name in original} | numerics(original)
    now = made | numerics(made)
    lines = [
        f"{name} was {_plain(value)}, is {_plain(now.get(name))}: the picture may differ"
        for name, value in before.items()
        if value != now.get(name)
    ]
    for path, digest in inputs(original).items():
        if _digest_at(request, path) != digest:
            lines.append(
                f"{OPTION.get(path, '--controlnet')} is another picture than the original's: the result differs"
            )
    return lines


def _recipe_of(source: Path) -> dict[str, Any]:
    from protocol.recipe import read
    from protocol.schemas import ACTIONS
    from protocol.schemas.inference import PictureData

    recipe = read(source.read_bytes())
    action = ACTIONS.get(str(recipe.get("action"))) if recipe else None
    if recipe is None or action is None or not issubclass(action.data, PictureData):
        raise click.BadParameter(f"{source} holds no recipe of a picture.", param_hint="--from")
    return recipe


def _repeated(recipe: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from protocol.recipe import inputs, request_data
    from protocol.schemas import validate_data

    validate_data(recipe["action"], request_data(recipe, dict.fromkeys(inputs(recipe), b"-")))  # anybody made the file
    given = {name: options[name] for name in OPTION if options[name] is not None}
    given |= {f"controlnets.{index}.image": use["image"] for index, use in enumerate(options["controlnets"])}
    missing = {OPTION.get(path, "--controlnet") for path in inputs(recipe) if path not in given}
    if missing:
        raise click.UsageError(
            f"{options['source']} was made from other pictures, which it does not hold: give them again with "
            f"{' and '.join(sorted(missing))}."
        )
    return request_data(recipe, given)


def _controlnets(before: list[dict[str, Any]], given: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Those given; one of the same name at the same place in the recipe lends the fields that are not said."""
    lenders = [*before, *[{}] * len(given)]
    return [
        {**old, **new} if old.get("controlnet_id") == new["controlnet_id"] else new
        for old, new in zip(lenders, given, strict=False)
    ]


def _check(data: dict[str, Any]) -> None:
    if "prompt" not in data:
        raise click.UsageError("A PROMPT is missing (or a picture to make again: --from).")
    alone = [name for name in OF_AN_IMAGE if name in data]
    if alone and "image" not in data:
        raise click.UsageError(f"{_option(alone[0])} is about a picture to change: add --image.")
    alone = [name for name in OF_A_MASK if name in data]
    if alone and "mask_image" not in data and "outpaint" not in data:
        raise click.UsageError(f"{_option(alone[0])} is about the part to repaint: add --mask or --outpaint.")


def _option(field: str) -> str:
    return OPTION.get(field, "--" + field.replace("_", "-"))


def _digest_at(request: PictureRequest, path: str) -> str:
    place: Any = request.data
    for part in path.split("."):
        place = place[int(part)] if isinstance(place, list) else place[part]
    return hashlib.sha256(request.attachments[place["attachment"]].content).hexdigest()


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
