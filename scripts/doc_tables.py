"""Write the parts of the docs that follow from the code, between their markers.

    python -m scripts.doc_tables            write them
    python -m scripts.doc_tables --check    exit 1 if a part is not what this would write

A block begins with `<!-- generated: NAME -->` and ends with `<!-- end -->`, as in the specification.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from orchestrator.core.states import mermaid
from orchestrator.settings import ENV_PREFIX, Settings
from protocol.limits import KIB, MIB
from scripts.spec_tables import BLOCK, table

ROOT = Path(__file__).parents[1]
PAGES = ("docs/architecture.md", "docs/operations.md", "CONTRIBUTING.md")
TARGET = re.compile(r"^([a-z-]+):.*?## (.*)$", re.MULTILINE)


def state_diagram() -> str:
    return f"```mermaid\n{mermaid()}\n```"


def settings() -> str:
    """One row per setting. What a default depends on stands at the end of its docstring, after `Default:`."""
    rows = []
    for name, field in Settings.model_fields.items():
        meaning, _, default = (field.description or "").partition(" Default: ")
        shown = default.rstrip(".") or default_words(name, field)
        rows.append([f"`{name}`", f"`{ENV_PREFIX}{name.upper()}`", plain(shown), plain(meaning)])
    return table(["setting", "environment", "default", "meaning"], rows)


def plain(text: str) -> str:
    """So that `<uid>` is not taken for HTML."""
    return text.replace("<", "&lt;")


def default_words(name: str, field: FieldInfo) -> str:
    """`15000`, `256 MiB`, `none`."""
    value: Any = field.default
    if value is None:
        return "none"
    if "bytes" in name:
        unit, word = (MIB, "MiB") if value % MIB == 0 else (KIB, "KiB")
        return f"`{value}` ({value // unit} {word})"
    return f"`{value}`"


def make_targets() -> str:
    found = TARGET.findall((ROOT / "Makefile").read_text())
    return table(["command", "what it does"], [[f"`make {name}`", meaning] for name, meaning in found])


def files(package: str) -> str:
    """The modules of one package, each with the first sentence of its docstring."""
    folder = ROOT / package.replace(".", "/")
    rows = []
    for path in sorted(folder.glob("*.py")):
        told = ast.get_docstring(ast.parse(path.read_text()))
        if told:
            rows.append([f"[{path.name}](../{path.relative_to(ROOT)})", first_sentence(told)])
    return table(["file", "what it is"], rows)


def first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


BLOCKS: dict[str, Callable[..., str]] = {
    "state_diagram": state_diagram,
    "settings": settings,
    "make_targets": make_targets,
    "files": files,
}


def filled(text: str) -> str:
    """A page with every generated block as the code has it now."""

    def block(match: re.Match[str]) -> str:
        name, argument = match.groups()
        body = BLOCKS[name](argument) if argument else BLOCKS[name]()
        return f"<!-- generated: {name}{f' {argument}' if argument else ''} -->\n{body}\n<!-- end -->"

    return BLOCK.sub(block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the docs.")
    parser.add_argument("--check", action="store_true", help="only tell whether they are up to date")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        if (new := filled(text)) != text:
            stale.append(page)
            if not check:
                (ROOT / page).write_text(new)
    if stale:
        print(f"{'stale, run python -m scripts.doc_tables:' if check else 'wrote'} {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
