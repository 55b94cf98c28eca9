"""A gather stage that puts artifacts, and one that emits rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.shard import heavy_names
from vlpipe.pipeline.stage import GatherStage, Job

MARK = "0"


@dataclass(frozen=True, kw_only=True)
class Total(GatherStage):
    """Artifacts: `total.txt`, `list.txt` (rows for a source), `sub/ids.txt`. Reads the heavy column where there is one."""

    VERSION: ClassVar[int] = 1
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    word: str = "sum"
    note: str = ""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("name", pa.string()), ("value", pa.float64()), ("num_rows", pa.int64())])

    def run(self, job: Job) -> None:
        mark, ids, numbers = hashlib.sha256(self.word.encode()), [], []
        for one in job.inputs:
            held = heavy_names(one.schema)
            for batch in one.batches(want_heavy=held):
                note("Total", batch["id"].to_pylist())
                ids += batch["id"].to_pylist()
                numbers += batch["n"].to_pylist()
                for name in ("trace", *held):
                    mark.update(repr(batch[name].to_pylist()).encode())
        folder = Path(job.artifacts)
        (folder / "sub").mkdir()
        (folder / "sub/ids.txt").write_text(" ".join(ids))
        (folder / "total.txt").write_text(f"{self.word}:{sum(numbers)}:{mark.hexdigest()[:12]}:{MARK}")
        pairs = zip(ids[::2], numbers[::2], strict=True)
        (folder / "list.txt").write_text("".join(f"of_{id_} {n}\n" for id_, n in pairs))
        job.emit(pa.table({"name": [self.word], "value": [float(sum(numbers))], "num_rows": [len(ids)]}))
