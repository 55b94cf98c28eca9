"""The jobs of `curation.py` by others, each a process of its own: `python curation_peers.py SYSTEM FOLDER OUT`.

They write plain Parquet. Prints a line of JSON with what was counted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LEAST = 9  # words
KEEP = 4  # ck: one row in so many is kept


def plain(folder: str, out: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(Path(folder).glob("*.jsonl")):
        rows = [json.loads(line) for line in path.open()]
        kept = [row for row in rows if len(row["text"].split()) >= LEAST]
        pq.write_table(pa.Table.from_pylist(kept), Path(out, f"{path.stem}.parquet"))


def curator(folder: str, out: str, backend: str) -> None:
    from dataclasses import dataclass, field

    from nemo_curator.pipeline import Pipeline
    from nemo_curator.stages.base import ProcessingStage
    from nemo_curator.stages.resources import Resources
    from nemo_curator.stages.text.io.reader import JsonlReader
    from nemo_curator.stages.text.io.writer import ParquetWriter
    from nemo_curator.tasks import DocumentBatch

    @dataclass
    class EnoughWords(ProcessingStage[DocumentBatch, DocumentBatch]):
        name: str = "enough_words"
        resources: Resources = field(default_factory=lambda: Resources(cpus=0.25))

        def inputs(self) -> tuple[list[str], list[str]]:
            return ["data"], ["text"]

        def outputs(self) -> tuple[list[str], list[str]]:
            return ["data"], ["text"]

        def process(self, task: DocumentBatch) -> DocumentBatch:
            frame = task.to_pandas()
            kept = frame[[len(text.split()) >= LEAST for text in frame["text"]]]
            return DocumentBatch(
                dataset_name=task.dataset_name,
                data=kept,
                _metadata=task._metadata,
                _stage_perf=task._stage_perf,
            )

    few = {"resources": Resources(cpus=0.25)}
    pipeline = Pipeline(
        name="words",
        stages=[
            *(one.with_(**few) for one in JsonlReader(file_paths=folder, files_per_partition=1).decompose()),
            EnoughWords(),
            ParquetWriter(path=out).with_(**few),
        ],
    )
    if backend == "xenna":
        from nemo_curator.backends.xenna import XennaExecutor as Executor
    else:
        from nemo_curator.backends.ray_data import RayDataExecutor as Executor
    pipeline.run(Executor())


def data(folder: str, out: str) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_json(folder, override_num_blocks=len(list(Path(folder).glob("*.jsonl")))).filter(
        lambda row: len(row["text"].split()) >= LEAST
    ).write_parquet(out)


def checkpointed(folder: str, out: str) -> None:
    """Job J3: a counted stage, then a filter that keeps one row in `KEEP`; with Ray Data's checkpoint below `out`."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{out}/checkpoint", delete_checkpoint_on_success=False
    )
    calls = f"{out}/calls"

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        with open(calls, "a") as file:
            file.write(f"{len(batch['id'])}\n")
        return batch

    rows = ray.data.read_json(folder, override_num_blocks=8)
    rows.map_batches(work, batch_size=100).filter(lambda row: int(row["id"][2:]) % KEEP == 0).write_parquet(
        f"{out}/rows"
    )


def main() -> None:
    system, folder, out = sys.argv[1:]
    Path(out).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if system in ("xenna", "curator-ray-data"):
        curator(folder, out, system)
    else:
        {"plain": plain, "ray-data": data, "checkpointed": checkpointed}[system](folder, out)
    print(json.dumps({"inner_s": time.monotonic() - began}))


if __name__ == "__main__":
    main()
