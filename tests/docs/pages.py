"""Reading the project's pages: their fenced blocks, links, headings and words."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/operations.md",
    "docs/guides/change.md", "docs/guides/control.md", "docs/guides/convert.md", "docs/guides/files.md",
    "docs/guides/localisation.md", "docs/guides/loras.md", "docs/guides/predict.md",
    "docs/guides/sessions.md", "docs/guides/versions.md",
]  # fmt: skip
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
WORD = re.compile(r"`([^`\n]+)`")


def text(page: str) -> str:
    return (ROOT / page).read_text()


def section(page: str, heading: str) -> str:
    """What stands under one heading of the second level."""
    return text(page).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def blocks(markdown: str, language: str) -> list[str]:
    """The fenced blocks of a language, without the indent that a list gives them."""
    found = [(indent, body) for indent, word, body in FENCE.findall(markdown) if word == language]
    return ["".join(line.removeprefix(indent) for line in body.splitlines(keepends=True)) for indent, body in found]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text(page))


def anchors(path: Path) -> set[str]:
    """What a link may name behind `#`, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
