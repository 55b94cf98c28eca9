"""Entry point of the command line, `vlpipe`."""

# ruff: noqa: E402

from __future__ import annotations

import gc

gc.disable()  # while modules are imported: none of it is garbage, and to look takes a sixth of the time to start

import io
import os
import sys
import warnings
from typing import TextIO

from rich.markup import escape

from vlpipe.pipeline.cli.app import app, err
from vlpipe.pipeline.engine.locking.signals import Interrupted, heeding_interrupts
from vlpipe.pipeline.engine.worker.open_stage import set_library_modes
from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
from vlpipe.pipeline.errors import VlpipeWarning, explain, one_line

gc.freeze()  # imported objects live until exit, so garbage collection skips them
gc.enable()


def main() -> None:
    """Runs the command line and exits. `--debug`, at any position, shows tracebacks.

    All results are on disk by then, so the process exits with os._exit and skips the shutdown of native thread pools, in
    which one run of several hundred ended with SIGABRT.
    """
    set_library_modes()
    take_any_text()
    debug = "--debug" in sys.argv
    sys.argv = [a for a in sys.argv if a != "--debug"]
    sys.path.insert(0, os.getcwd())  # for a user's own stages in the working directory
    warnings.showwarning = show_warning
    leave_pandas_alone()
    code = exit_code(debug)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def take_any_text() -> None:
    """Prints characters that the stream's encoding (cp1252, say) lacks as escapes: `\\u732b`."""
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
    """Replaces `warnings.showwarning`: a VlpipeWarning is printed as one line, others in Python's format."""
    if issubclass(category, VlpipeWarning):
        err.print(
            f"[yellow]warning[/yellow]: {escape(one_line(str(message)))}", highlight=False, soft_wrap=True
        )
    else:
        print(
            warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr
        )


def exit_code(debug: bool) -> int:
    """Runs the command, prints an error as one sentence, and returns the exit code. With `debug`, errors are raised."""
    try:
        with heeding_interrupts() as check:
            _add_commands()
            try:
                app(standalone_mode=True)
            except SystemExit:
                check()  # typer exits with 130 after any interrupt; this raises with the signal that came
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


def _add_commands() -> None:
    """Adds all other commands to `app`, unless `run` or `plan` is asked for: they need none, and start faster."""
    if sys.argv[1:2] not in (["run"], ["plan"]):
        import vlpipe.pipeline.cli.commands
        import vlpipe.pipeline.cli.describe
        import vlpipe.pipeline.cli.look
        import vlpipe.pipeline.cli.submit  # noqa: F401


if __name__ == "__main__":
    main()
