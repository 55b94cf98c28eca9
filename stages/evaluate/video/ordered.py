"""CrossTask: its files, and the best assignment of ordered steps to the seconds of a video.

Zhukov et al. 2019, https://arxiv.org/abs/1903.08225; https://github.com/DmZhukov/CrossTask.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.text_lines import lines_of

Scores = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CrossTaskTask:
    """A task: its id, title, and steps in order."""

    id: str
    title: str
    steps: tuple[str, ...]


def read_tasks(path: str | Path) -> dict[str, CrossTaskTask]:
    """Returns the tasks of `tasks_primary.txt` by id: blocks of id, title, URL, number of steps, steps with commas between.

    Raises VlpipeError for a block of another form, naming file and line.
    """
    try:
        lines = lines_of(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise VlpipeError(f"{path} is not UTF-8 text: {error}") from error
    found: dict[str, CrossTaskTask] = {}
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        block = [line.strip() for line in lines[at : at + 5]]
        steps = tuple(step.strip() for step in block[4].split(",")) if len(block) == 5 else ()
        if len(block) < 5 or not block[3].isdecimal() or int(block[3]) != len(steps) or not all(steps):
            raise VlpipeError(
                f"{path}, line {at + 1}: wanted five lines, id, title, URL, number of steps and so many steps with commas "
                f"between, got {block}"
            )
        if block[0] in found:
            raise VlpipeError(f"{path}, line {at + 1}: task {block[0]} is there twice")
        found[block[0]] = CrossTaskTask(block[0], block[1], steps)
        at += 5
    return found


def read_annotation(path: str | Path, num_steps: int) -> list[tuple[int, float, float]]:
    """Returns (step from 0, start, end in seconds) of each line `step,start,end` of a video's file; steps there are from 1.

    Raises VlpipeError for a line of another form or a step that the task does not have.
    """
    found = []
    with open(
        path, encoding="utf-8-sig", errors="backslashreplace", newline=""
    ) as file:  # numbers alone are right
        for number, row in enumerate(csv.reader(file), 1):
            try:
                step, start_s, end_s = int(row[0]), float(row[1]), float(row[2])
                good = len(row) == 3 and 1 <= step <= num_steps and 0 <= start_s <= end_s < math.inf
            except (ValueError, IndexError):
                good = False
            if not good:
                raise VlpipeError(
                    f"{path}, line {number}: wanted step,start,end with a step from 1 to {num_steps}, got {row}"
                )
            found.append((step - 1, start_s, end_s))
    return found


def ordered(scores: Scores) -> Ints:
    """Returns the time (K,) of each of K steps, each after the one before it, with the greatest sum of scores.

    scores: (T, K) of times and steps. Ties: the earliest time of the last step, then of the one before it, and so on. Takes
    O(T K). Raises ValueError if T < K.
    """
    num_times, num_steps = scores.shape
    if num_times < num_steps:
        raise ValueError(f"{num_steps} steps in order need as many times, got {num_times}")
    before = np.zeros(num_times)  # the best sum of the steps so far, all before time t
    backs = np.empty((num_steps, num_times), np.int64)
    for k in range(num_steps):
        sums = np.where(np.arange(num_times) < k, -np.inf, before + scores[:, k])
        best = np.maximum.accumulate(sums)
        is_new = np.concatenate([[True], sums[1:] > best[:-1]])
        backs[k] = np.maximum.accumulate(np.where(is_new, np.arange(num_times), 0))
        before = np.concatenate([[-np.inf], best[:-1]])
    found, stop = np.empty(num_steps, np.int64), num_times - 1
    for k in reversed(range(num_steps)):
        found[k] = backs[k, stop]
        stop = found[k] - 1
    return found


def matched(times: Ints, centres: Scores, spans: list[tuple[int, float, float]]) -> tuple[int, int]:
    """Returns (steps found, steps present) of a video: a present step is found if its time is in one of its spans.

    times: (K,) indices into `centres` (T,), the middles of windows in seconds. spans: of `read_annotation`, which are made
    longer to whole seconds, as in the authors' code.
    """
    present = {step for step, _, _ in spans}
    hit = {
        step
        for step, start_s, end_s in spans
        if math.floor(start_s) <= centres[times[step]] < max(math.ceil(end_s), math.floor(start_s) + 1)
    }
    return len(hit), len(present)
