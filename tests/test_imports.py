"""Who may import whom: the floor plan of the code, held over the source of every module."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "orchestrator", "worker", "instructors")
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "onnxruntime")

# The first row whose prefix fits a module tells what it may import of ours (itself is always allowed).
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "protocol": (),
    "orchestrator.core": ("protocol.enums", "protocol.limits"),  # the contract's words and numbers
    "orchestrator.client": ("protocol",),
    "orchestrator.gateway": ("protocol", "orchestrator.client"),
    "orchestrator.cli": PACKAGES,
    "orchestrator.__main__": PACKAGES,  # the same commands, as `python -m orchestrator`
    "orchestrator": ("protocol",),
    "instructors": ("protocol",),
    "worker": ("protocol", "instructors"),
}
# The local server inside a program is what starts workers; it loads their launcher when it is asked to.
MAY_IMPORT_LAZILY: dict[str, tuple[str, ...]] = {
    "orchestrator.client": ("worker.launcher", "worker.hardware", "orchestrator")
}

CORE_FORBIDS = {
    "zmq", "asyncio", "threading", "multiprocessing", "concurrent", "subprocess", "socket", "select", "signal",
    "time", "datetime", "random", "secrets", "uuid", "os", "sqlite3", "sqlalchemy",
}  # fmt: skip
CORE_STDLIB = frozenset(sys.stdlib_module_names) - CORE_FORBIDS


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(imported module, whether only inside a function), `from x import y` as x.y where that is a module of ours."""
    tree = ast.parse(MODULES[module].read_text())
    lazy = {id(node) for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(scope)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in lazy
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield (name if name in MODULES else base), id(node) in lazy


def row_of(module: str) -> str:
    return next(prefix for prefix in MAY_IMPORT if within(module, prefix))


def complaints(module: str) -> list[str]:
    row = row_of(module)
    found = []
    for name, lazy in imports(module):
        if name.split(".")[0] not in PACKAGES or within(name, row):
            continue
        allowed = MAY_IMPORT[row] + (MAY_IMPORT_LAZILY.get(row, ()) if lazy else ())
        # `protocol` lets in its version beside its modules; `orchestrator` may use its own rooms, not those on top
        if row == "orchestrator" and within(name, "orchestrator"):
            continue
        if not any(within(name, prefix) for prefix in allowed):
            found.append(f"{module} imports {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_is_below_them(module: str) -> None:
    assert complaints(module) == []


def test_the_shell_does_not_reach_up() -> None:
    tops = ("orchestrator.client", "orchestrator.gateway", "orchestrator.cli")
    shell = [name for name in MODULES if row_of(name) == "orchestrator"]
    assert [f"{name} imports {other}" for name in shell for other, _ in imports(name)
            if any(within(other, top) for top in tops)] == []  # fmt: skip


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "orchestrator.core")])
def test_the_core_is_pure(module: str) -> None:
    outside = [name for name, _ in imports(module) if name.split(".")[0] not in ("orchestrator", "protocol")]
    assert [name for name in outside if name.split(".")[0] not in CORE_STDLIB] == []


@pytest.mark.parametrize("module", [name for name in MODULES if name != "protocol.sockets"])
def test_sockets_are_made_in_one_place(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            makes = node.func.attr == "socket" and not (isinstance(owner, ast.Name) and owner.id == "socket")
            makes |= node.func.attr == "Socket" and isinstance(owner, ast.Name) and owner.id == "zmq"
            assert not makes, f"{module}:{node.lineno} makes a socket; protocol.sockets does that"


@pytest.mark.parametrize("module", ["protocol", "orchestrator", "orchestrator.client", "orchestrator.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_base_install_is_light() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = " ".join(project["dependencies"]).lower()
    assert "pyzmq" in base
    assert [name for name in HEAVY if name.lower() in base] == []
    assert any(entry.startswith("torch") for entry in project["optional-dependencies"]["worker"])


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("protocol.fake", "import orchestrator.core", "protocol.fake imports orchestrator.core"),
        ("orchestrator.core.fake", "from protocol.codec import pack", "orchestrator.core.fake imports protocol.codec"),
        ("orchestrator.core.fake", "from .. import store", "orchestrator.core.fake imports orchestrator.store"),
        ("orchestrator.client.fake", "import worker.launcher", "orchestrator.client.fake imports worker.launcher"),
        ("orchestrator.fake", "def f():\n    import worker", "orchestrator.fake imports worker"),
        ("worker.fake", "import orchestrator", "worker.fake imports orchestrator"),
    ],
)
def test_a_breach_is_seen(
    module: str, source: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fake.py"
    path.write_text(source)
    monkeypatch.setitem(MODULES, module, path)
    assert complaints(module) == [complaint]
