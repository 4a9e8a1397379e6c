"""The guide's commands: every option, preset, override and file in them exists, checked by parsing without the work.

With MANYEYES_GUIDE=1 they are run as well, in order, in a fresh folder: that takes long.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from manyeyes.cli import app
from manyeyes.config import override
from manyeyes.ensemble import PRESETS, EnsembleConfig, load_config
from manyeyes.experiments.declaration import StudyConfig
from manyeyes.experiments.leaving_out import without_each_member

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines() if line.strip()
]
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL))
# Parsing needs no more than the class of errors; newer Typer brings its own Click.
WrongArguments: Any = typer.BadParameter.__mro__[1]


def parsed(command: str) -> tuple[str, dict[str, Any], Path | None]:
    """The subcommand, its parameters by name, and the file that the shell redirects its output to."""
    program, *words = shlex.split(command, comments=True)
    assert program == "manyeyes"
    target = None
    if ">" in words:
        words, (target,) = words[: words.index(">")], words[words.index(">") + 1 :]
    node: Any = typer.main.get_command(app)
    context = None
    while True:
        name = words[0] if context else "manyeyes"
        context = node.make_context(name, words[1:] if name != "manyeyes" else list(words), parent=context)
        if not hasattr(node, "commands"):
            return context.info_name, context.params, Path(target) if target else None
        words = [*context._protected_args, *context.args]
        node = node.commands[words[0]]


def test_the_guide_has_commands_and_all_are_the_programs() -> None:
    assert len(COMMANDS) > 10
    assert {parsed(command)[0] for command in COMMANDS} >= {
        *("flat-connector", "train", "predict", "evaluate", "compare", "presets")
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    parsed(command)


def _options(name: str) -> set[str]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


def test_a_misspelt_option_would_be_found() -> None:
    with pytest.raises(WrongArguments):
        parsed("manyeyes train bundled --data parts --outt runs/parts")


def test_options_in_the_text_exist() -> None:
    names = {word for span in SPANS for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    known = set().union(*(_options(name) for name in ("train", "predict", "evaluate", "compare")))
    assert names
    assert names <= known


def test_overrides_in_the_text_are_accepted() -> None:
    overrides = [words[1] for span in SPANS if (words := shlex.split(span))[0] == "--set" and len(words) > 1]
    assert len(overrides) > 5
    for item in overrides:
        load_config("bundled", [item])


def test_names_files_and_folders_exist_when_a_command_needs_them() -> None:
    """Presets are presets; what a command reads was written by one before it, or lies in the project."""
    made: set[str] = set()

    def there(path: object) -> bool:
        return (ROOT / str(path)).exists() or any(Path(str(path)).is_relative_to(one) for one in made)

    for command in COMMANDS:
        name, values, target = parsed(command)
        if name == "train":
            assert values["config"] in PRESETS or there(values["config"]), command
            if values["config"] in PRESETS:
                load_config(values["config"], values["set_"] or ())
            assert there(values["data"]), command
        elif name == "compare" and values["data"]:
            assert all(there(folder) for folder in values["data"]), command
            configs = [load_config(config, values["set_"] or ()) for config in values["configs"]]
            if values["leave_one_out"]:
                assert without_each_member(configs), f"{command}: nobody can be left out"
            assert values["baseline"] is None or values["baseline"] in [config.name for config in configs], command
        elif name == "compare":
            (study,) = values["configs"]
            override(yaml.safe_load((ROOT / study).read_text()), values["set_"] or ())
            folder = Path(study).parent
            assert all(there(os.path.normpath(folder / one.path)) for one in StudyConfig.from_yaml(ROOT / study).sets)
        elif name in ("predict", "evaluate"):
            assert there(values["run"]), command
            assert there(values["data"] if name == "evaluate" else values["paths"][0]), command
        made |= {str(value) for value in (values.get("out"), values.get("json"), target) if value}


def test_configs_in_the_guide_are_configs(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    assert blocks
    for text in blocks:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        EnsembleConfig.from_yaml(path)


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as GitHub makes them."""
    lines = [line.lstrip("# ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


PAGES = [
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks/results", ROOT / "docs/examples")
    for path in sorted(folder.glob("*.md"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_links_of_the_readmes_and_of_every_page_are_looked_at() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "CHANGELOG.md", "docs/README.md", "docs/decisions.md"} <= names


@pytest.mark.skipif("MANYEYES_GUIDE" not in os.environ, reason="runs the whole guide; set MANYEYES_GUIDE=1")
def test_every_command_runs_as_written(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    script = tmp_path / "manyeyes"
    script.write_text(
        f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c 'from manyeyes.cli import main; main()' \"$@\"\n"
    )
    script.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    source = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for command in COMMANDS:
        print(command, flush=True)
        subprocess.run(
            command, shell=True, cwd=tmp_path, check=True, env={**os.environ, "PATH": path, "PYTHONPATH": source}
        )
