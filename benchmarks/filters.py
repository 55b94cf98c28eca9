"""Text and shape filters and exact dedup on 20,000 and 200,000 rows, clean and with 1 % corrupt images: CPU time.

python benchmarks/filters.py --data-juicer /path/to/its/venv/bin/python [--write]    # about 25 minutes on 2 cores

Data-Juicer 1.6.1 in an environment of its own: `pip install py-data-juicer==1.6.1 aiohttp` (it imports aiohttp and
does not say so; this job needs no torch). Real alt-texts come from VLPIPE_DATA. What is counted is the CPU time of the
command and of all processes it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filters_data import Data, make
from filters_page import markdown
from filters_peers import (
    MAX_CHARS,
    MAX_RATIO,
    MAX_WORDS,
    MIN_ALNUM,
    MIN_CHARS,
    MIN_SIDE,
    MIN_WORDS,
    data_juicer,
)
from record import machine

HERE = Path(__file__).parent
MARK = "VLPIPE_BENCHMARK_RUN"  # in the environment of every process of a run
POLL_S = 0.1
TIMES = 3

WORKFLOW = f"""
name: j1
steps:
  images: {{{{use: "lists.captions:CaptionsJsonl", captions: {{jsonl}}, images: {{images}}}}}}
  judged:
    use: "filter.rules:Rules"
    from: images
    sources: [human]
    drop_textless: true
    rules:
      - {{{{id: few_words, column: num_words, op: ">=", value: {MIN_WORDS}}}}}
      - {{{{id: many_words, column: num_words, op: "<=", value: {MAX_WORDS}}}}}
      - {{{{id: short, column: num_chars, op: ">=", value: {MIN_CHARS}}}}}
      - {{{{id: long, column: num_chars, op: "<=", value: {MAX_CHARS}}}}}
      - {{{{column: alnum_ratio, op: ">=", value: {MIN_ALNUM}}}}}
      - {{{{column: min_side, op: ">=", value: {MIN_SIDE}}}}}
      - {{{{column: aspect_ratio, op: "<=", value: {MAX_RATIO}}}}}
  twins: {{{{use: "dedup.exact:ExactDuplicates", from: judged}}}}
  kept: {{{{use: "dedup.apply:DropDuplicates", from: judged, decisions: {{{{from: twins, path: decisions.parquet}}}}}}}}
