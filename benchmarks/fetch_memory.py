"""Memory of a worker that fetches large images: N answers of 19 MB at once, below the default limit of 20 MB each.

python benchmarks/fetch_memory.py            # about 2 minutes and 7 GB of disk on 2 cores; prints Markdown
python benchmarks/fetch_memory.py --write    # and puts it into fetch_memory.md beside this file

An answer is a JPEG of 160 x 120 pixels and zeros after its end, so every row is kept. `vlpipe run --local`: one process
fetches, checks and writes; its children decode. The server is a process of its own, and is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from record import machine, machine_line, table

HERE = Path(__file__).parent
ANSWER_BYTES = 19_000_000
CONCURRENCY, NUM_HOSTS, POLL_S = 64, 16, 0.02
NUM_ROWS = (1, 64, 160)
MAX_MB = 1000.0  # of the process that fetches, for 64 answers
WORKFLOW = """
name: fetch_memory
steps:
  images:
    use: "loopback_stage:LoopbackImages"
    list: {list}
    ports: {ports}
    concurrency: {concurrency}
    per_host: {concurrency}
    timeout_s: 300
    read_timeout_s: 60
    max_reject_rate: 1.0
"""


def answer() -> bytes:
    picture = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(pixels).save(picture, "JPEG")
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {ANSWER_BYTES}\r\n\r\n".encode()
    return head + picture.getvalue() + bytes(ANSWER_BYTES - picture.tell())


async def serve() -> None:
    """Prints a port and answers each request there; ends with its standard input."""
    said, num_asked = answer(), 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                if request.startswith(b"GET /asked"):
                    body = str(num_asked).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                else:
                    num_asked += 1
                    writer.write(said)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


@contextlib.contextmanager
def server() -> Iterator[int]:
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def asked(port: int) -> int:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/asked") as got:
        return int(got.read())


class Watch:
    """Samples the resident memory of a process and of all below it, until it ends. MB."""

    def __init__(self, pid: int) -> None:
        self.one = self.all = 0.0
        self._pid, self._ended = pid, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(POLL_S):
            sizes = [_rss_mb(pid) for pid in (self._pid, *_below(self._pid))]
            self.one, self.all = max(self.one, sizes[0]), max(self.all, sum(sizes))


def _rss_mb(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    return 0.0


def _below(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_below(int(child))]
    return found


def measure(num_rows: int) -> dict[str, Any]:
    """Runs a workflow over `num_rows` URLs; returns rows kept, requests, peak memory in MB and seconds."""
    with tempfile.TemporaryDirectory(prefix="vlmemory") as name, server() as port:
        folder = Path(name)
        urls = [f"http://h{n % NUM_HOSTS}.test/{n}" for n in range(num_rows)]
        pq.write_table(pa.table({"url": urls, "text": ["a text"] * num_rows}), folder / "list.parquet")
        ports = json.dumps({f"h{n}.test": port for n in range(NUM_HOSTS)})
        text = WORKFLOW.format(list=folder / "list.parquet", ports=ports, concurrency=CONCURRENCY)
        (folder / "w.yaml").write_text(text)
        command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "run", str(folder / "w.yaml"), "--local"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        began = time.monotonic()
        with open(folder / "log.txt", "wb") as log:
            process = subprocess.Popen(
                [*command, "--root", str(folder / "root")], env=env, stdout=log, stderr=log
            )
            watch = Watch(process.pid)
            code = process.wait()
            watch.end()
        if code:
            raise RuntimeError((folder / "log.txt").read_text(errors="replace")[-2000:])
        kept = sum(pq.read_metadata(p).num_rows for p in folder.glob("root/images-*/[0-9]*.parquet"))
        seconds = time.monotonic() - began
        return {
            "answers": num_rows,
            "kept": kept,
            "requests": asked(port),
            "one": watch.one,
            "all": watch.all,
            "s": seconds,
        }


def page(found: list[dict[str, Any]]) -> str:
    header = (
        "answers of 19 MB",
        "rows kept",
        "requests",
        "MB, process that fetches",
        "MB, with children",
        "s",
    )
    rows = [
        (f["answers"], f["kept"], f["requests"], f"{f['one']:,.0f}", f"{f['all']:,.0f}", f"{f['s']:.1f}")
        for f in found
    ]
    most = max((f["one"] for f in found if f["answers"] == 64), default=0.0)
    verdict = f"64 answers need at most {MAX_MB:.0f} MB: {'met' if most <= MAX_MB else 'not met'}."
    return "\n\n".join(
        [
            "# Memory of a worker that fetches large images",
            f"Written by `python benchmarks/fetch_memory.py --write`. {machine_line(machine())}",
            table(header, rows),
            f"Peak resident memory, sampled every {POLL_S * 1000:.0f} ms; {CONCURRENCY} requests at once. The first line is "
            f"what one answer needs. {verdict}",
            "Up to 128 MB of bodies wait in memory and the others in a temporary file (`TMPDIR`). No request is sent while "
            "more than 1 GB waits, except those of the 64 rows that are checked next. Rows are written as soon as 32 MB of "
            "them are checked. Before, all bodies of four batches of 512 rows, and the output of a whole batch, were in "
            "memory: 64 answers took 3,788 MB.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write fetch_memory.md")
    parser.add_argument("--rows", type=int, nargs="+", default=NUM_ROWS, help="numbers of answers")
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
        return
    text = page([measure(num_rows) for num_rows in args.rows])
    print(text)
    if args.write:
        (HERE / "fetch_memory.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
