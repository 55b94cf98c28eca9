"""How long `vlpipe forget` takes in a root of 1 M rows in each of 4 steps and their list: an id, 100,000 ids, a domain,
100,000 urls.

    python benchmarks/forget_scale.py --root /tmp/forget-scale         # makes the root once, about two minutes
    python benchmarks/forget_scale.py --root ... --yes ids             # forgets for real, in a copy

Each kind runs in a process of its own; seconds are those of the whole command, CPU
seconds count what else the machine does less, peak RSS is that process's. A row has
a hash as its id, a url on one of 50,000 hosts, one text and numbers. Prints JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from record import machine

from vlpipe.pipeline.stage import MapStage, SourceStage, Work
from vlpipe.stages.common.row import LISTED
from vlpipe.stages.lists.text_limit import TextLimit, text_lists

HOSTS = 50_000
WORKFLOW = """
name: scale
steps:
  pages: {{use: "forget_scale:Pages", num_rows: {num_rows}}}
  second: {{use: "forget_scale:Scored", from: pages, name: a}}
  third: {{use: "forget_scale:Scored", from: second, name: b}}
  fourth: {{use: "forget_scale:Scored", from: third, name: c}}
"""


def row_id(n: int) -> str:
    return hashlib.sha256(str(n).encode()).hexdigest()


def url(n: int) -> str:
    return f"https://www.host{n % HOSTS}.test/pictures/{n:08d}.jpg"


@dataclass(frozen=True, kw_only=True)
class Pages(SourceStage):
    num_rows: int

    def row_schema(self) -> pa.Schema:
        return LISTED

    def rows(self) -> Iterator[pa.Table]:
        for start in range(0, self.num_rows, 10_000):
            ns = range(start, min(start + 10_000, self.num_rows))
            texts = text_lists(
                [[f"a picture of the {n}th thing, as its page describes it"] for n in ns], "web", TextLimit()
            )
            yield pa.table([[row_id(n) for n in ns], [url(n) for n in ns], texts], schema=LISTED)

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table


@dataclass(frozen=True, kw_only=True)
class Scored(MapStage):
    name: str

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(pa.field(self.name, pa.float32()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            scores = pa.array([n / table.num_rows for n in range(table.num_rows)], pa.float32())
            return table.append_column(self.name, scores)

        yield work


KINDS = {
    "id": lambda num: [f"id:{row_id(7)}"],
    "ids": lambda num: [f"id:{row_id(n)}" for n in range(0, num, max(1, num // 100_000))],
    "domain": lambda num: ["domain:host7.test"],
    "urls": lambda num: [f"url:{url(n)}" for n in range(0, num, max(1, num // 100_000))],
}


def make(root: Path, num_rows: int) -> None:
    root.mkdir(parents=True)
    (root / "w.yaml").write_text(WORKFLOW.format(num_rows=num_rows))
    vlpipe("run", root / "w.yaml", "--local", "--root", root / "root")
    for kind, lines in KINDS.items():
        (root / f"{kind}.txt").write_text("\n".join(lines(num_rows)))


def vlpipe(*args: object) -> tuple[float, float, int, str]:
    """Seconds, CPU seconds, peak RSS in MB, and the line that says how much it was."""
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        lines = out.read().splitlines()
    if process.returncode:
        raise SystemExit("\n".join(lines))
    said = next((line for line in lines if "forgot" in line or "forget" in line), "")
    return round(seconds, 1), round(used.ru_utime + used.ru_stime, 1), used.ru_maxrss // 1024, said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    given = parser.parse_args()
    if not given.root.exists():
        make(given.root, given.rows)
    found = {}
    for kind in given.kinds:
        root = given.root / "root"
        if given.yes:
            root = given.root / "copy"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(given.root / "root", root)
        more = ["--yes"] if given.yes else []
        found[kind] = vlpipe(
            "forget", given.root / "w.yaml", given.root / f"{kind}.txt", "--root", root, *more
        )
    print(
        json.dumps(
            {"machine": machine(), "yes": given.yes, "seconds, CPU seconds, MB, said": found}, indent=1
        )
    )


if __name__ == "__main__":
    main()
