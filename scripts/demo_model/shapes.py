"""Pictures and captions of the demo model's small world: one coloured shape on a coloured background."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
KINDS = ("circle", "square", "triangle")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 230, 60),
    "green": (30, 150, 60),
    "blue": (35, 75, 215),
    "purple": (140, 45, 165),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
COLOURS = tuple(PALETTE)
RADIUS = (14.0, 25.0)
# A size word is only ever used for these ranges, so that "small" and "large" never overlap.
SMALL_BELOW, LARGE_ABOVE = 17.0, 22.0
JITTER = 5.0
# A hollow shape has a hole of its own outline, this much smaller. The centre of a triangle's hole is lower than the
# middle of its height, by this part of the radius times (1 - HOLE), so that its sides are of one width.
HOLE = 0.55
TRIANGLE_SINK = 0.331

TEMPLATES = (
    "a {colour} {kind} on a {background} background",
    "{colour} {kind} on {background}",
    "a {colour} {kind}, {background} background",
)
WITHOUT_COLOUR = "a {kind} on a {background} background"
WITHOUT_BACKGROUND = "a {colour} {kind}"
WITHOUT_KIND = "a {colour} shape on a {background} background"


@dataclass(frozen=True)
class Scene:
    """One picture: kind, colour names, centre and radius in pixels of a 64x64 picture; whole or an outline."""

    kind: str
    colour: str
    background: str
    radius: float
    x: float
    y: float
    hollow: bool = False

    @property
    def size_word(self) -> str:
        """`small`, `large` or, in between, nothing."""
        if self.radius < SMALL_BELOW:
            return "small"
        return "large" if self.radius > LARGE_ABOVE else ""


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene in which shape and background differ in colour and the shape lies inside the picture."""
    colour, background = rng.choice(COLOURS, size=2, replace=False)
    radius = float(rng.uniform(*RADIUS))
    jitter = min(JITTER, SIZE / 2 - 2 - radius)
    x, y = (float(SIZE / 2 + rng.uniform(-jitter, jitter)) for _ in range(2))
    return Scene(str(rng.choice(KINDS)), str(colour), str(background), radius, x, y)


def coverage(kind: str, x: float, y: float, radius: float, size: int = SIZE) -> NDArray[np.float32]:
    """How much of each pixel the shape covers: (size, size) float32 in 0..1, edges anti-aliased.

    Squares and triangles are drawn a little smaller or larger than the circle of the same radius so that the
    three have bounding boxes of similar extent.
    """
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    dx, dy = columns - x, rows - y
    if kind == "circle":
        distance = np.hypot(dx, dy) - radius
    elif kind == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    elif kind == "triangle":
        half_base, half_height = 1.05 * radius, 0.95 * radius
        slant = np.hypot(2 * half_height, half_base)
        sides = (np.abs(dx) * 2 * half_height - (dy + half_height) * half_base) / slant
        distance = np.maximum(sides, dy - half_height)
    else:
        raise ValueError(f"unknown kind of shape: {kind!r}")
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def render(scene: Scene, size: int = SIZE) -> NDArray[np.float32]:
    """Draw a scene: (size, size, 3) float32 RGB in 0..255."""
    alpha = coverage(scene.kind, scene.x, scene.y, scene.radius, size)
    if scene.hollow:
        sink = TRIANGLE_SINK * (1 - HOLE) * scene.radius if scene.kind == "triangle" else 0.0
        alpha *= 1 - coverage(scene.kind, scene.x, scene.y + sink, HOLE * scene.radius, size)
    alpha = alpha[..., None]
    shape, background = (np.array(PALETTE[c], np.float32) for c in (scene.colour, scene.background))
    return alpha * shape + (1 - alpha) * background


def to_image(pixels: NDArray[np.float32]) -> Image.Image:
    """Turn RGB values in 0..255 into a picture."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def full_caption(scene: Scene) -> str:
    """The caption that names kind and both colours, in the first template."""
    return TEMPLATES[0].format(kind=scene.kind, colour=scene.colour, background=scene.background)


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene as a person might: mostly in full, sometimes with a part or everything left out.

    10 % are empty, which is what classifier-free guidance needs; 12 % leave out one attribute; half of the
    pictures with a size word name it.
    """
    draw = rng.random()
    if draw < 0.10:
        return ""
    if draw < 0.22:
        template = str(rng.choice([WITHOUT_COLOUR, WITHOUT_BACKGROUND, WITHOUT_KIND]))
    else:
        template = str(rng.choice(TEMPLATES, p=[0.6, 0.2, 0.2]))
    colour = scene.colour
    if scene.size_word and rng.random() < 0.5 and "{colour}" in template:
        colour = f"{scene.size_word} {colour}"
    return template.format(kind=scene.kind, colour=colour, background=scene.background)
