"""Make the README's picture: one picture for each of twelve prompts, none left out, with the model that is shipped.

    python -m scripts.contact_sheet

Seeds are 1 to 12 in the order of the prompts, guidance is what the model's card advises, the rest is default.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from orchestrator.client import LocalServer

ROOT = Path(__file__).parents[1]
SHEET = ROOT / "docs" / "images" / "contact_sheet.png"
COLOURS = (("red", "white"), ("blue", "yellow"), ("green", "black"), ("white", "purple"))
KINDS = ("circle", "square", "triangle")
PROMPTS = [f"a {colour} {kind} on a {ground} background" for kind in KINDS for colour, ground in COLOURS]
COLUMNS = len(COLOURS)
GUIDANCE = 4.0
TILE, MARGIN, CAPTION = 128, 12, 34  # pixels
INK, PAPER = (40, 40, 40), (255, 255, 255)


def main() -> None:
    """Generate the pictures on a server of this script's own and write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=SHEET, help="default %(default)s")
    output: Path = parser.parse_args().output
    with LocalServer(models=ROOT / "models") as client:
        jobs = [
            client.submit("inference.text2img", {"prompt": prompt, "seed": seed, "guidance_scale": GUIDANCE})
            for seed, prompt in enumerate(PROMPTS, 1)
        ]
        pictures = [job.result().images[0].pil for job in jobs]
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures, PROMPTS).quantize(256).save(output, optimize=True)
    print(output)


def sheet(pictures: list[Image.Image], captions: list[str]) -> Image.Image:
    """Pictures in rows, enlarged without smoothing, each over its prompt in two lines."""
    width, height = TILE + MARGIN, TILE + CAPTION + MARGIN
    rows = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = MARGIN + index % COLUMNS * width, MARGIN + index // COLUMNS * height
        page.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + TILE + 3), caption.replace(" on a ", "\non a "), INK, font)
    return page


if __name__ == "__main__":
    main()
