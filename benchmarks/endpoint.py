"""How much of a server's capacity `caption.endpoint` uses, and what a request costs: python benchmarks/endpoint.py [--write]

Three processes, as in a run: the small server (`stages/chat_server`, which does not read requests here), the driver that
records answers in a root on disk, and a worker with the stage's function, which gets batches of 512 rows, four at a time.
A server with 64 slots and a latency of 50 ms gives at most 1,280 answers per second. The first second, in which the worker
finds out how many requests the server takes, is not counted. CPU seconds are those of whole processes, over the same time.
Storms: the server lets in a number of requests per second, beyond a burst, and answers the others with 429, Retry-After: 1.
Bare: libcurl alone, 64 requests at a time with a body that is made once; nothing is read, recorded or put into rows. It
tells what this machine and the server allow.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from record import machine, machine_line, table

from vlpipe.pipeline.service import at
from vlpipe.pipeline.services.server import Services
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.caption.endpoint import CaptionEndpoint
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.endpoint.book import Book, Keeper
from vlpipe.stages.endpoint.client import Client

HERE = Path(__file__).parent
BATCH = 512
SLOTS, LATENCY_S = 64, 0.05
MAX_S = 20.0  # of one case


@dataclass(frozen=True)
class Case:
    """name; what the server is started with; size of the pictures in pixels; number of rows."""

    name: str
    server: tuple[str, ...]
    size: tuple[int, int]
    rows: int
    capacity: float  # answers per second
    concurrency: int = 128


QUEUE = ("--latency", str(LATENCY_S), "--slots", str(SLOTS))
CASES = (
    Case("64 slots, 50 ms; 64 x 64 px", QUEUE, (64, 64), 24_000, SLOTS / LATENCY_S),
    Case("64 slots, 50 ms; 336 x 336 px", QUEUE, (336, 336), 24_000, SLOTS / LATENCY_S),
    Case("64 slots, 500 ms; 336 x 336 px", ("--latency", "0.5", "--slots", "64"), (336, 336), 3_000, 128),
    Case(
        "429 beyond 100 per second",
        ("--latency", "0.2", "--rate", "100", "--burst", "50"),
        (64, 64),
        3_000,
        100,
    ),
    Case(
        "429 beyond 64 slots",
        ("--latency", "0.5", "--slots", "64", "--too-many", "429"),
        (64, 64),
        3_000,
        128,
    ),
)


def picture(number: int, size: tuple[int, int]) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def batches(case: Case) -> list[pa.Table]:
    pictures = [picture(number, case.size) for number in range(64)]
    made = []
    for first in range(0, case.rows, BATCH):
        numbers = range(first, min(first + BATCH, case.rows))
        columns = {
            "id": [f"{number:064x}" for number in numbers],
            "url": [f"http://web.test/{number}.jpg" for number in numbers],
            "texts": pa.array([[text(f"alt-text number {number}", "web")] for number in numbers], TEXTS),
            "image": pa.array([pictures[number % 64] for number in numbers], pa.binary()),
        }
        made.append(pa.table(columns))
    return made


def driver(root: str, pipe: Connection) -> None:
    """The driver's process: serves the record of answers; tells its CPU seconds when it is asked."""
    services, book = Services(), Book(Store(root))
    book.load()
    pipe.send(services.address("captions", lambda _: Keeper(book)))
    while pipe.recv() == "cpu":
        pipe.send(cpu_s())
    services.close()


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(case: Case, port: int) -> Iterator[int]:
    command = [
        sys.executable,
        "-m",
        "vlpipe.stages.chat_server",
        "--blind",
        "--port",
        str(port),
        *case.server,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def measured(case: Case, port: int) -> dict[str, Any]:
    rows = batches(case)
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as root, server(case, port) as server_pid:
        helper = multiprocessing.get_context("spawn").Process(target=driver, args=(root, theirs))
        helper.start()
        address = ours.recv()
        stage = CaptionEndpoint(
            base_url=f"http://127.0.0.1:{port}/v1",
            model="m",
            prompt="Describe it. {alt_text}",
            concurrency=case.concurrency,
        )

        def spent() -> list[float]:
            ours.send("cpu")
            return [cpu_s(), ours.recv(), cpu_of(server_pid)]

        done = good = 0
        with at(address), stage.open() as work:
            began = start = time.monotonic()
            before, counted = spent(), 0
            for batch in rows[: work.num_ahead]:
                work.ahead(batch)
            for number, batch in enumerate(rows):
                if number + work.num_ahead < len(rows):
                    work.ahead(rows[number + work.num_ahead])
                out = work(batch)
                good += out.counts.get("captions_good", 0)
                done += batch.num_rows
                now = time.monotonic()
                counted += batch.num_rows
                if start == began and now - began >= 1.0:  # it has found out how much the server takes
                    start, before, counted = now, spent(), 0
                runs_out = number + work.num_ahead >= len(rows) - 1
                if counted and (runs_out or now - start >= MAX_S):
                    break
            seconds, num = now - start, counted
            used = [b - a for a, b in zip(before, spent(), strict=True)]
            refused = work._asker.pace.num_refused
            limit = work._asker.pace.limit
            work.committing()
        ours.send("end")
        helper.join()
    return {
        "name": case.name,
        "answers_per_s": round(num / seconds, 1),
        "share": round(num / seconds / case.capacity, 3),
        "limit": round(limit, 1),
        "refused": refused,
        "rejects": done - good,
        **{
            f"{name}_cpu_ms": round(1000 * s / num, 3)
            for name, s in zip(("worker", "driver", "server"), used, strict=True)
        },
        "load": round(os.getloadavg()[0], 1),
        "nice": os.nice(0),
    }


def bare(case: Case, port: int) -> dict[str, Any]:
    """Posts the same body as fast as 64 connections go."""
    uri = b"data:image/jpeg;base64," + base64.b64encode(picture(0, case.size))
    body = json.dumps({"messages": uri.decode(), "prompt": "Describe it."}).encode()

    async def go() -> tuple[float, float, int]:
        client = Client(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            [],
            concurrency=SLOTS,
            timeout_s=60.0,
            max_bytes=1 << 20,
        )
        began, before, num = time.monotonic(), cpu_s(), 0

        async def one() -> None:
            nonlocal num
            while time.monotonic() - began < MAX_S / 2:
                await client.post(body)
                num += 1

        await asyncio.gather(*(one() for _ in range(SLOTS)))
        client.close()
        return time.monotonic() - began, cpu_s() - before, num

    with server(case, port):
        seconds, used, num = asyncio.run(go())
    return {
        "name": f"bare: {case.name}",
        "answers_per_s": round(num / seconds, 1),
        "share": round(num / seconds / case.capacity, 3),
        "worker_cpu_ms": round(1000 * used / num, 3),
        "load": round(os.getloadavg()[0], 1),
        "nice": os.nice(0),
    }


def page(found: list[dict[str, Any]]) -> str:
    columns = {
        "name": "case",
        "answers_per_s": "answers/s",
        "share": "share of capacity",
        "worker_cpu_ms": "worker, CPU ms per answer",
        "driver_cpu_ms": "driver",
        "server_cpu_ms": "server",
        "limit": "under way at the end",
        "refused": "429",
        "rejects": "rows without a caption",
        "load": "load average",
        "nice": "nice",
    }
    rows = [[one.get(name, "") for name in columns] for one in found]
    return (
        "# Captions from a server\n\n`python benchmarks/endpoint.py --write` makes this page.\n\n"
        + "\n".join((__doc__ or "").split("\n")[2:]).strip()
        + f"\n\n{machine_line(machine())}\n\n{table([*columns.values()], rows)}\n\n{remarks(found)}\n"
    )


def remarks(found: list[dict[str, Any]]) -> str:
    """Returns what the figures mean, and whether others were at work."""
    said = []
    full = next((one for one in found if one["name"] == CASES[0].name), None)
    if full is not None:
        cost = full["worker_cpu_ms"] + full["driver_cpu_ms"] + full["server_cpu_ms"]
        said.append(
            f"Worker, driver and server together need {cost:.2f} ms of CPU for an answer: "
            f"at {CASES[0].capacity:,.0f} answers per second {cost * CASES[0].capacity / 1000:.0%} of a core."
        )
    cores = os.cpu_count() or 1
    if any(one["load"] > cores for one in found):
        said.append(
            f"More processes than the {cores} cores were at work. Answers per second are then what these left, "
            "which the bare client tells as well; CPU times do not depend on it. "
            "In simulated time, where nothing else takes any, the "
            "requests under way reach 95 % of 64 slots with 50 ms (`tests/stages/endpoint/test_pace.py`)."
        )
    return "\n".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=int, help="number of a case, from 0")
    parser.add_argument("--rows", type=int, help="fewer rows")
    parser.add_argument("--write", action="store_true", help="write endpoint.md")
    args = parser.parse_args()
    found = []
    for number, case in enumerate(CASES):
        if args.only in (None, number):
            case = Case(**{**vars(case), "rows": args.rows or case.rows})
            runs = [bare, measured] if case.server[:4] == QUEUE else [measured]
            for run in runs:
                found.append(run(case, 18_700 + number))
                print(json.dumps(found[-1]), flush=True)
    if args.write:
        (HERE / "endpoint.md").write_text(page(found))


if __name__ == "__main__":
    main()
