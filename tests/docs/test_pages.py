"""What the pages say of files, settings, options and targets is so."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from instructors import manifest
from orchestrator.cli import cli, group
from orchestrator.cli.group import LazyGroup
from orchestrator.settings import Settings, load_settings
from protocol.enums import ErrorCode
from protocol.messages import Request, Response
from scripts import doc_tables
from tests.docs import pages
from tests.docs.pages import ROOT
from tests.test_imports import MAY_IMPORT, PACKAGES
from worker import options, parent

TOP = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
IN_EXAMPLES = {"protocol/schemas/text.py", "instructors/text.py", "tests/instructors/test_text.py"}


@pytest.mark.parametrize("page", doc_tables.PAGES)
def test_generated_parts_are_fresh(page: str) -> None:
    assert doc_tables.filled(pages.text(page)) == pages.text(page), "run: make docs"


def test_a_stale_part_is_noticed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(pages.text("docs/operations.md").replace("ATELIER_LEASE_MS` | `15000`", "ATELIER_LEASE_MS` | `9`"))
    monkeypatch.setattr(doc_tables, "PAGES", (str(page),))
    monkeypatch.setattr(sys, "argv", ["doc_tables", "--check"])
    assert doc_tables.main() == 1
    monkeypatch.setattr(sys, "argv", ["doc_tables"])
    assert doc_tables.main() == 0
    assert page.read_text() == pages.text("docs/operations.md")
    monkeypatch.setattr(sys, "argv", ["doc_tables", "--check"])
    assert doc_tables.main() == 0


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in pages.LINK.findall(pages.prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert path.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in pages.anchors(path), target


@pytest.mark.parametrize("page", pages.PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = {word for word in pages.WORD.findall(pages.prose(page)) if word.startswith(TOP) and " " not in word}
    assert [word for word in named - IN_EXAMPLES if not list(ROOT.glob(word))] == []


@pytest.mark.parametrize("page", pages.PAGES)
def test_targets_that_are_named_exist(page: str) -> None:
    known = {name for name, _ in doc_tables.TARGET.findall((ROOT / "Makefile").read_text())}
    named = set(re.findall(r"(?:`|^|\n)make ([a-z-]+)", pages.text(page)))
    assert named - known == set()


def commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, LazyGroup):
        for name in command.lazy:
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from commands(inner)


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_options_that_are_named_exist(page: str) -> None:
    known = {option for command in commands(cli) for param in command.params for option in param.opts}
    known |= {option for action in options.parser()._actions for option in action.option_strings}
    known |= {"--help", "--version"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", pages.text(page))) - known == set()


def test_settings_and_codes_that_are_named_exist() -> None:
    known = {*Settings.model_fields, *Request.model_fields, *Response.model_fields, *(code.value for code in ErrorCode)}
    known |= {"retry_after_ms"}  # of an error
    known |= {*manifest.Onnx.model_fields, *manifest.Batching.model_fields}
    named = {word for word in pages.WORD.findall(pages.prose("docs/operations.md")) if re.fullmatch(r"[a-z_]+", word)}
    assert {word for word in named if "_" in word} - known == set()


def test_the_settings_file_shown_is_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {})
    file = tmp_path / "atelier.toml"
    file.write_text(pages.blocks(pages.section("docs/operations.md", "Settings"), "toml")[0])
    assert load_settings({}, file).models_dir == Path("/srv/models")


def rows(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_imports_is_the_one_that_is_held() -> None:
    told = rows(pages.section("docs/architecture.md", "Who may import whom"))
    held = {
        name: ["all"] if may == PACKAGES else [f"`{other}`" for other in may] or ["–"]
        for name, may in MAY_IMPORT.items()
    }
    assert {name.strip("`"): may.split(", ") for name, may in told} == held


def test_the_table_of_exit_codes_is_whole() -> None:
    told = {
        int(code): (command, worker)
        for code, command, worker in rows(pages.section("docs/operations.md", "Exit codes"))
    }
    assert set(told) == {0, group.FAILED, group.USAGE, group.UNREACHABLE, group.INTERRUPTED}
    assert {code for code, (_, worker) in told.items() if worker} == {
        parent.STOPPED, parent.FAILED, parent.WRONG_USAGE, parent.REFUSED
    }  # fmt: skip


def test_the_javascript_shown_is_the_file() -> None:
    shown = pages.blocks(pages.text("README.md"), "js")
    assert shown == [(ROOT / "examples" / "javascript" / "generate.mjs").read_text()]


def test_the_version_is_the_changelogs_newest() -> None:
    newest = re.search(r"^## (\S+),", pages.text("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert f'version = "{newest[1]}"' in (ROOT / "pyproject.toml").read_text()
