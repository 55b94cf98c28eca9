"""The same work by others: read a shard, sleep, write a shard, twice, with the two stages overlapped.

Their shards are written plainly: no receipt, no digest, no fsync, and a killed run starts again from nothing.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import pyarrow.parquet as pq


def work(path: str, folder: str, seconds: float) -> str:
    """One shard through one stage; returns the path of the new shard."""
    with pq.ParquetFile(path) as file:
        table = file.read()
    time.sleep(seconds)
    to = os.path.join(folder, os.path.basename(path))
    pq.write_table(table, to, compression="zstd")
    return to


class Worker:
    """An actor of Ray Data."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"path": work(row["path"], self.folder, self.seconds)}


def ray_data(paths: Sequence[str], folders: Sequence[str], seconds: float) -> float:
    """Wall seconds with one actor of one CPU per stage and one block per shard. Needs Ray to be running.

    8 tasks in flight per actor: 64 shards took 5.3 s, with Ray Data's own 2 of them 7.0 s.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    began = time.monotonic()
    data = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=len(paths))
    for folder in folders:
        one = ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=8)
        data = data.map(Worker, fn_constructor_args=(folder, seconds), compute=one, num_cpus=1)
    assert len(data.take_all()) == len(paths)
    return time.monotonic() - began


def two_processes(paths: Sequence[str], folders: Sequence[str], seconds: float) -> float:
    """Wall seconds of a plain loop per stage, each in a process of its own, joined by a pipe."""
    spawn = mp.get_context("spawn")
    to_first, first_in = spawn.Pipe()
    first_out, second_in = spawn.Pipe()
    second_out, results = spawn.Pipe()
    ends = ((first_in, first_out), (second_in, second_out))
    processes = [
        spawn.Process(target=_loop, args=(take, give, folder, seconds))
        for (take, give), folder in zip(ends, folders, strict=True)
    ]
    for process in processes:
        process.start()
    to_first.send("ready")  # passed along: both are up before timing begins, as Ray is
    results.recv()
    began = time.monotonic()
    for path in [*paths, ""]:
        to_first.send(path)
    while results.recv():
        pass
    wall = time.monotonic() - began
    for process in processes:
        process.join()
    return wall


def _loop(take: Connection, give: Connection, folder: str, seconds: float) -> None:
    give.send(take.recv())
    while path := take.recv():
        give.send(work(path, folder, seconds))
    give.send("")
