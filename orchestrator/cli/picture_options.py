"""The options that say what picture is wanted, as `atelier generate` and `atelier validate` take them."""

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click

RULES = ("karras", "exponential", "beta")
SIDES = ("left", "right", "top", "bottom")
CONTROLNET_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "preprocessor": ("preprocessor", str),
    "resolution": ("preprocessor_resolution", int),
    "scale": ("conditioning_scale", float),
    "start": ("control_guidance_start", float),
    "end": ("control_guidance_end", float),
    "guess": ("guess_mode", lambda text: {"yes": True, "no": False}[text]),
}
"""Short name -> (field of `controlnets`, how its text is read)."""

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])


class PictureSize(click.ParamType):
    """64x64, or 64 for a square."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size such as 64x64", param, ctx)
        return int(match[1]), int(match[2] or match[1])


class Lora(click.ParamType):
    """hollow, or hollow:0.8. What stands behind a colon and is no number belongs to the name."""

    name = "NAME[:SCALE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        name, colon, scale = str(value).rpartition(":")
        number = _number(scale) if colon else None
        if not (name if number is not None else value):
            self.fail(f"{value!r} names no LoRA", param, ctx)
        return {"lora_id": value} if number is None else {"lora_id": name, "scale": number}


class ControlNet(click.ParamType):
    """edges=house.png,preprocessor=canny,scale=0.8. A comma with no FIELD= behind it belongs to the file's name."""

    name = "NAME=FILE[,FIELD=VALUE]..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        name, _, rest = str(value).partition("=")
        file, *pieces = re.split(r",(?=\w+=)", rest)
        if not name or not file:
            self.fail(f"{value!r} is not NAME=FILE, e.g. edges=house.png", param, ctx)
        use: dict[str, Any] = {"controlnet_id": name, "image": FILE.convert(file, param, ctx)}
        for piece in pieces:
            short, _, text = piece.partition("=")
            if short not in CONTROLNET_FIELDS:
                near = get_close_matches(short, CONTROLNET_FIELDS, n=1)
                hint = f", did you mean {near[0]}?" if near else f"; there are {', '.join(CONTROLNET_FIELDS)}"
                self.fail(f"{short!r} is no field of a ControlNet{hint}", param, ctx)
            field, read = CONTROLNET_FIELDS[short]
            try:
                use[field] = read(text)
            except (ValueError, KeyError):
                self.fail(f"{text!r} is no value of {short}", param, ctx)
        return use


class Sides(click.ParamType):
    """right=64,top=8."""

    name = "SIDE=PIXELS[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        pairs = [re.fullmatch(r"(\w+)=(\d{1,5})", piece) for piece in str(value).split(",")]
        sides = {pair[1]: int(pair[2]) for pair in pairs if pair}
        if None in pairs or not sides.keys() <= set(SIDES):
            self.fail(f"{value!r} is not e.g. right=64,top=8 (sides: {', '.join(SIDES)})", param, ctx)
        return sides


class Sigmas(click.ParamType):
    """A rule, or falling numbers: 14.6,2,0.5."""

    name = "RULE|NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | list[float]:
        if value in RULES:
            return str(value)
        numbers = [_number(piece) for piece in str(value).split(",")]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            self.fail(f"{value!r} is neither one of {', '.join(RULES)} nor numbers such as 14.6,2,0.5", param, ctx)
        return known


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


OPTIONS = [
    click.option("--model", "model_id", metavar="NAME", help="The model.  [default: the server's]"),
    click.option("--negative", "negative_prompt", metavar="TEXT", help="What should not be in the picture."),
    click.option("--seed", type=click.IntRange(-1, 2**64 - 1), help="The same seed makes the same picture."),
    click.option("--steps", type=int, help="Denoising steps."),
    click.option("--size", type=PictureSize(), help="In pixels.  [default: the model's, or the image's]"),
    click.option("--count", "num_images", type=int, help="How many pictures, with seeds that follow one another."),
    click.option("--image", type=FILE, metavar="FILE", help="A picture to change."),
    click.option("--strength", type=float, help="How much to change it, 0 to 1."),
    click.option("--mask", "mask_image", type=FILE, metavar="FILE", help="Repaint the image where this is white."),
    click.option("--mask-blur", type=int, help="Soften the mask's edge by so many pixels."),
    click.option("--invert-mask", is_flag=True, default=None, help="Repaint where the mask is black."),
    click.option("--padding-mask-crop", type=int, help="Look at so many pixels around the mask only, enlarged."),
    click.option("--outpaint", type=Sides(), help="Widen the image, e.g. right=64,top=8."),
    click.option("--lora", "loras", type=Lora(), multiple=True, help="Mix in a LoRA (repeatable)."),
    click.option(
        "--controlnet",
        "controlnets",
        type=ControlNet(),
        multiple=True,
        help=f"Follow a picture (repeatable). Fields: {', '.join(CONTROLNET_FIELDS)}.",
    ),
    click.option("--scheduler", metavar="NAME", help="A diffusers scheduler, e.g. euler, ddim, dpmpp_2m."),
    click.option("--sigmas", type=Sigmas(), help=f"The noise: {', '.join(RULES)}, or a number for each step."),
    click.option("--eta", type=float, help="Noise that ddim adds at each step, 0 to 1."),
    click.option("--guidance", "guidance_scale", type=float, help="How closely to follow the prompt."),
    click.option("--guidance-rescale", type=float, help="Take back contrast that guidance adds, 0 to 1."),
    click.option("--guidance-end", type=float, help="Stop guidance after this share of the steps, 0 to 1."),
    click.option("--vae", "vae_id", metavar="NAME", help="Another VAE than the model's own."),
    click.option("--session", "session_id", metavar="ID", help="A session whose defaults hold."),
    click.option(
        "--from",
        "source",
        type=FILE,
        metavar="FILE",
        help="Make this picture again, by the recipe in it; other options change it.",
    ),
]


def picture_options(command: F) -> F:
    """Add the PROMPT and all options about the picture; `picture_request.request_of` reads them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return click.argument("prompt", required=False)(command)
