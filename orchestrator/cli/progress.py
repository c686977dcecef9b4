"""What a terminal shows while a picture is made: a bar with steps and the time left, and the picture as it emerges."""

from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.style import Style
from rich.text import Text

from protocol.enums import EventName

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from orchestrator.client import JobEvent

PREVIEW_COLUMNS = 48


class Display:
    """Shown on stderr where that is a terminal, and gone when done. `quiet` shows nothing."""

    def __init__(self, *, quiet: bool, preview: bool) -> None:
        console = Console(stderr=True, quiet=quiet)
        if preview and not console.is_terminal:
            raise click.UsageError("--preview draws in a terminal, and this is none.")
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}")
        )
        self._task = self._progress.add_task("", total=None, state="")
        self._live = Live(self._progress, console=console, transient=True)

    def __enter__(self) -> "Display":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def show(self, event: "JobEvent") -> None:
        if event.kind is EventName.STATE:
            self.say({"pending": "waiting for a worker", "processing": "generating"}.get(event.data["status"], ""))
        elif event.kind is EventName.PROGRESS:
            self._advance(event)
        elif event.kind is EventName.PREVIEW and event.image is not None:
            self._live.update(self._with_picture(event.image.pil))

    def _advance(self, event: "JobEvent") -> None:
        step, steps = int(event.data.get("step", 0)), int(event.data.get("steps", 0))
        image, images = int(event.data.get("image", 0)), int(event.data.get("images", 1))
        eta_ms = event.data.get("eta_ms")
        which = f"picture {image + 1}/{images}, " if images > 1 else ""
        left = "" if eta_ms is None else f", {clock(eta_ms / 1000)} left"
        done = float(event.data.get("progress", step / steps if steps else 0))
        state = f"{which}step {step}/{steps}{left}"
        self._progress.update(self._task, completed=done, total=1.0, state=state)

    def _with_picture(self, picture: "PillowImage") -> RenderableType:
        return Group(half_blocks(picture), self._progress)


def clock(seconds: float) -> str:
    """1:05, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def half_blocks(picture: "PillowImage") -> Text:
    """A picture in characters, two pixels each: the upper one is the ink of ▀, the lower one its paper."""
    width = min(PREVIEW_COLUMNS, picture.width)
    height = max(2, round(picture.height * width / picture.width) // 2 * 2)
    small = picture.convert("RGB").resize((width, height)).tobytes()
    colors = [Color.from_rgb(*small[at : at + 3]) for at in range(0, len(small), 3)]
    text = Text()
    for y in range(0, height, 2):
        for x in range(width):
            text.append("▀", Style(color=colors[y * width + x], bgcolor=colors[(y + 1) * width + x]))
        text.append("\n")
    return text
