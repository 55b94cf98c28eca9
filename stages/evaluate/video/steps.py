"""Step localisation on CrossTask: the recall of steps that a text-video model assigns to the seconds of a video, in
order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import Reject, is_heavy, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.video.encode import Encoder
from vlpipe.stages.evaluate.video.ordered import matched, ordered, read_annotation, read_tasks


@dataclass(frozen=True, kw_only=True)
class StepRecall(GatherStage):
    """Emits RESULTS: `recall/TASK` for each task with a video, `recall`, their mean, and `steps`, the number of present
    steps.

    Rows are videos with windows, each of which is scored with each step's text. Of the assignments of each of the task's
    steps to one window, in order, the one with the greatest sum of scores counts (Zhukov et al. 2019); recall is found
    steps / present steps of all videos of a task.

    tasks: `tasks_primary.txt`. annotations: the folder of `TASK_VIDEO.csv`; a video is evaluated for each task that it
    has a file for. streams: parameters of the model's makers. Reject codes: no_annotation (filtered), too_short (fault:
    fewer windows than steps).
    """

    NAME: ClassVar[str] = "evaluate.video.steps:StepRecall"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    tasks: File
    annotations: File
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.video.steps", id=pa.string(), video_id=pa.string())
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.video_capabilities import ScoresNarration
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [ScoresNarration])

    def run(self, job: Job) -> None:
        encoder = Encoder.load(self.model, self.streams)
        tasks = read_tasks(self.tasks.path)
        steps = {name: encoder.texts(task.steps) for name, task in tasks.items()}
        files: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for path in sorted(Path(self.annotations.path).glob("*_*.csv")):
            task, _, video = path.stem.partition("_")  # an id of a video may have _, too
            if task in tasks:
                files[video].append((task, path))
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        (column,) = encoder.makers["video"].COLUMNS
        for data in job.inputs:
            heavy = is_heavy(data.schema.field(column))
            light = ["id", "video_id", *(() if heavy else (column,))]
            for table in data.batches(light, [column] if heavy else []):
                for k, video in enumerate(table["video_id"].to_pylist()):
                    id_ = table["id"][k].as_py()
                    if video not in files:
                        job.reject(
                            [Reject(id_, "filtered", "no_annotation", f"no task has a file for {video}")]
                        )
                        continue
                    windows, centres = encoder.windows(table[column][k], id_)
                    for task, path in files[video]:
                        spans = read_annotation(path, len(tasks[task].steps))
                        if len(windows) < len(steps[task]):
                            why = f"{len(windows)} windows for {len(steps[task])} steps of task {task}"
                            job.reject([Reject(id_, "fault", "too_short", why)])
                            break
                        times = ordered((windows @ steps[task].T).astype(np.float64))
                        found[task].append(matched(times, centres, spans))
        if not found:
            raise VlpipeError("evaluate.video.steps: no video has an annotation of one of the tasks")
        job.emit(pa.Table.from_pylist(figures(found), RESULTS))


def figures(found: Mapping[str, list[tuple[int, int]]]) -> list[dict[str, Any]]:
    """Returns RESULTS rows. found: task -> (steps found, steps present) of each video."""
    sums = {task: tuple(map(sum, zip(*videos, strict=True))) for task, videos in sorted(found.items())}
    each = {task: hit / present for task, (hit, present) in sums.items() if present}
    rows = [
        {"name": f"recall/{task}", "value": value, "num_rows": sums[task][1]} for task, value in each.items()
    ]
    total = sum(present for _, present in sums.values())
    rows.append({"name": "recall", "value": float(np.mean([*each.values()] or [0.0])), "num_rows": total})
    return rows
