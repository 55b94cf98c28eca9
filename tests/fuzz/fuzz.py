"""Searches for inputs that are neither a row nor a typed reject, and for shapes that take more than linear time.

    python tests/fuzz/fuzz.py                        # all kinds, about five minutes (`make fuzz`)
    python tests/fuzz/fuzz.py --kinds urls --seed 7  # other inputs of one kind
    python tests/fuzz/fuzz.py --replay               # the seeds and what is stored, as `make test` does

Half of the time goes to mutants of the seeds, half to shapes. The time of a shape is CPU time, best of 3, at n, 2n and
4n, where n takes at least 50 ms: neither step may take more than 3 times as long. What is found is stored in stored/KIND/,
as the input or as the shape, and is read by every replay. A kind runs in a process of its own; an input that
kills it, or takes 20 s, is a finding. Exit code 1 if anything was found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from kind import Kind, Shape, mutant, shape

MODULES = {
    "subtitles": "subtitle_files",
    "lists": "url_lists",
    "json": "json_files",
    "urls": "url_strings",
    "responses": "http_responses",
    "images": "image_files",
    "workflows": "workflow_files",
    "completions": "chat_completions",
}
STORED = Path(__file__).parent / "stored"
SHAPE = ".shape.json"
FOUND_SOME = 3  # exit code of a search
MEASURED_S, MAX_RATIO = 0.05, 3.0
SUSPECT = 2.5  # a ratio of one measurement, above which it is done three times
HANGS_S = 20.0  # CPU time
MUTANT_S = 2.0  # CPU time of an input of at most MAX_MUTANT_BYTES
REPLAY_BYTES = 50_000  # of each stored shape
REPLAY_CPU_S = 20  # for everything that is stored, the seeds, and the start of Python


def kind_of(name: str) -> Kind:
    found: Kind = import_module(MODULES[name]).KIND
    return found


@contextmanager
def ends_what_hangs() -> Iterator[None]:
    """Context manager: a signal ends the process after HANGS_S CPU seconds in it, whatever C code is running."""
    signal.setitimer(signal.ITIMER_PROF, HANGS_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def cpu_s(kind: Kind, data: bytes) -> float:
    with ends_what_hangs():
        begin = time.process_time()
        kind.refuses(data)
        return time.process_time() - begin


def slope(kind: Kind, made: Shape) -> tuple[float, int] | None:
    """Returns (the larger of the two ratios, n), or None if the largest shape takes less than MEASURED_S.

    A ratio above MAX_RATIO is measured again with twice and four times the n: caches and other processes cost time, too.
    A file may be read in another way from some size on, and then take seconds at once: sizes that would take too long are
    left out.
    """
    n = 1 << 10
    while cpu_s(kind, made.of(n)) < MEASURED_S:
        n *= 2
        if n > kind.max_bytes:
            return None
    ratio = steepest(once := times_of(kind, made, n, 1))
    for _ in range(3 if ratio > SUSPECT else 0):
        times = times_of(kind, made, n, 3, len(once))
        if len(times) < 2:
            break
        ratio = steepest(times)
        if ratio <= MAX_RATIO:
            break
        n *= 2
    return ratio, n


def times_of(kind: Kind, made: Shape, n: int, best_of: int, num: int = 3) -> list[float]:
    """Returns the CPU seconds, best of some, at n, 2n, ...: `num` of them, without those that might take HANGS_S."""
    times: list[float] = []
    while len(times) < num and (not times or 4 * times[-1] <= HANGS_S):
        data = made.of(n << len(times))
        times.append(min(cpu_s(kind, data) for _ in range(best_of)))
    return times


def steepest(times: list[float]) -> float:
    return max((b / max(a, MEASURED_S / 2) for a, b in pairwise(times)), default=0.0)


class Search:
    """A search among one kind. current: a file with the input that is being read, for the process that watches."""

    def __init__(self, kind: Kind, rng: random.Random, current: Path) -> None:
        self.kind, self.rng, self.current = kind, rng, current
        self.places: set[str] = set()  # where faults were found, so that each is stored once
        self.num_mutants = self.num_refused = self.num_shapes = self.num_measured = 0
        self.steepest = self.slowest_s = 0.0

    def mutants(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = mutant(self.rng, self.kind)
            self.current.write_bytes(data)
            begin = time.process_time()
            try:
                with ends_what_hangs():
                    self.num_refused += self.kind.refuses(data)
            except Exception as error:
                self.store(data, error)
            self.num_mutants += 1
            took = time.process_time() - begin
            self.slowest_s = max(self.slowest_s, took)
            if took > MUTANT_S:
                self.store(data, TimeoutError(f"{took:.1f} CPU s for {len(data)} bytes"))

    def shapes(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            made = shape(self.rng, self.kind)
            self.current.write_text(dumped(made))
            try:
                found = slope(self.kind, made)
            except Exception as error:
                self.store(dumped(made).encode(), error, SHAPE)
                continue
            self.num_shapes += 1
            if found:
                self.num_measured += 1
                self.steepest = max(self.steepest, found[0])
                if found[0] > MAX_RATIO:
                    said = f"{found[0]:.1f} times the time for twice the size, from {found[1]} bytes on"
                    self.store(dumped(made).encode(), TimeoutError(said), SHAPE)

    def store(self, data: bytes, error: Exception, ending: str = "") -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = (
            f"{type(error).__name__} in {frames[-1].filename}:{frames[-1].lineno}" if frames else str(data)
        )
        if place not in self.places:
            self.places.add(place)
            print(
                f"FOUND {self.kind.name}: {stored(self.kind.name, data, ending)}: {place}: {str(error)[:300]!r}",
                flush=True,
            )

    def report(self) -> None:
        print(
            f"{self.kind.name}: {self.num_mutants} mutants ({self.num_refused} refused, slowest {self.slowest_s:.2f} s), "
            f"{self.num_shapes} shapes ({self.num_measured} took {MEASURED_S} s, steepest {self.steepest:.1f} times), "
            f"{len(self.places)} found",
            flush=True,
        )


def dumped(made: Shape) -> str:
    return json.dumps(
        {name: part.decode("latin-1") for name, part in made._asdict().items() if part}, indent=1
    )


def loaded(text: str) -> Shape:
    parts = {"before": "", "middle": "", "closing": "", "after": "", **json.loads(text)}
    return Shape(**{name: part.encode("latin-1") for name, part in parts.items()})


def stored(kind: str, data: bytes, ending: str = "") -> Path:
    path = STORED / kind / f"{hashlib.sha256(data).hexdigest()[:10]}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def search(name: str, seconds: float, seed: int, current: Path) -> int:
    kind = kind_of(name)
    for data in kind.seeds:
        kind.refuses(data)  # imports and caches, which no input shall pay for
    found = Search(kind, random.Random(f"{name} {seed}"), current)
    found.mutants(seconds / 2)
    found.shapes(seconds / 2)
    found.report()
    return FOUND_SOME if found.places else 0


def watched(name: str, seconds: float, seed: int) -> bool:
    """Runs `search` in another process; returns whether something was found. One that dies is continued."""
    found = False
    with tempfile.TemporaryDirectory() as folder:
        current, printed = Path(folder, "current"), Path(folder, "printed")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            current.write_bytes(b"")
            command = [
                sys.executable,
                __file__,
                "--search",
                name,
                str(end - time.monotonic()),
                str(seed),
                str(current),
            ]
            with printed.open("wb") as errors:  # of decoders, mostly
                code = subprocess.run(command, stderr=errors, check=False).returncode
            if code in (0, FOUND_SOME):
                return found or code == FOUND_SOME
            data = current.read_bytes()
            print(printed.read_text(errors="replace")[-2000:])
            ending = SHAPE if data.startswith(b'{\n "') else ""
            print(
                f"FOUND {name}: {stored(name, data, ending)}: it takes too long, or kills the process ({code})",
                flush=True,
            )
            found, seed = True, seed + 1
    return found


def replay(names: list[str]) -> None:
    """Reads all seeds and what is stored. Raises at the first that is neither read nor refused."""
    resource.setrlimit(resource.RLIMIT_CPU, (REPLAY_CPU_S, REPLAY_CPU_S))
    for name in names:
        kind = kind_of(name)
        files = sorted(path for path in (STORED / name).glob("*") if path.is_file())
        for data in kind.seeds:
            kind.refuses(data)
        slowest = 0.0
        for path in files:
            print(f"{name}: {path.name}", file=sys.stderr, flush=True)
            data = path.read_bytes()
            data = loaded(data.decode()).of(REPLAY_BYTES) if path.name.endswith(SHAPE) else data
            slowest = max(slowest, cpu_s(kind, data))
        print(
            f"{name}: {len(kind.seeds)} seeds and {len(files)} stored inputs, the slowest takes {slowest:.2f} CPU s",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--seconds", type=float, default=300.0, help="for all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", action="store_true")
    parser.add_argument(
        "--search", nargs=4, metavar=("KIND", "SECONDS", "SEED", "CURRENT"), help=argparse.SUPPRESS
    )
    asked = parser.parse_args()
    if asked.search:
        name, seconds, seed, current = asked.search
        return search(name, float(seconds), int(seed), Path(current))
    if asked.replay:
        replay(asked.kinds)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return int(sum([watched(name, asked.seconds / len(asked.kinds), asked.seed) for name in asked.kinds]) > 0)


if __name__ == "__main__":
    sys.exit(main())
