"""Jobs J2 and J3: a filter over JSONL shards beside NeMo Curator and Ray Data, a killed run, and what a second run computes.

python benchmarks/curation.py --curator PYTHON   # PYTHON: of an environment with nemo-curator; without: Ray Data only
python benchmarks/curation.py --curator PYTHON --write   # about 5 minutes; into curation.md beside this file
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curation_peers import KEEP, LEAST
from record import machine, machine_line, table

HERE = Path(__file__).parent
SHARDS, ROWS = 16, 1250
ROUNDS = 3
J3_ROWS, J3_SHARDS = 8000, 8
WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "runs",
    "over",
    "green",
    "hill",
    "sees",
    "red",
    "bird",
    "near",
    "lake",
    "at",
]
WORKFLOW = """
name: words
steps:
  listed: {{use: "curation_stages:JsonLines", folder: {folder}, shard_rows: {rows}}}
  kept: {{use: "curation_stages:EnoughWords", from: listed, least: {least}, seconds: {seconds}, calls: "{calls}"}}
"""


def made(folder: Path, num_shards: int, num_rows: int) -> Path:
    """JSONL files with ids and texts of 3 to 20 words."""
    rng, number = random.Random(0), 0
    folder.mkdir()
    for shard in range(num_shards):
        lines = []
        for _ in range(num_rows):
            text = " ".join(rng.choices(WORDS, k=rng.randint(3, 20)))
            lines.append(json.dumps({"id": f"id{number}", "text": text}))
            number += 1
        (folder / f"{shard:04d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def workflow(at: Path, folder: Path, rows: int, *, least: int, seconds: float = 0.0, calls: str = "") -> Path:
    at.mkdir(parents=True, exist_ok=True)
    text = WORKFLOW.format(folder=folder, rows=rows, least=least, seconds=seconds, calls=calls)
    (at / "w.yaml").write_text(text)
    return at


def ours(at: Path, *more: str) -> subprocess.Popen[bytes]:
    vlpipe = str(Path(sys.executable).parent / "vlpipe")
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.Popen(
        [vlpipe, "run", "w.yaml", "--root", "root", *more], cwd=at, env=env, stdout=subprocess.DEVNULL
    )


def timed(process: subprocess.Popen[bytes], began: float) -> float:
    if process.wait(timeout=300):
        raise SystemExit(f"{process.args}: exit code {process.returncode}")
    return time.monotonic() - began


def peer(python: str, system: str, folder: Path, out: Path) -> float:
    began = time.monotonic()
    command = [python, str(HERE / "curation_peers.py"), system, str(folder), str(out)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said)
        try:
            return timed(process, began)
        except SystemExit:
            said.seek(0)
            sys.stderr.write(said.read().decode()[-2000:])
            raise


def num_rows(folder: Path, pattern: str) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in folder.glob(pattern))


def j2(scratch: Path, curator: str | None) -> list[list[object]]:
    """Wall seconds of whole commands, the systems in turn: name, median, all, rows."""
    folder = made(scratch / "j2", SHARDS, ROWS)
    walls: dict[str, list[float]] = {}
    rows: dict[str, int] = {}

    def note(name: str, wall: float, found: int) -> None:
        walls.setdefault(name, []).append(wall)
        rows[name] = found

    for k in range(ROUNDS):
        for name, more in (("vlpipe, on Ray", ()), ("vlpipe, --local", ("--local",))):
            at = workflow(scratch / f"{name}{k}", folder, ROWS, least=LEAST)
            note(name, timed(ours(at, *more), time.monotonic()), num_rows(at, "root/kept-*/0*.parquet"))
        peers = [("plain Python loop", sys.executable, "plain"), ("Ray Data", sys.executable, "ray-data")]
        if curator:
            peers += [
                ("NeMo Curator, Xenna", curator, "xenna"),
                ("NeMo Curator, Ray Data", curator, "curator-ray-data"),
            ]
        for name, python, system in peers:
            out = scratch / f"{system}{k}"
            note(name, peer(python, system, folder, out), num_rows(out, "*.parquet"))
    return [
        [name, f"{statistics.median(all_):.1f}", " ".join(f"{x:.1f}" for x in all_), rows[name]]
        for name, all_ in walls.items()
    ]


def killed(scratch: Path) -> str:
    """A run killed by SIGKILL when half of its shards are there, and run again, beside one that was not killed."""
    folder = made(scratch / "killed", SHARDS, ROWS)
    whole = workflow(scratch / "whole", folder, ROWS, least=LEAST)
    timed(ours(whole), time.monotonic())
    calls = scratch / "calls"
    at = workflow(scratch / "again", folder, ROWS, least=LEAST, seconds=0.4, calls=str(calls))
    process = ours(at)
    while len(list(at.glob("root/kept-*/_receipts/*.json"))) < SHARDS // 2:
        if process.poll() is not None:
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)
    timed(ours(at), time.monotonic())
    worked = sum(map(int, calls.read_text().split()))
    files = [sorted(one.glob("root/kept-*/0*.parquet")) for one in (whole, at)]
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True)]
    again = (worked - SHARDS * ROWS) // ROWS
    return f"{sum(same)} of {SHARDS} shards have the same bytes as without a kill, and {again} were computed twice"


def j3(scratch: Path) -> list[list[object]]:
    """Rows that a counted stage before a filter works on, in a first and in a second run."""
    folder = made(scratch / "j3", J3_SHARDS, J3_ROWS // J3_SHARDS)
    found: list[list[object]] = []
    calls = scratch / "calls3"
    at = workflow(scratch / "j3-ours", folder, J3_ROWS // J3_SHARDS, least=17, calls=str(calls))
    counts = []
    for _ in range(2):
        timed(ours(at), time.monotonic())
        counts.append(sum(map(int, calls.read_text().split())))
    found.append(["vlpipe, on Ray", counts[0], counts[1] - counts[0]])
    out, counts = scratch / "j3-data", []
    for _ in range(2):
        peer(sys.executable, "checkpointed", folder, out)
        counts.append(sum(map(int, (out / "calls").read_text().split())))
    found.append([f"Ray Data with its checkpoint; 1 of {KEEP} rows kept", counts[0], counts[1] - counts[0]])
    return found


def page(curator: str | None) -> str:
    at = machine()
    with tempfile.TemporaryDirectory(prefix="vl") as name:
        scratch = Path(name)
        words, after, second = j2(scratch, curator), killed(scratch), j3(scratch)
    return (
        "\n\n".join(
            [
                "# Curation jobs beside NeMo Curator and Ray Data",
                f"Written by `python benchmarks/curation.py --write`. {machine_line(at)}",
                f"{SHARDS} JSONL files of {ROWS:,} rows, one CPU stage that keeps texts of at least {LEAST} words, Parquet "
                "out. A time is that of the whole command, with its start; the systems in turn. NeMo Curator 1.4.0 has "
                "cpus=0.25 for each stage, since with its default of 1 it does not start on 2 cores.",
                table(["", "median s", "each, s", "rows"], words),
                f"SIGKILL of vlpipe's driver at half of the shards (0.4 s of sleep in each), and a second run: {after}.",
                f"A stage before a filter over {J3_ROWS:,} rows, run again after it has ended:",
                table(["", "rows computed, first run", "rows computed, second run"], second),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curator", help="the Python of an environment with nemo-curator")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    text = page(given.curator)
    print(text)
    if given.write:
        (HERE / "curation.md").write_text(text)


if __name__ == "__main__":
    main()
