"""CrossTask's annotations: the steps of a task in each of its videos.

Zhukov et al. 2019, https://arxiv.org/abs/1903.08225; https://github.com/DmZhukov/CrossTask.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import File
from vlpipe.stages.clips.spans import CutsSpans, SpansByVideo
from vlpipe.stages.evaluate.video.ordered import read_annotation, read_tasks


@dataclass(frozen=True, kw_only=True)
class CrossTask(CutsSpans):
    """Turns video rows into one clip per annotated step, with the step's name; see `CutsSpans`.

    tasks: `tasks_primary.txt`. annotations: the folder of `TASK_VIDEO.csv`; those of other tasks are left out. videos:
    `videos.csv` or `videos_val.csv`, lines `TASK,VIDEO,URL`: these videos alone; None for all. A step that is said to take
    no time is left out. For the recall of steps in order, `evaluate.video.steps` reads tasks and annotations itself.
    """

    NAME: ClassVar[str] = "annotated.crosstask:CrossTask"

    tasks: File
    annotations: File
    videos: File | None = None

    def spans_by_video(self) -> SpansByVideo:
        tasks = read_tasks(self.tasks.path)
        listed = None if self.videos is None else read_videos(self.videos.path)
        found: SpansByVideo = {}
        for path in sorted(Path(self.annotations.path).glob("*_*.csv")):
            task, _, video = path.stem.partition("_")  # an id of a video may have _, too
            if task not in tasks or (listed is not None and (task, video) not in listed):
                continue
            steps = tasks[task].steps
            for step, start_s, end_s in read_annotation(path, len(steps)):
                if start_s < end_s:
                    found.setdefault(video, {}).setdefault((start_s, end_s), []).append(steps[step])
        if not found:
            raise VlpipeError(
                f"{self.annotations.path}: there is no TASK_VIDEO.csv of a task in {self.tasks.path}"
            )
        return found


def read_videos(path: str | Path) -> set[tuple[str, str]]:
    """Returns the (task, video) of each line `TASK,VIDEO,URL`. Raises VlpipeError for a line of another form."""
    found = set()
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.reader(file, strict=True), 1):
            if len(row) != 3 or not all(value.strip() for value in row):
                raise VlpipeError(f"{path}, line {number}: wanted TASK,VIDEO,URL, got {shown(row)}")
            found.add((row[0].strip(), row[1].strip()))
    return found
