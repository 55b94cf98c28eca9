"""`python tests/pipeline/incremental --cases 5000 --seed 0`: draw cases, play them, say what was found.

Cases are numbered; a seed and a number make a case. --log FILE keeps what was played, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)

import pyarrow  # noqa: E402

pyarrow.set_cpu_count(1)  # forks: no pool of threads, and many processes
pyarrow.set_io_thread_count(1)

from incremental.case import DEEDS, KINDS, Drawn, draw, play  # noqa: E402

import vlpipe.pipeline.verbs  # noqa: E402, F401  # loaded once, before any fork
from vlpipe.pipeline import receipt  # noqa: E402
from vlpipe.pipeline.pandas_later import leave_pandas_alone  # noqa: E402

AT_LEAST = 20
MEMORY = "/dev/shm"  # an fsync costs nothing there, and a SIGKILL loses none of it


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=0, help="draw no new case after so long; 0: no bound"
    )
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--log", help="a file: one line per case; cases in it are not played again")
    parser.add_argument("--keep", help="a folder where the projects of failed cases stay")
    parser.add_argument("--leave-out", default="", help="kinds of edits and stages that are not drawn: a,b")
    parser.add_argument("--kinds", default="", help="only these kinds of edits: a,b")
    parser.add_argument(
        "--ray-every", type=int, default=0, help="each so many cases, the last runs are on Ray"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument(
        "--shrink", action="store_true", help="leave out of failed cases what they do not need"
    )
    return parser.parse_args()


def one(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Play case `number`; returns its line of the log."""
    leave_out, kinds = split(options.leave_out), split(options.kinds)
    drawn = draw(number, options.seed, leave_out, kinds)
    began = time.monotonic()
    ray = bool(options.ray_every) and number % options.ray_every == options.ray_every // 2
    line = {"case": number, **played(drawn, options, ray)}
    line["seconds"] = round(time.monotonic() - began, 2)
    if options.shrink and line["found"]:
        line |= {"smallest": shrunk(drawn, line["found"], options)}
    return line


def split(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def played(drawn: Drawn, options: argparse.Namespace, ray: bool = False) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="incremental-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    try:
        case, found = play(drawn, folder, ray)
        failed: dict[str, Any] = {}
        if found is not None:
            failed = {"text": found.text, "story": case.story}
        if found is not None and options.keep:
            failed["kept"] = shutil.copytree(folder, Path(options.keep) / folder.name)
        return {"counts": dict(case.counts), "found": found.kind if found else "", **failed}
    except Exception:
        return {"counts": {}, "found": "the test itself failed", "text": traceback.format_exc(), "story": []}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shrunk(drawn: Drawn, found: str, options: argparse.Namespace) -> dict[str, Any]:
    """The case without each deed that it fails without, too."""
    deeds = list(drawn.deeds)
    best: dict[str, Any] = {}
    for deed in list(deeds):
        fewer = [d for d in deeds if d != deed]
        again = played(Drawn(drawn.project, tuple(fewer), drawn.leave_out), options)
        if again["found"] == found:
            deeds, best = fewer, again
    return {"deeds": deeds, "text": best.get("text", ""), "story": best.get("story", [])}


def worker(numbers: Any, results: Any, options: argparse.Namespace, deadline: float) -> None:
    while time.monotonic() < deadline:
        with numbers.get_lock():
            number = numbers.value
            numbers.value += 1
        if number >= options.first + options.cases:
            break
        results.put(one(number, options) if number not in options.played else None)
    results.put("end")


def warm() -> None:
    """What each fork would do again."""
    leave_pandas_alone()
    receipt.installed = functools.cache(receipt.installed)
    for name in ("vlpipe", "pyarrow", "torch", "ray"):
        receipt.installed(name)
    gc.freeze()


def main() -> int:
    options = arguments()
    warm()
    lines = (
        [json.loads(t) for t in Path(options.log).read_text().splitlines()]
        if options.log and os.path.exists(options.log)
        else []
    )
    options.played = {line["case"] for line in lines}
    began = time.monotonic()
    for line in playing(options):
        lines.append(line)
        if line["found"]:
            tell(line, options)
        if options.log:
            with open(options.log, "a") as file:
                file.write(json.dumps(line) + "\n")
        if line["found"] and options.stop:
            break
    return summary(lines, time.monotonic() - began, options)


def playing(options: argparse.Namespace) -> Any:
    """Lines of the log, as cases end."""
    context = multiprocessing.get_context("fork")
    numbers, results = context.Value("q", options.first), context.Queue()
    deadline = time.monotonic() + (options.seconds or 10**9)
    processes = [
        context.Process(target=worker, args=(numbers, results, options, deadline))
        for _ in range(options.processes)
    ]
    for process in processes:
        process.start()
    ended = 0
    try:
        while ended < len(processes):
            line = results.get()
            if line == "end":
                ended += 1
            elif line is not None:
                yield line
    finally:
        for process in processes:
            process.terminate()
            process.join()


def tell(line: dict[str, Any], options: argparse.Namespace) -> None:
    line = {**line, **line.get("smallest", {})} if line.get("smallest", {}).get("story") else line
    print(f"\ncase {line['case']} of seed {options.seed}: {line['found']}")
    for said in line["story"]:
        print("   ", said[:1500])
    print("   ", line["text"][-2500:], flush=True)


def summary(lines: list[dict[str, Any]], seconds: float, options: argparse.Namespace) -> int:
    counts = Counter[str]()
    for line in lines:
        counts.update(line["counts"])
    failed = Counter(line["found"] for line in lines if line["found"])
    wanted = [k for k in (split(options.kinds) or KINDS) if k not in split(options.leave_out)]
    print(", ".join(f"{kind} {counts[kind]}" for kind in wanted))
    print(
        f"{len(lines)} of {options.cases} cases in {seconds:.0f} s, {counts.total()} edits, {failed.total()} failed"
    )
    for kind, num in failed.most_common():
        numbers = [line["case"] for line in lines if line["found"] == kind]
        print(f"  {num} x {kind}  (cases {numbers[:8]})")
    rare = {k: counts[k] for k in wanted if counts[k] < AT_LEAST}
    if len(lines) >= 300 and rare:
        print(f"drawn less than {AT_LEAST} times: {rare}")
        return 1
    return 1 if failed else 0


assert set(DEEDS) < set(KINDS)

if __name__ == "__main__":
    sys.exit(main())
