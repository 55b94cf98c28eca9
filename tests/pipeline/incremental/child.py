"""A forked process does one thing to a project: run, retry, verify, look. It finds nothing of the user's code imported.

The parent has imported vlpipe and no stage of the project, so that each run loads the modules that lie there now, and costs
a fork (milliseconds) where a start of `vlpipe` would cost a second.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

TIMEOUT_S = 120.0


def warm() -> None:
    """Load once what every child needs, and nothing of a user's code."""
    import numpy.ma  # noqa: F401

    from vlpipe.pipeline.engine.records import manifest
    from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
    from vlpipe.pipeline.files import File, ListFile
    from vlpipe.pipeline.workflow import params, step_keys

    pyarrow.set_cpu_count(1)  # forks, and many of them: no pools of threads
    pyarrow.set_io_thread_count(1)
    leave_pandas_alone()
    manifest.installed = functools.cache(manifest.installed)
    for kind in (step_keys.EngineKeys, str, int, float, Path, File, ListFile):
        params.adapter(kind)
    for name in ("vlpipe", "pyarrow", "torch", "ray"):
        manifest.installed(name)
    import kill_points  # noqa: F401  # after the lines above: it and the next take names from those modules

    import vlpipe.pipeline.cli.commands  # noqa: F401

    gc.freeze()
    gc.disable()  # a child is gone before it is worth it


@dataclass
class Ended:
    """How a child ended: `killed`, or its result, or the error it stopped with."""

    result: Any = None
    error: str = ""  # one sentence
    trace: str = ""
    killed: bool = False


def in_child(work: Callable[[], Any], kill_after_s: float | None = None) -> Ended:
    """Do `work` in a forked process; kill_after_s: SIGKILL it then, whatever it does."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(writer, work)
    os.close(writer)
    data = _read(reader, pid, kill_after_s)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return Ended(killed=True, error=f"signal {os.WTERMSIG(status)}")
    ended: Ended = pickle.loads(data)
    return ended


def _answer(writer: int, work: Callable[[], Any]) -> None:
    """In the child: send what `work` returns or raises, and end without a word."""
    try:
        ended = Ended(result=work())
    except BaseException as error:
        ended = Ended(error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    with open(writer, "wb") as pipe:
        pickle.dump(ended, pipe)
    os._exit(0)


def _read(reader: int, pid: int, kill_after_s: float | None) -> bytes:
    data, deadline = b"", time.monotonic() + (TIMEOUT_S if kill_after_s is None else kill_after_s)
    with open(reader, "rb", buffering=0) as pipe:
        while True:
            ready = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]
            if not ready:
                os.kill(pid, signal.SIGKILL)
                if kill_after_s is None:
                    os.waitpid(pid, 0)
                    raise TimeoutError(f"a child did not end within {TIMEOUT_S:.0f} s")
                return data
            block = pipe.read(1 << 20)
            if not block:
                return data
            data += block


def enter(folder: Path, world: Path, calls: Path) -> None:
    """Be in a project: its folder is the working directory, its code comes first, its world is told."""
    sys.dont_write_bytecode = True  # two edits within a second must not look the same
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "code"), os.environ.get("PYTHONPATH", "")])
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["TOY_WORLD"], os.environ["TOY_CALLS"] = str(world), str(calls)
    os.chdir(folder)
    sys.path.insert(0, str(folder / "code"))


def command(verb: Callable[..., None], *args: Any, **options: Any) -> str:
    """A command of `vlpipe`, as the command line calls it; returns what it printed, which an error has as a note."""
    from vlpipe.pipeline.cli import app, commands

    text = io.StringIO()
    consoles = {
        id(c): c for module in (app, commands) for c in vars(module).values() if type(c).__name__ == "Console"
    }
    for console in consoles.values():
        console.file = text
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            verb(*args, **options)
        except BaseException as error:
            error.add_note(text.getvalue())
            raise
    return text.getvalue()


def verified(root: Path) -> tuple[int, str]:
    """Exit code and text of `vlpipe verify`."""
    from vlpipe.pipeline.cli import commands

    try:
        return 0, command(commands.verify_command, str(root))
    except Exception as error:
        if type(error).__name__ != "Exit":  # typer's
            raise
        return int(error.exit_code), "".join(error.__notes__)  # type: ignore[attr-defined]


@contextlib.contextmanager
def elsewhere(folder: Path) -> Iterator[None]:
    """Work as a worker that was started in another folder: what a unit does there, it does in that folder."""
    from vlpipe.pipeline.engine import local_executor

    back, num_open = os.getcwd(), 0

    @contextlib.contextmanager
    def there() -> Iterator[None]:
        nonlocal num_open  # several pools may be open, and close in any order
        num_open += 1
        os.chdir(folder)
        try:
            yield
        finally:
            num_open -= 1
            os.chdir(folder if num_open else back)

    def moved(fn: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            with there():
                return fn(*args, **kwargs)

        return inner

    for name in ("run_shard", "run_gather"):
        setattr(local_executor, name, moved(getattr(local_executor, name)))
    opening = local_executor.opening

    @contextlib.contextmanager
    def opened_there(*args: Any) -> Iterator[Any]:
        with there(), opening(*args) as work:
            yield work

    local_executor.opening = opened_there  # type: ignore[assignment]
    yield


def log_event(file: Path, event: dict[str, Any]) -> None:
    """One line, there also when the process dies after it."""
    with file.open("a") as lines:
        lines.write(json.dumps(event) + "\n")


def read_events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