"""


def ours(data: Data, out: Path, *more: str) -> int:
    out.mkdir(parents=True, exist_ok=True)
    text = WORKFLOW.format(jsonl=data.jsonl, images=data.folder / "images")
    (out / "j1.yaml").write_text(text)
    command = ["vlpipe", "run", str(out / "j1.yaml"), "--root", str(out / "root"), *more]
    with (out / "log.txt").open("w") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode


def plain_loop(data: Data, out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    return subprocess.run([sys.executable, HERE / "filters_peers.py", data.jsonl, out]).returncode


def our_result(out: Path) -> tuple[int, set[str]]:
    """Rows kept, and the files of rows named as faults."""
    import pyarrow.parquet as pq

    root = out / "root"
    kept = sum(pq.read_metadata(p).num_rows for p in root.glob("kept-*/[0-9]*.parquet"))
    listed: dict[str, str] = {}
    for path in root.glob("images.rows-*/[0-9]*.parquet"):
        listed |= dict(zip(*(pq.read_table(path)[c].to_pylist() for c in ("id", "url")), strict=True))
    bad = [i for p in root.glob("images-*/_rejects/*.parquet") for i in pq.read_table(p)["id"].to_pylist()]
    return kept, {listed[i] for i in bad}


def plain_result(out: Path) -> tuple[int, set[str]]:
    return num_lines(out / "rows.jsonl"), {
        line.split("\t")[0] for line in (out / "bad.txt").read_text().splitlines()
    }


def data_juicer_result(out: Path) -> tuple[int, set[str]]:
    return num_lines(out / "rows.jsonl"), set()  # it keeps no list


def num_lines(path: Path) -> int:
    with path.open() if path.exists() else open(os.devnull) as file:
        return sum(1 for _ in file)


class Cpu:
    """CPU seconds of all processes with this run's mark, daemons too: looked at every 0.1 s, the last look counts.

    A process that writes its title over its environment, as Ray's workers do, is known by its parent.
    """

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._ticks: dict[tuple[int, str], int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Cpu:
        os.environ[MARK] = self.mark
        self._began = os.times()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        ended = os.times()
        self.waited = ended.children_user + ended.children_system
        self.waited -= self._began.children_user + self._began.children_system
        del os.environ[MARK]

    @property
    def seconds(self) -> float:
        """What was waited for is exact; Ray's daemons are not, so the larger of the two counts is taken."""
        return max(self.waited, sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK"))

    def _poll(self) -> None:
        known: dict[tuple[int, str], bool] = {}
        members: set[int] = set()
        mark = f"{MARK}={self.mark}".encode()
        while not self._done.wait(POLL_S):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    self._look(int(entry.name), mark, known, members)

    def _look(self, pid: int, mark: bytes, known: dict[tuple[int, str], bool], members: set[int]) -> None:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            key = (pid, fields[19])  # with its start time: numbers are used again
            if key not in known:
                known[key] = int(fields[1]) in members or mark in Path(f"/proc/{pid}/environ").read_bytes()
        except (OSError, IndexError):
            return  # it has ended
        if known[key]:
            members.add(pid)
            self._ticks[key] = int(fields[11]) + int(fields[12])


System = tuple[str, Callable[[Data, Path], int], Callable[[Path], tuple[int, set[str]]]]


def systems(dj: str | None) -> list[System]:
    found: list[System] = [
        ("vlpipe, --local", lambda d, o: ours(d, o, "--local"), our_result),
        ("vlpipe on Ray", ours, our_result),
        ("plain Python loop", plain_loop, plain_result),
    ]
    if dj:
        found.append(("Data-Juicer 1.6.1", lambda d, o: data_juicer(dj, d, o), data_juicer_result))
        one = ("Data-Juicer, images one by one", lambda d, o: data_juicer(dj, d, o, True), data_juicer_result)
        found.append(one)
    return found


def measure(system: System, data: Data, out: Path) -> dict[str, Any]:
    name, go, result = system
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    with Cpu() as cpu:
        status = go(data, out)
    wall = time.monotonic() - began
    rows, named = result(out)
    shutil.rmtree(out)
    return {
        "system": name,
        "wall_s": wall,
        "cpu_s": cpu.seconds,
        "exit": status,
        "rows": rows,
        "named": len(named & data.corrupt),
        "wrongly_named": len(named - data.corrupt),
        "num_corrupt": len(data.corrupt),
    }


def measured(
    data: Data, rate: float, small: bool, args: argparse.Namespace, out: Path
) -> list[dict[str, Any]]:
    """One run of each system; where the data are small, the one of three with the middle CPU time, the systems in turn."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(TIMES if small else 1):
        for system in systems(args.data_juicer):
            if args.only and not any(system[0].startswith(o) for o in args.only):
                continue
            if "one by one" in system[0] and not (rate and small):
                continue
            found.setdefault(system[0], []).append(measure(system, data, out))
            print(found[system[0]][-1], file=sys.stderr, flush=True)
    return [sorted(runs, key=lambda run: float(run["cpu_s"]))[len(runs) // 2] for runs in found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-juicer", help="Python of an environment with Data-Juicer; left out: not run")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--folder", type=Path, help="where the data is made and kept; else a temporary one")
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of names of systems")
    parser.add_argument("--write", action="store_true", help="write filters.md and filters.json")
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "runs": []}
    with tempfile.TemporaryDirectory(prefix="vl") as scratch:
        folder = args.folder or Path(scratch)
        for num_rows in args.rows:
            for rate in (0.0, 0.01):
                data = make(folder / f"{num_rows}-{rate}", num_rows, rate)
                for run in measured(data, rate, num_rows == min(args.rows), args, folder / "out"):
                    found["runs"].append({"num_rows": num_rows, "corrupt_rate": rate, **run})
    found["machine"]["load_average_after"] = [round(x, 2) for x in os.getloadavg()]
    page = markdown(found)
    print(page)
    if args.write:
        found["runs"] = sorted(
            found["runs"] + _of_other_sizes(args.rows), key=lambda run: int(run["num_rows"])
        )
        page = markdown(found)
        (HERE / "filters.md").write_text(page)
        (HERE / "filters.json").write_text(json.dumps(found, indent=1) + "\n")


def _of_other_sizes(rows: list[int]) -> list[dict[str, Any]]:
    """Runs that an earlier command wrote."""
    known = json.loads((HERE / "filters.json").read_text())["runs"]
    return [run for run in known if run["num_rows"] not in rows]


if __name__ == "__main__":
    main()
