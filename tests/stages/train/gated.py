"""For workflows of tests: rows out of a Parquet file, and an objective that waits in the middle of a training."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.lm import Lm
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED

GATED_STEP = 6  # of those this process does
calls = 0


@dataclass(frozen=True, kw_only=True)
class Rows(GatherStage):
    file: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([*LISTED, *IMAGE_FIELDS])

    def run(self, job: Job) -> None:
        job.emit(pq.read_table(self.file.path))


class GatedLm(Lm):
    """LM. With a file name in GATE it writes its process id beside it, and waits until the file is there."""

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        global calls
        calls += 1
        gate = Path(os.environ.get("GATE", __file__))
        if calls == GATED_STEP and not gate.exists():
            part = gate.with_suffix(".part")
            part.write_text(str(os.getpid()))
            part.rename(gate.with_suffix(".pid"))
            while not gate.exists():
                time.sleep(0.02)
        return super().forward(out)
