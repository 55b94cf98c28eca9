"""Counts the frames that each step of `workflows/video_demo.yaml` gets from the decoder, on few films.

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
    counts, step = Counter[str](), [""]
    frames, run_shard = shut_in.ShutInVideo.frames, local_executor.run_shard

    def counted(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        for found in frames(self, *args, **options):
            counts[step[0]] += 1
            yield found

    def noted(task: Any, *args: Any) -> Any:
        step[0] = Path(task.folder).name.rpartition("-")[0]
        return run_shard(task, *args)

    shut_in.ShutInVideo.frames = counted  # type: ignore[method-assign]
    local_executor.run_shard = noted
    with tempfile.TemporaryDirectory() as root:
        app.run(workflow, root=root, local=True, set_=FEW)
    for name, num in counts.items():
        print(f"{name}: {num:,} frames")


if __name__ == "__main__":
    main()
