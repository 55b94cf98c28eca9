"""`vlpipe` called as a person calls it, on a workflow in a temporary folder."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from vlpipe.pipeline.cli import commands, look
from vlpipe.pipeline.cli.app import app

assert commands.app is app is look.app


def vlpipe(*args: str | Path, code: int | tuple[int, ...] = 0) -> list[str]:
    """The lines it prints, without spaces at their ends; last the text of an error."""
    done = CliRunner().invoke(app, [str(a) for a in args])
    error = "" if isinstance(done.exception, SystemExit) else str(done.exception or "")
    said = done.output.splitlines() + error.splitlines()
    assert done.exit_code in (code if isinstance(code, tuple) else (code,)), (
        done.exit_code,
        said,
        done.exception,
    )
    return [line.rstrip() for line in said]


class Runs:
    """A workflow file and its root."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.root, self.file = folder, folder / "root", folder / "w.yaml"
        self.file.write_text(text)

    def __call__(self, verb: str, *args: str | Path, code: int | tuple[int, ...] = 0) -> list[str]:
        return vlpipe(verb, self.file, *args, "--root", self.root, code=code)

    def step(self, name: str) -> Path:
        (found,) = self.root.glob(f"{name}-*")
        return found
