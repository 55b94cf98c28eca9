"""Entry point of the command line, `vlpipe`."""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from typing import TextIO

from rich.markup import escape

from vlpipe.pipeline.cli import commands as commands  # adds its commands to `app`
from vlpipe.pipeline.cli.app import app, err
from vlpipe.pipeline.engine.locking.signals import Interrupted, heeding_interrupts
from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
from vlpipe.pipeline.errors import VlpipeWarning, explain, one_line


def main() -> None:
    """Entry point. `--debug`, anywhere, shows tracebacks.

    What is finished is on disk, so the process leaves without tearing down native thread pools: one run of several hundred
    ended in SIGABRT after its work.
    """
    take_any_text()
    debug = "--debug" in sys.argv
    sys.argv = [a for a in sys.argv if a != "--debug"]
    sys.path.insert(0, os.getcwd())  # a user's own stages lie beside the YAML
    warnings.showwarning = show_warning
    leave_pandas_alone()
    gc.freeze()  # what is imported stays: no collection looks through it again
    code = exit_code(debug)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def take_any_text() -> None:
    """What the terminal or the pipe cannot show (its encoding is cp1252, say) is printed as an escape: `\\u732b`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own as one sentence; those of libraries as Python shows them."""
    if issubclass(category, VlpipeWarning):
        err.print(
            f"[yellow]warning[/yellow]: {escape(one_line(str(message)))}", highlight=False, soft_wrap=True
        )
    else:
        print(
            warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr
        )


def exit_code(debug: bool) -> int:
    """Run the command; an error is printed as one clear sentence."""
    try:
        with heeding_interrupts() as check:
            try:
                app(standalone_mode=True)
            except SystemExit:
                check()  # typer makes 130 of any interrupt
                raise
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(bool(done.code))
    except Interrupted as interrupted:
        return interrupted.code
    except Exception as error:
        if debug:
            raise
        err.print(f"[bold red]error[/bold red]: {escape(explain(error))}", highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    main()
