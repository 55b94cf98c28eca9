"""Counts the frames that each step of `workflows/video_demo.yaml` has decoded, on few films, and those decoded again.

A frame is a time in a film; one that a step wants in two sizes at once is decoded once. Again: an earlier step, or an
earlier reading in the same step, had that frame, too.

python benchmarks/frames_decoded.py                 # a minute
python benchmarks/frames_decoded.py OTHER.yaml      # another workflow on the same films
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlpipe.pipeline.cli import app
from vlpipe.pipeline.engine import local_executor
from vlpipe.stages.video import shut_in

HERE = Path(__file__).parent
FEW = [
    "world.num_train=8",
    "world.num_eval=6",
    "encoder.steps=2",
    "encoder.warmup_steps=0",
    "tokenizer.vocab_size=200",
]


def main() -> None:
    workflow = sys.argv[1] if len(sys.argv) > 1 else str(HERE.parent / "workflows" / "video_demo.yaml")
    counts, again, step = Counter[str](), Counter[str](), [""]
    known = set[tuple[str, float]]()
    frames, run_shard = shut_in.ShutInVideo.frames, local_executor.run_shard

    def counted(self: Any, times_s: Any, size: Any) -> Iterator[Any]:
        here = set[tuple[str, float]]()
        for index, picture in frames(self, times_s, size):
            here.add((self._child._video, round(float(times_s[index]), 6)))
            yield index, picture
        counts[step[0]] += len(here)
        again[step[0]] += len(here & known)
        known.update(here)

    def noted(task: Any, *args: Any) -> Any:
        step[0] = Path(task.folder).name.rpartition("-")[0]
        return run_shard(task, *args)

    shut_in.ShutInVideo.frames = counted  # type: ignore[method-assign]
    local_executor.run_shard = noted
    with tempfile.TemporaryDirectory() as root:
        app.run(workflow, root=root, local=True, set_=FEW)
    for name, num in counts.items():
        print(f"{name}: {num:,} frames, {again[name]:,} of them again")


if __name__ == "__main__":
    main()
