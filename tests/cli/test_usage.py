"""What needs no server: help, usage errors, exit codes, and how quick and light the command is."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli import cli
from orchestrator.cli.group import LazyGroup
from tests.cli.conftest import ROOT, Studio


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(group, LazyGroup):
        for name in group.lazy:
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield from commands(command, (*path, name))


COMMANDS = sorted(commands(cli))


def test_all_commands_are_looked_at() -> None:
    assert len(COMMANDS) == 47
    assert ("jobs", "cancel") in COMMANDS


@pytest.mark.parametrize("path", [path for path in COMMANDS if path != ("worker",)], ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0
    example = done.output[done.output.index("Example") :]
    assert " ".join(("atelier", *path)) in example


def test_the_workers_help_is_its_own(studio: Studio) -> None:
    done = studio.run("worker", "--help")
    assert done.returncode == 0
    assert "example: " in done.stdout
    assert "--device" in done.stdout


def test_the_list_of_commands_tells_what_their_help_tells() -> None:
    for path in COMMANDS:
        group = cli
        for name in path:
            assert isinstance(group, LazyGroup)
            command = group.get_command(click.Context(group), name)
            assert command is not None
            line = group.lazy[name][1]
            if name != "worker":
                assert command.get_short_help_str(200).split()[0] == line.split()[0]
            assert line.endswith(".")
            group = command  # type: ignore[assignment]


def test_the_groups_help_tells_the_exit_codes() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert f"\n    {code}" in output


def test_help_loads_nothing_that_takes_time() -> None:
    heavy = ("zmq", "pydantic", "rich", "sqlalchemy", "torch", "PIL", "numpy")
    code = f"""
import sys
from click.testing import CliRunner
from orchestrator.cli import cli
for path in ([], ["jobs"], ["generate"], ["validate"], ["workers"], ["loras"], ["controlnets"]):
    assert CliRunner().invoke(cli, [*path, "--help"]).exit_code == 0
print(sorted(set({heavy!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_command_imports_torch() -> None:
    modules = {where.partition(":")[0] for group in groups() for where, _ in group.lazy.values()}
    code = f"""
import sys
from importlib import import_module
for module in {sorted(modules)!r} + ["orchestrator.cli.checks", "orchestrator.cli.progress"]:
    import_module(module)
print("torch" in sys.modules or "diffusers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "False", done.stderr


def groups() -> list[LazyGroup]:
    found = [cli]
    for where, _ in cli.lazy.values():
        module, _, name = where.partition(":")
        command = getattr(import_module(module), name)
        if isinstance(command, LazyGroup):
            found.append(command)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["jobs", "lst"], "Did you mean 'list'?"),
        (["generate"], "PROMPT"),
        (["generate", "x", "--size", "64x"], "not a size"),
        (["generate", "x", "--seed", "many"], "--seed"),
        (["generate", "x", "--priority", "10"], "--priority"),
        (["generate", "x", "--format", "gif"], "--format"),
        (["generate", "x", "-o", "nowhere/out.png"], "no folder nowhere"),
        (["generate", "x", "-o", "."], "is a folder"),
        (["generate", "x", "--image", "missing.png"], "missing.png"),
        (["generate", "x", "--strength", "0.5"], "add --image"),
        (["generate", "x", "--mask", "plain.png"], "add --image"),
        (["generate", "x", "--image", "plain.png", "--mask-blur", "4"], "add --mask or --outpaint"),
        (["generate", "x", "--image", "plain.png", "--outpaint", "up=8"], "right=64,top=8"),
        (["generate", "x", "--sigmas", "karas"], "karras"),
        (["generate", "x", "--sigmas", "3,2,x"], "14.6,2,0.5"),
        (["generate", "x", "--lora", ""], "names no LoRA"),
        (["generate", "x", "--lora", ":0.5"], "names no LoRA"),
        (["generate", "x", "--controlnet", "edges"], "NAME=FILE"),
        (["generate", "x", "--controlnet", "edges=missing.png"], "missing.png"),
        (["generate", "x", "--controlnet", "edges=plain.png,scal=1"], "did you mean scale?"),
        (["generate", "x", "--controlnet", "edges=plain.png,scale=much"], "no value of scale"),
        (["generate", "x", "--controlnet", "edges=plain.png,guess=maybe"], "no value of guess"),
        (["validate"], "PROMPT"),
        (["loras", "load"], "LORA_ID"),
        (["controlnets", "preprocess", "plain.png"], "PREPROCESSOR"),
        (["controlnets", "preprocess", "plain.png", "canny", "-o", "nowhere/out.png"], "no folder nowhere"),
        (["generate", "x", "--local", "--connect", "ipc://x"], "--local"),
        (["generate", "x", "--preview"], "terminal"),
        (["generate", "--from", "missing.png"], "missing.png"),
        (["jobs", "show"], "JOB_ID"),
        (["jobs", "list", "--status", "done"], "--status"),
        (["sessions", "create", "--default", "steps"], "FIELD=VALUE"),
        (["jobs", "list", "--connect", "nonsense"], "'nonsense' cannot be connected to"),
        (["up", "--lease-ms", "many"], "lease_ms"),
        (["orchestrator", "--client-endpoints", "tcp://0.0.0.0:5555"], "CURVE"),
        (["orchestrator", "--lease_ms", "5"], "--lease-ms"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_with_exit_code_2(studio: Studio, arguments: list[str], message: str) -> None:
    (studio.folder / "plain.png").write_bytes(b"not looked at")
    done = studio.run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["generate", "x"], ["jobs", "watch", "x"], ["sessions", "list", "--json"], ["validate", "x"], ["loras", "list"]],
    ids=" ".join,
)
def test_without_a_server_the_exit_code_is_3_and_the_remedy_is_named(studio: Studio, arguments: list[str]) -> None:
    done = studio.run(*arguments)
    assert (done.returncode, done.stdout) == (3, "")
    assert "atelier up" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_told_in_one_line(studio: Studio) -> None:
    done = studio.run("workers", ATELIER_LEASE_SM="1")
    assert done.returncode == 2
    assert (
        done.stderr.strip() == "error: Unknown setting ATELIER_LEASE_SM (environment). Did you mean ATELIER_LEASE_MS?"
    )


def test_a_picture_without_a_recipe_cannot_be_made_again(studio: Studio) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(studio.folder / "plain.png")
    done = studio.run("generate", "--from", "plain.png")
    assert done.returncode == 2
    assert "no recipe" in done.stderr
    (studio.folder / "text.png").write_text("not a picture")
    done = studio.run("generate", "--from", "text.png")
    assert done.returncode == 1
    assert "invalid_request" in done.stderr
