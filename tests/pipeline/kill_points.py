"""Kill a run at every point where it touches the disk, run again, compare. Started by test_kill.py; prints what differed.

Each point is a fork that dies by SIGKILL before or after the n-th fsync, rename, write or folder move.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import toys  # noqa: F401  # here, and not in each fork
from helpers import CHAIN, left, run

from vlpipe.pipeline.engine.worker.pandas_later import leave_pandas_alone
from vlpipe.pipeline.storage import exclusive, store


def kill_at(point: int) -> list[int]:
    """Wrap what touches the disk so that event number `point` kills this process; returns the counter of events."""
    count = [0]

    def event() -> None:
        count[0] += 1
        if count[0] == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            event()
            result = fn(*args, **kwargs)
            event()
            return result

        return wrapped

    store.fsync = exclusive.fsync = around(store.fsync)
    store.os.replace = around(os.replace)
    store.shutil.move = around(store.shutil.move)
    store.Path.write_bytes = around(Path.write_bytes)
    store.Store.remove = around(store.Store.remove)
    return count


def forked(work: Callable[[], int]) -> int:
    """Exit status of `work` in a forked process; a negative signal number when it was killed."""
    pid = os.fork()
    if pid == 0:
        os._exit(work())
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def run_killed(folder: Path, point: int) -> int:
    kill_at(point)
    run(folder, CHAIN)
    return 0


def run_whole(folder: Path) -> int:
    run(folder, CHAIN)
    return 0


def main(folder: Path) -> None:
    leave_pandas_alone()
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir()
    assert forked(lambda: run_whole(undisturbed)) == 0
    wanted = left(undisturbed / "root")
    point, step = 1, int(sys.argv[2])
    while True:
        one = folder / str(point)
        one.mkdir()
        status = forked(lambda one=one, point=point: run_killed(one, point))
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        assert forked(lambda one=one: run_whole(one)) == 0, point
        found = left(one / "root")
        if found != wanted:
            print(f"point {point}: {sorted(set(found.items()) ^ set(wanted.items()))}")
            sys.exit(1)
        point += step
    print(f"{(point - 1) // step} points")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
