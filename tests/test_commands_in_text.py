"""Commands inside sentences of README and docs/ exist: verbs, their options, scripts, modules and make targets.

Commands in `sh` blocks are run by `test_docs.py`. The log is a record of what was done, and is left out.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from vlpipe.pipeline.cli.main import _add_commands, app

_add_commands()
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def spans(program: str) -> list[tuple[str, str]]:
    """(page, command) of each inline command of `program`."""
    found = []
    for page in PAGES:
        if "reference" in page.parts or page.name == "log.md":
            continue
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for one in re.findall(rf"`({program} [^`]+)`", prose):
            found.append((str(page.relative_to(ROOT)), one))
    return found


def options(words: list[str]) -> Iterator[str]:
    yield from (word.partition("=")[0] for word in words if word.startswith("-") and word != "-")


@pytest.mark.parametrize(("page", "command"), spans("vlpipe"))
def test_verbs_and_options(page: str, command: str) -> None:
    _, verb, *words = shlex.split(command)
    if verb == "COMMAND":
        return
    assert verb in VERBS, f"{page}: {command}"
    known = {name for one in VERBS[verb].params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    assert set(options(words)) <= known, f"{page}: {command}"


@pytest.mark.parametrize(("page", "command"), spans("python"))
def test_scripts_and_their_options(page: str, command: str) -> None:
    _, script, *words = shlex.split(command.partition(" > ")[0])
    if script == "-m":
        module, *words = words
        assert importlib.util.find_spec(module), f"{page}: {command}"
        return
    path = ROOT / script
    if not path.exists():
        (path,) = ROOT.glob(f"tests/**/{script}")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    text = "".join(file.read_text() for file in files)
    assert all(f'"{one}"' in text for one in options(words) if one != "--help"), f"{page}: {command}"


@pytest.mark.parametrize(("page", "command"), spans("make"))
def test_make_targets(page: str, command: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(command.split()[1:]) <= {*targets}, f"{page}: {command}"
