"""`python tests/pipeline/incremental --cases 5000 --seed 0`: draw cases, play them, say what was found.

Cases are numbered; a seed and a number make a case. --log FILE keeps what was played, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from incremental.case import play  # noqa: E402
from incremental.child import warm  # noqa: E402
from incremental.drawn import KINDS, Drawn, draw  # noqa: E402
from incremental.mutants import MUTANTS  # noqa: E402

AT_LEAST = 20
MEMORY = "/dev/shm"  # an fsync costs nothing there, and a SIGKILL loses none of it


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=0, help="play no new case after so long; 0: no bound"
    )
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--log", help="a file: a line per case; cases in it are not played again")
    parser.add_argument("--keep", help="a folder where the projects of failed cases stay")
    parser.add_argument("--leave-out", default="", help="kinds of edits and stages that are not drawn: a,b")
    parser.add_argument("--kinds", default="", help="only these kinds of edits: a,b")
    parser.add_argument("--deeds", default="", help="exactly these edits, in this order: a,b")
    parser.add_argument(
        "--ray-every", type=int, default=0, help="each so many cases, the last runs are on Ray"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument(
        "--shrink", action="store_true", help="leave out of failed cases what they do not need"
    )
    parser.add_argument("--without", choices=sorted(MUTANTS), help="with this mend of the engine taken out")
    options = parser.parse_args()
    for name in ("leave_out", "kinds", "deeds"):
        setattr(options, name, [word for word in getattr(options, name).split(",") if word])
    return options


def main() -> int:
    options = arguments()
    warm()
    if options.without:
        MUTANTS[options.without]()
    lines = logged(options.log)
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


def logged(log: str | None) -> list[dict[str, Any]]:
    if not log or not os.path.exists(log):
        return []
    return [json.loads(line) for line in Path(log).read_text().splitlines()]


# --- one case ---


def one(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Play case `number`; returns its line of the log."""
    drawn = draw(number, options.seed, options.leave_out, options.kinds)
    if options.deeds:
        deeds = tuple((kind, f"{options.seed}:{number}:{at}") for at, kind in enumerate(options.deeds))
        drawn = Drawn(drawn.project, deeds, drawn.leave_out)
    ray = bool(options.ray_every) and number % options.ray_every == options.ray_every // 2
    began, used = time.monotonic(), cpu_seconds()
    line = {"case": number, **played(drawn, options, ray)}
    line |= {"seconds": round(time.monotonic() - began, 2), "cpu": round(cpu_seconds() - used, 2)}
    if options.shrink and line["found"]:
        line["smallest"] = shrunk(drawn, line, options)
    return line


def cpu_seconds() -> float:
    """Of this process and of the children it has seen the end of."""
    return sum(os.times()[:4])


def played(drawn: Drawn, options: argparse.Namespace, ray: bool = False) -> dict[str, Any]:
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="incremental-", dir=memory))
    failed: dict[str, Any] = {}
    try:
        case, found = play(drawn, folder, ray)
        if found is not None:
            failed = {"text": found.text, "story": case.story}
        if found is not None and options.keep:
            failed["kept"] = str(shutil.copytree(folder, Path(options.keep) / folder.name))
        return {"counts": dict(case.counts), "found": found.kind if found else "", **failed}
    except Exception:
        return {"counts": {}, "found": "the test itself failed", "text": traceback.format_exc(), "story": []}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shrunk(drawn: Drawn, line: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The case without each edit that it fails without, too."""
    deeds, best = list(drawn.deeds), line
    for deed in drawn.deeds:
        fewer = tuple(d for d in deeds if d != deed)
        again = played(Drawn(drawn.project, fewer, drawn.leave_out), options)
        if again["found"] == line["found"]:
            deeds, best = list(fewer), again
    return {"deeds": deeds, "text": best["text"], "story": best["story"]}


# --- many cases ---


def worker(pipe: Connection, options: argparse.Namespace) -> None:
    """Play the cases whose numbers come, until none comes any more or the parent is gone."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(one(pipe.recv(), options))


def playing(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Lines of the log, as cases end."""
    left = [n for n in range(options.first, options.first + options.cases) if n not in options.played][::-1]
    deadline = time.monotonic() + (options.seconds or 10**9)
    busy = [pipe for pipe in start_workers(options) if give(pipe, left)]
    while busy:
        for pipe in wait(busy):
            assert isinstance(pipe, Connection)
            yield pipe.recv()
            if time.monotonic() > deadline or not give(pipe, left):
                busy.remove(pipe)


def start_workers(options: argparse.Namespace) -> list[Connection]:
    pipes: list[Connection] = []
    for _ in range(options.processes):
        mine, its = Pipe()
        if os.fork() == 0:
            for other in (*pipes, mine):  # else a worker would not see that the parent is gone
                other.close()
            worker(its, options)
            os._exit(0)
        its.close()
        pipes.append(mine)
    return pipes


def give(pipe: Connection, left: list[int]) -> bool:
    """Send the worker the next number; False when there is none."""
    if not left:
        return False
    pipe.send(left.pop())
    return True


def tell(line: dict[str, Any], options: argparse.Namespace) -> None:
    said = {**line, **line.get("smallest", {})}
    print(f"\ncase {line['case']} of seed {options.seed}: {line['found']}")
    for text in said["story"]:
        print("   ", text[:1500])
    print("   ", said["text"][-2500:], flush=True)


def summary(lines: list[dict[str, Any]], seconds: float, options: argparse.Namespace) -> int:
    counts = Counter[str]()
    for line in lines:
        counts.update(line["counts"])
    failed = Counter(line["found"] for line in lines if line["found"])
    wanted = [k for k in (options.deeds or options.kinds or KINDS) if k not in options.leave_out]
    print(
        ", ".join(
            f"{kind} {counts[kind]}" for kind in dict.fromkeys(wanted) if counts[kind] or len(lines) > 50
        )
    )
    cpu = sum(line["cpu"] for line in lines)
    print(
        f"{len(lines)} of {options.cases} cases in {seconds:.0f} s ({cpu:.0f} s of CPU), {counts.total()} edits, "
        f"{failed.total()} failed"
    )
    for kind, num in failed.most_common():
        numbers = [line["case"] for line in lines if line["found"] == kind]
        print(f"  {num} x {kind}  (cases {numbers[:8]})")
    rare = {k: counts[k] for k in wanted if counts[k] < AT_LEAST}
    if len(lines) >= 300 and rare:
        print(f"drawn less than {AT_LEAST} times: {rare}")
    return 1 if failed or (len(lines) >= 300 and rare) else 0


if __name__ == "__main__":
    sys.exit(main())
