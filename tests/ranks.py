"""Processes of a test that form one torch process group, and that end with it, however it ends.

They meet at a file: a port that was free a moment ago may belong to another test by the time it is used, and ranks of two
groups then wait for each other. They are forked by a server that has imported torch, which takes longer than most tests.
"""

from __future__ import annotations

import faulthandler
import os
import runpy
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
END = 3000  # characters of what a rank wrote, in an error
DUMP_S = 10.0  # seconds in which a rank that waits writes where
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "vlpipe.stages.train.fit"])


def join() -> int:
    """Joins the group of the processes that `run` started, over gloo; returns this one's rank. One process has no group.

    What a rank waits for longer than the test may take is an error in that rank.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        limit = timedelta(seconds=float(os.environ["RANKS_WAIT_S"]))
        meeting = f"file://{os.environ['RANKS_MEET_AT']}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=limit)
    return rank


def leave() -> None:
    """Waits for the other ranks, and leaves the group, if there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def run(
    folder: Path,
    num: int,
    command: Sequence[object],
    *,
    of_rank: Mapping[int, Mapping[str, str]] | None = None,
    killed: int | None = None,
    wait_s: float = 280,
) -> list[str]:
    """Runs a Python script with its arguments in `num` processes, see `join`; returns what each wrote.

    of_rank: environment variables of single ranks. killed: the rank that kills itself; then the others are ended. Raises
    AssertionError with what they wrote if a rank fails, or waits for longer than `wait_s`: then also with where each waits.
    """
    meet = folder / f"meet-{uuid.uuid4().hex}"
    common = {"WORLD_SIZE": str(num), "RANKS_MEET_AT": str(meet), "RANKS_WAIT_S": str(wait_s)}
    outputs = [folder / f"{meet.name}.{rank}.txt" for rank in range(num)]
    running: list[BaseProcess] = []
    try:
        for rank, output in enumerate(outputs):
            env = {**os.environ, **common, "RANK": str(rank), **(of_rank or {}).get(rank, {})}
            given = {"GIVEN": ([str(part) for part in command], env, output)}
            # by path: pytest imports tests without a place that another process would look at
            running.append(SERVER.Process(target=runpy.run_path, args=(__file__, given, "rank")))
            running[-1].start()
        problem = _wait(running, killed, wait_s)
    finally:
        for process in running:
            process.kill()
            process.join()
    said = [output.read_text(errors="replace") for output in outputs]
    if problem:
        ends = "\n".join(f"--- rank {rank}:\n{text[-END:]}" for rank, text in enumerate(said))
        raise AssertionError(f"{Path(str(command[0])).name}, {num} ranks: {problem}\n{ends}")
    return said


def _script(command: Sequence[str], env: Mapping[str, str], output: Path) -> None:
    """Runs a script in this process, which a server forked."""
    with output.open("wb") as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = command
    sys.path[:0] = [str(Path(command[0]).parent), str(ROOT)]
    faulthandler.enable()
    runpy.run_path(command[0], run_name="__main__")


def _wait(running: Sequence[BaseProcess], killed: int | None, wait_s: float) -> str:
    """Returns what went wrong, or "" once all have ended, or `killed` has."""
    deadline = time.monotonic() + wait_s
    while True:
        codes = [process.exitcode for process in running]
        if killed is not None and codes[killed] == -signal.SIGKILL:
            return ""
        failed = [rank for rank, code in enumerate(codes) if code and rank != killed]
        if failed and (killed is None or codes[killed] is not None):
            return f"rank {failed[0]} ended with exit code {codes[failed[0]]}"
        if None not in codes:
            return "" if killed is None else f"rank {killed} was not killed, it ended with {codes[killed]}"
        if time.monotonic() > deadline:
            late = [rank for rank, code in enumerate(codes) if code is None]
            for rank in late:
                os.kill(running[rank].pid or 0, signal.SIGABRT)  # it writes the stack of each thread
            for rank in late:
                running[rank].join(DUMP_S)
            return f"ranks {late} did not end within {wait_s:.0f} s; where they wait is the end of what they wrote"
        time.sleep(0.05)


if __name__ == "rank":
    _script(*globals()["GIVEN"])
