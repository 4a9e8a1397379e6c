"""The arrows between the rooms, walked in the syntax trees, and what a plain import costs."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import manyeyes

ROOT = Path(manyeyes.__file__).parent
FOUNDATION = {"errors", "config", "files", "checkpoint", "fitted", "maps", "device", "progress", "__init__"}
ROOMS = {"data", "backbones", "fusion", "heads", "ensemble", "experiments"}
MAY_IMPORT = {
    "foundation": FOUNDATION,
    "data": FOUNDATION,
    "backbones": FOUNDATION,
    "fusion": FOUNDATION,
    "heads": FOUNDATION,
    "ensemble": FOUNDATION | {"data", "backbones", "fusion", "heads"},
    # Trunks are shared between compared ensembles, hence the backbones.
    "experiments": FOUNDATION | {"data", "backbones", "ensemble"},
    "cli": FOUNDATION | {"data", "ensemble", "experiments"},
}
HEAVY = (
    *("torch", "torchvision", "timm", "numpy", "cv2", "sklearn", "scipy", "matplotlib", "pydantic", "PIL"),
    *("ray", "onnx", "onnxruntime", "faiss", "FrEIA", "joblib", "jinja2"),
)
HELP = """
from manyeyes.cli import app
commands = [[command.name or command.callback.__name__] for command in app.registered_commands]
commands += [[group.name] for group in app.registered_groups]
assert ["train"] in commands
for command in commands:
    app([*command, "--help"], standalone_mode=False)
"""
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "foundation" if first in FOUNDATION else first


def imported(path: Path, body_only: bool = False) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in the file, or only when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if body_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            if module == "manyeyes":
                yield from (f"manyeyes.{name.name}" for name in node.names)


def targets(path: Path) -> set[str]:
    """The parts of the package that a file imports: rooms, or modules of the foundation."""
    parts = (name.split(".") for name in imported(path) if name.split(".")[0] == "manyeyes")
    return {part[1] for part in parts if len(part) > 1 and not part[1].startswith("_")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"{path} belongs to no room"
    assert targets(path) - {room} <= MAY_IMPORT[room]


def test_the_walk_sees_the_arrows_that_are_there() -> None:
    # Without it, a walk that finds nothing would pass everything above.
    seen = {room: set().union(*(targets(p) for p in MODULES if room_of(p) == room)) for room in MAY_IMPORT}
    assert {"data", "backbones", "fusion", "heads", "errors"} <= seen["ensemble"]
    assert {"data", "ensemble", "experiments"} <= seen["cli"]
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} == ROOMS


def test_the_command_line_imports_nothing_heavy_at_module_level() -> None:
    names = {name.split(".")[0] for name in imported(ROOT / "cli.py", body_only=True)}
    assert not names & set(HEAVY)
    assert "typer" in names


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import manyeyes", HEAVY),
        ("from manyeyes.cli import app; app(['--help'], standalone_mode=False)", HEAVY),
        (HELP, tuple(name for name in HEAVY if name != "pydantic")),  # newer typer takes arguments apart with it
        ("import manyeyes.experiments.compare", ("matplotlib", "sklearn", "pandas", "timm", "ray", "faiss")),
    ],
    ids=["package", "help", "help of every command", "compare"],
)
def test_heavy_packages_are_imported_where_they_are_used(statement: str, absent: tuple[str, ...]) -> None:
    check = (
        f"import sys\n{statement}\nfound = set(sys.modules) & {set(absent)!r}\nsys.exit(repr(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_help_comes_in_less_than_0_4_seconds() -> None:
    """By the processor's clock, which other processes on the machine slow less than the one on the wall."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", "from manyeyes.cli import main; main()", "--help"]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.4
