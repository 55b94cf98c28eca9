"""Progress lines from the training worker to the console.

They pass through a file, because the worker may run in another process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

POLL_S = 0.2
PER_STEP = "per_step_s.txt"  # beside the progress lines: seconds per step
T = TypeVar("T")


class Progress:
    """Appends progress lines to the file `path`.

    step: the step at which this process starts or resumes; speed and remaining time are measured from there.
    peak_flops: FLOP/s of all devices together, for MFU; None if it is not known.
    """

    def __init__(
        self, path: Path, *, step: int, num_steps: int, batch_size: int, peak_flops: float | None = None
    ) -> None:
        self.path, self.first_step, self.num_steps, self.batch_size = path, step, num_steps, batch_size
        self.peak_flops = peak_flops
        self.since_s = self._reported_s = time.monotonic()
        self._waited_s = 0.0
        self._first_s: float | None = None  # when the first step of this process was done

    def stepped(self, step: int) -> None:
        """Notes that a step is done; after the last one, writes the seconds per step, without those of the first one."""
        now = time.monotonic()
        self._first_s = now if self._first_s is None else self._first_s
        if step == self.num_steps and step - self.first_step > 1:
            per_step_s = (now - self._first_s) / (step - self.first_step - 1)
            self.path.with_name(PER_STEP).write_text(f"{per_step_s:.9f}")

    def waiting(self, batches: Iterator[T], num: int) -> list[T]:
        """Returns the next `num` batches; counts the time that the loader takes."""
        began = time.monotonic()
        found = list(islice(batches, num))
        self._waited_s += time.monotonic() - began
        return found

    def report(
        self, step: int, means: Mapping[str, float], loader_rate: float = 0.0, flops: float | None = None
    ) -> None:
        """Appends a line with the step, the mean losses, samples per second and the remaining seconds.

        loader_rate: samples per second that the loader can make, 0 if it is not known; with it, the line also has the share
        of the time since the last line that training waited for the loader. flops: of the steps since the start of this
        process, of all ranks (`models.flops`); None: not counted.
        """
        now = time.monotonic()
        seconds = max(1e-9, now - self.since_s)
        per_step_s = seconds / max(1, step - self.first_step)
        shown = [f"{name} {value:.4g}" for name, value in means.items()]
        speed = f"{self.batch_size / per_step_s:,.0f} samples/s"
        if loader_rate:
            waited = self._waited_s / max(1e-9, now - self._reported_s)
            speed += f" (loader {loader_rate:,.0f}, waited {waited:.0%})"
        self._reported_s, self._waited_s = now, 0.0
        left = f"{(self.num_steps - step) * per_step_s:,.0f} s left"
        rates = [] if flops is None else self._rates(flops / seconds)
        self.say("  ".join([f"step {step}/{self.num_steps}", *shown, speed, *rates, left]))

    def _rates(self, flops_per_s: float) -> list[str]:
        mfu = [] if self.peak_flops is None else [f"MFU {flops_per_s / self.peak_flops:.1%}"]
        return [f"{flops_per_s / 1e12:.3g} TFLOP/s", *mfu]

    def say(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line + "\n")


@contextmanager
def following(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Context manager in which a thread calls `say` with each line that is appended to the file `path`."""
    path.touch()
    start, done = path.stat().st_size, threading.Event()

    def follow() -> None:
        rest = ""
        with path.open(encoding="utf-8", errors="replace") as file:
            file.seek(start)
            while True:
                last = done.wait(POLL_S)
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    say(line)
                if last:
                    return

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
