"""Make the picture of the guide on ControlNets, with the models that are shipped.

    python -m scripts.control_sheet

Nothing is chosen: all seeds are 1, guidance is what the model's card advises, the rest is default or in the caption.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from orchestrator.client import Client, LocalServer
from scripts.contact_sheet import GUIDANCE, ROOT, sheet

SHEET = ROOT / "docs" / "images" / "control.png"
SHAPES = {"square": (6, 28, 36, 58), "circle": (24, 4, 58, 38)}  # boxes, none where the model likes to draw
PROMPTS = ("a red circle on a white background", "a yellow triangle on a blue background")


def main() -> None:
    """Generate the pictures on a server of this script's own and write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=SHEET, help="default %(default)s")
    output: Path = parser.parse_args().output
    with LocalServer(models=ROOT / "models") as client:
        pictures = [entry for shape in SHAPES for entry in row(client, shape)]
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet([picture for _, picture in pictures], [caption for caption, _ in pictures]).quantize(256).save(
        output, optimize=True
    )
    print(output)


def row(client: Client, shape: str) -> list[tuple[str, Image.Image]]:
    """(caption, picture): what was drawn by hand, its edges, and what is made of each prompt."""
    source = drawn(shape)
    said = {"seed": 1, "guidance_scale": GUIDANCE}
    use = {"controlnet_id": "demo-edges", "image": source, "preprocessor": "canny"}
    made = [(f"drawn by hand: a {shape}", source)]
    for prompt in PROMPTS:
        result = client.text2img(prompt, controlnets=[use], **said)
        if len(made) == 1:
            made.append(("its edges, by canny", result.controlnet_images[0].pil))
        made.append((prompt, result.images[0].pil))
    return made


def drawn(shape: str) -> Image.Image:
    """Black on white, 64x64."""
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(SHAPES[shape], "black")
    return image


if __name__ == "__main__":
    main()
