"""How long the page of `vlpipe ui`, and `vlpipe show`, take over a large root, with a cold page cache.

    python benchmarks/ui.py --root /fast/disk/ui                    # 2,000,000 rows in 200 shards, 20 KB per image: 41 GB
    python benchmarks/ui.py --rows 200000 --shards 20 --root DIR    # 4 GB
    python benchmarks/ui.py --kilobytes 0 --root DIR                # 2,000,000 rows, no images: 0.5 GB

Makes the root (`ui_data.py`) unless it is there, and keeps it. Before each line, the files are put out of the page cache
(posix_fadvise), except where it says `then`. The server is a process of its own; pictures are asked for over six
connections, as browsers do. Appends a table to `benchmarks/ui.md`. Besides seconds, a line has the CPU seconds that the
process spent: on a machine that also does other work, these are what compares. Goals were fixed before the first run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from ui_data import make_root

from vlpipe.pipeline.storage.store import Store

HERE = Path(__file__).parent
PAGE = 48  # rows per page
CONNECTIONS = 6
VLPIPE = (sys.executable, "-m", "vlpipe.pipeline.cli.main")
STEP = "filtered-4567cdef"
FILTERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("texts with a score below 0.1", {"c": "texts.score<0.1"}),
    ("web texts with a score below 0.1", {"c": ["texts.score<0.1", "texts.source=web"]}),
    ("images narrower than 100 pixels", {"c": "width<100"}),
    ("texts that contain `red dog`", {"c": "texts.text~red dog"}),
    ("lowest best scores first", {"sort": "texts.score"}),
    ("SQL: width * height < 10000", {"sql": "width * height < 10000"}),
)


def forget_pages(root: Path) -> None:
    """Puts the root's files out of the page cache. Raises OSError if the system refuses."""
    for path in root.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


@contextmanager
def server(root: Path) -> Iterator[tuple[str, int]]:
    """Yields the URL and the process id of a server over the root."""
    started = subprocess.Popen([*VLPIPE, "ui", str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        yield started.stdout.readline().split()[0], started.pid
    finally:
        started.terminate()
        started.wait()


@dataclass
class Measuring:
    """Measures requests to a server. lines: (what, seconds, CPU seconds of the process, goal in seconds)."""

    root: Path
    pictures: bool
    lines: list[tuple[str, float, float, float | None]] = field(default_factory=list)
    url: str = ""
    pid: int = 0

    def get(self, view: str, **params: object) -> bytes:
        at = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=300)
        connection.request("GET", f"{at.path}api/0/{view}?{urlencode(params, doseq=True)}")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200, body
        return body

    def cpu(self) -> float:
        """Returns the CPU seconds that the server has spent so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, what: str, view: str, goal: float | None, *, cold: bool = True, **params: object) -> bytes:
        if cold:
            forget_pages(self.root)
        before, began = self.cpu(), time.perf_counter()
        body = self.get(view, step=STEP, **params)
        self.lines.append((what, time.perf_counter() - began, self.cpu() - before, goal))
        return body

    def page(self, what: str, goal: float | None, *, cold: bool = True, **params: object) -> int:
        """Adds a line for the rows of a page, and one for its pictures. Returns the number of rows found."""
        found = json.loads(self.ask(what, "rows", goal, cold=cold, n=PAGE, **params))
        if self.pictures:
            before, began = self.cpu(), time.perf_counter()
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                bodies = pool.map(lambda item: self.get("picture", step=STEP, at=item["at"]), found["rows"])
                assert all(bodies), "a picture is empty"
            line = (f"- then its {PAGE} pictures", time.perf_counter() - began, self.cpu() - before)
            self.lines.append((*line, None))
        return int(found["total"])

    def memory(self) -> tuple[int, int]:
        """Returns the resident megabytes of the server: now, and the most so far."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = dict(line.split(":", 1) for line in text.splitlines())
        now, most = (int(found[name].split()[0]) // 1000 for name in ("VmRSS", "VmHWM"))
        return now, most


def command(measuring: Measuring, what: str, goal: float, *args: str) -> None:
    """Adds a line for a whole command."""
    forget_pages(measuring.root)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*VLPIPE, *args], check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    measuring.lines.append((what, seconds, cpu, goal))


def measure(measuring: Measuring, num_rows: int) -> tuple[int, int]:
    """Adds all lines. Returns the megabytes of the server at the end, and at most."""
    command(measuring, "`vlpipe show STEP`, the whole process", 1.0, "show", str(measuring.root / STEP))
    with server(measuring.root) as (measuring.url, measuring.pid):
        measuring.ask("all steps", "run", None)
        last = (num_rows * 19 // 20 - PAGE) // PAGE * PAGE
        for what, start in (("first page", 0), ("page 20,000", 19_999 * PAGE), ("last page", last)):
            measuring.page(what, 1.0, start=min(start, last))
        for what, params in FILTERS:
            num = measuring.page(what, None if what.startswith("SQL") else 2.0, **params)
            what, *rest = measuring.lines[-1 - measuring.pictures]
            measuring.lines[-1 - measuring.pictures] = (f"{what}: {num:,} rows", *rest)  # type: ignore[assignment]
            middle = PAGE * (num // PAGE // 2)
            measuring.page("- then a page in the middle", 1.0, cold=False, **params, start=middle)
        measuring.ask(
            "histogram of scores by source", "histogram", None, column="texts.score", by="texts.source"
        )
        for what, at, cold in (("a moved threshold", 0.55, True), ("- then moved again", 0.61, False)):
            measuring.ask(what, "moved", 0.5, cold=cold, column="texts.score", at=at, **{"from": 0.5})
        return measuring.memory()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--kilobytes", type=int, default=20, help="of an image; 0: no images")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "ui.md")
    args = parser.parse_args()
    if not (args.root / STEP / "manifest.json").exists():
        make_root(Store(str(args.root)), args.rows, args.shards, args.kilobytes)
    measuring = Measuring(args.root, args.kilobytes > 0)
    now, most = measure(measuring, args.rows)
    size = sum(path.stat().st_size for path in args.root.rglob("*") if path.is_file())
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    images = f"images of {args.kilobytes} KB" if args.kilobytes else "no images"
    lines = [
        f"\n## {args.rows:,} rows in {args.shards} shards, {images}\n",
        f"{size / 1e9:.1f} GB, {os.cpu_count()} CPU cores, load averages at the end {load}.\n",
        "| | seconds | CPU seconds | goal |",
        "|---|---|---|---|",
        *(
            f"| {what} | {s:.2f} | {cpu:.2f} | {'' if goal is None else f'< {goal:g} s'} |"
            for what, s, cpu, goal in measuring.lines
        ),
        f"| memory of the server: at the end {now} MB, at most | {most} MB | | < 500 MB |",
    ]
    print("\n".join(lines))
    with args.out.open("a") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
