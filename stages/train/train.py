"""Trains a model on the rows of earlier steps: image-text models on all texts that no filter dropped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.row import LOSSES, TEXTS
from vlpipe.stages.train.progress import PER_STEP, following
from vlpipe.stages.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Train(GatherStage, Recipe):
    """Trains a model. Artifacts: `config.json`, `model.safetensors` and `tokenizer/`. Rows: (step, name, value) of losses.

    The model is in vlpipe's own format; `export.transformers` converts BLIP to Hugging Face's.
    A killed run resumes from its last checkpoint and ends with the same bytes as an uninterrupted one, or with the same
    losses but for rounding on other `processes` or another `mesh`, which are not part of the key. With workers on several
    machines, the root must be a folder that all of them share.
    """

    NAME: ClassVar[str] = "train.train:Train"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"tasks"})
    ROWS_ARE: ClassVar[str] = "losses"
    TORCH: ClassVar[bool] = True
    LAUNCHES: ClassVar[bool] = True
    # 1: means over all micro-batches and ranks, windows counted in rows and bytes; 2: large JPEGs are decoded smaller
    # 3: `Mismatch` takes no sample of the same picture, and no text that differs in case alone
    VERSION: ClassVar[int] = 3
    ADDED: ClassVar[frozenset[str]] = Recipe.ADDED
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset(
        {
            *("checkpoint_every", "on_collapse", "loader_threads", "loader_processes", "cache_bytes"),
            *("find_unused_parameters", "mesh", "processes", "least_processes", "sample_steps"),
        }
    )

    def sampled(self) -> Stage:
        if self.steps is not None and self.steps <= self.sample_steps:
            return self
        warmup = min(self.warmup_steps, self.sample_steps // 2)
        return replace(self, steps=self.sample_steps, epochs=None, warmup_steps=warmup)

    def num_steps_for(self, num_rows: int) -> int | None:
        return self.num_steps(num_rows)

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        return names if self.mix else ()

    def schema(self, inp: pa.Schema) -> pa.Schema:
        from vlpipe.stages.train.preflight import need_columns

        need_columns(self, inp)
        return LOSSES

    def preflight(self) -> list[str]:
        from vlpipe.stages.train.preflight import part_problems

        return self.problems() or part_problems(self)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.stages.train.preflight import after_problems

        return after_problems(self, stages)

    def stand_in(self, stages: Mapping[str, Stage]) -> Any:
        """Returns the model that this step makes, without memory for its weights; None if its kind is not known yet."""
        from vlpipe.stages.train.preflight import stand_in

        return stand_in(self, stages)

    def estimate(self, num_rows: int) -> str:
        """Returns the cost of the run, for `vlpipe plan`: steps, samples, workers, disk space of checkpoints."""
        from vlpipe.stages.train.preflight import estimate

        return estimate(self, num_rows)

    def tell(self, row: Mapping[str, Any]) -> list[str]:
        """Returns one line, for `vlpipe why`: which texts of a row are used for training."""
        from vlpipe.stages.loading.rows import usable

        copies = row.get(self.copies) if self.copies else None
        times = None if copies is None else pa.chunked_array([pa.array([copies], pa.list_(pa.int32()))])
        used = usable(pa.chunked_array([pa.array([row["texts"]], TEXTS)]), times)[0]
        if not used:
            return ["not in the training set: every text was dropped by a filter, is blank or occurs 0 times"]
        used = list(dict.fromkeys(used)) if times is not None else used
        return [
            f"in the training set with {len(used)} of its {len(row['texts'])} texts: {', '.join(map(repr, used))}"
        ]

    def run(self, job: Job) -> None:
        from vlpipe.stages.train.fit import fit

        work = Path(job.work)
        config = {"recipe": self, "inputs": job.inputs, "work": job.work}
        with following(work / "progress.log", job.say):
            job.launch(fit, config, num_workers=self.num_processes, gpu=self.gpu)
        if (seconds := work / PER_STEP).exists():  # a run that had nothing left to do measures nothing
            job.spent["per_step"] = float(seconds.read_text())
        rows = json.loads((work / "result" / "losses.json").read_text())
        job.emit(pa.table([list(column) for column in zip(*rows, strict=True)], schema=LOSSES))
        shutil.copytree(
            work / "result", job.artifacts, dirs_exist_ok=True, ignore=shutil.ignore_patterns("losses.json")
        )
