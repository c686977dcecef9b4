"""Make the picture of the guide on changing pictures, with the model that is shipped.

    python -m scripts.change_sheet

Nothing is chosen: all seeds are 1, guidance is what the model's card advises, the rest is default or in the caption.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from orchestrator.client import Client, LocalServer
from scripts.contact_sheet import GUIDANCE, ROOT, sheet

SHEET = ROOT / "docs" / "images" / "changes.png"
BOX = (2, 2, 61, 61)  # of the mask
PART = 40  # columns of the picture that are widened to the whole again


def main() -> None:
    """Generate the pictures on a server of this script's own and write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=SHEET, help="default %(default)s")
    output: Path = parser.parse_args().output
    with LocalServer(models=ROOT / "models") as client:
        pictures = painted(client)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet(list(pictures.values()), list(pictures)).quantize(256).save(output, optimize=True)
    print(output)


def painted(client: Client) -> dict[str, Image.Image]:
    """Caption -> picture, in the order of the sheet."""
    said = {"seed": 1, "guidance_scale": GUIDANCE}
    square = client.text2img("a blue square on a yellow background", **said).images[0].pil
    mask = Image.new("L", square.size)
    ImageDraw.Draw(mask).rectangle(BOX, 255)
    made = {"a blue square on a yellow background": square}
    for strength in (0.3, 0.6, 1.0):
        result = client.img2img("a red circle on a yellow background", square, strength=strength, **said)
        made[f"img2img: a red circle …\nstrength {strength}"] = result.images[0].pil
    made["the mask of the next two"] = mask.convert("RGB")
    for colour, kind in (("red", "circle"), ("green", "triangle")):
        result = client.inpainting(f"a {colour} {kind} on a yellow background", square, mask, **said)
        made[f"inpainting: a {colour}\n{kind} …"] = result.images[0].pil
    part = square.crop((0, 0, PART, square.height))
    wide = client.inpainting(
        "a blue square on a yellow background", part, outpaint={"right": square.width - PART}, **said
    )
    made[f"outpaint: the left {PART}\ncolumns, widened again"] = wide.images[0].pil
    return made


if __name__ == "__main__":
    main()
