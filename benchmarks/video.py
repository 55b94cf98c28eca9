"""Frames per second of our decoding beside PyAV by hand, decord and torchcodec, one thread each, at short and long GOPs.

python benchmarks/video.py --peer PYTHON      # about 6 minutes; prints Markdown
python benchmarks/video.py --peer PYTHON --write    # and puts it into video.md and video.json beside this file

PYTHON: an interpreter that has `decord`, `torchcodec`, or both; without --peer they are looked for in this one. torchcodec
wants FFmpeg's shared libraries on LD_LIBRARY_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import video_film
from record import machine
from video_page import BY_CLIP, OURS, markdown

HERE = Path(__file__).parent
GOPS = (30, 250)
ROUNDS = 5
ENOUGH_S = 420.0  # no further round is begun after this
NUM_CLIPS, CLIP_S, CLIP_FPS = 20, 3.2, 10  # MIL-NCE's released model: 32 frames at 10 per second
SKIP = {  # what makes no sense there
    "one per second": (BY_CLIP, "PyAV, seek per clip"),
    "clips": ("PyAV, seek per time",),
}
IN_PEER = ("decord", "torchcodec, exact", "torchcodec, approximate")
BY_HAND = ("PyAV, sequential", "PyAV, seek per time", "PyAV, seek per clip")


class Worker:
    """A Python that does one job after another; its imports and first job are not timed."""

    def __init__(self, python: str) -> None:
        command = [python, str(HERE / "video_ways.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, way: str, path: Path, clips: Sequence[Sequence[float]]) -> dict[str, Any] | None:
        """None: it died, as when a package is missing."""
        assert self._process.stdin
        assert self._process.stdout
        job = {"way": way, "path": str(path), "clips": [list(times) for times in clips]}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        return json.loads(answer) if answer else None

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def workers(peer: str, film: Path) -> Iterator[dict[str, Worker]]:
    """A process for each way that works here, warmed up."""
    found: dict[str, Worker] = {}
    try:
        for way in (OURS, BY_CLIP, *BY_HAND, *IN_PEER):
            one = Worker(peer if way in IN_PEER else sys.executable)
            if one.do(way, film, [[0.0, 1.0]]) is None:
                say(f"{way} was skipped: see its error above")
                one.close()
            else:
                found[way] = one
        yield found
    finally:
        for one in found.values():
            one.close()


def cases(seconds: int) -> dict[str, list[list[float]]]:
    starts = np.random.default_rng(0).uniform(0, seconds - CLIP_S - 1, NUM_CLIPS)
    clips = [[float(start + k / CLIP_FPS) for k in range(round(CLIP_S * CLIP_FPS))] for start in starts]
    return {"one per second": [[float(k) for k in range(seconds)]], "clips": clips}


def measure(
    ways: dict[str, Worker], films: dict[int, Path], seconds: int, rounds: int
) -> list[dict[str, Any]]:
    """Every way in turn, so that what else the machine does meets all of them alike."""
    began, found = time.monotonic(), []
    for turn in range(rounds):
        if turn and time.monotonic() - began > ENOUGH_S:
            break
        for gop, film in films.items():
            for case, clips in cases(seconds).items():
                for way, worker in ways.items():
                    if way in SKIP[case]:
                        continue
                    said = worker.do(way, film, clips)
                    assert said is not None, f"{way} died"
                    assert said["frames"] == sum(map(len, clips)), (way, said)
                    found.append({"way": way, "gop": gop, "case": case, **said})
                    say(f"{case}, GOP {gop}, {way}: {said['cpu_s']:.2f} s")
    return found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", default=sys.executable, help="a Python that has decord and torchcodec")
    parser.add_argument("--seconds", type=int, default=300, help="length of the film")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="write video.md and video.json")
    asked = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "seconds": asked.seconds}
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        films = {gop: Path(folder) / f"gop{gop}.mp4" for gop in GOPS}
        for gop, film in films.items():
            video_film.write(film, asked.seconds, gop)
        with workers(asked.peer, films[GOPS[0]]) as ways:
            found["measured"] = measure(ways, films, asked.seconds, asked.rounds)
    found["machine"]["load_average_after"] = [round(x, 2) for x in os.getloadavg()]
    page = markdown(found)
    print(page)
    if asked.write:
        (HERE / "video.md").write_text(page)
        (HERE / "video.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
