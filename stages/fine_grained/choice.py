"""Measures how often a model finds a right text better than a wrong one that differs in one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.fine_grained.items import Items
from vlpipe.stages.fine_grained.scoring import ScoresTexts
from vlpipe.stages.lists.sugarcrepe import CHOICES


@dataclass(frozen=True, kw_only=True)
class ImageTextChoice(ScoresTexts):
    """Emits RESULTS `choice` and `choice/KIND`: the share of pairs whose right text scores above the wrong one.

    A tie counts as wrong; chance is 1/2. This is SugarCrepe's measure (https://arxiv.org/abs/2306.14610). Input: rows with
    the column `choices`, such as those of `lists.sugarcrepe`. Artifact items.parquet: 1 or 0 for each pair, by its id.
    """

    NAME: ClassVar[str] = "fine_grained.choice:ImageTextChoice"
    COLUMN: ClassVar[pa.Field] = pa.field("choices", CHOICES)

    def run(self, job: Job) -> None:
        rejects: list[Reject] = []
        items = Items()
        num_ties = 0
        for asked, scores in self.scored(
            job, lambda choices: [choice[side] for choice in choices for side in ("right", "wrong")], rejects
        ):
            for choice, right, wrong in zip(asked.about, scores[::2], scores[1::2], strict=True):
                num_ties += right == wrong
                for metric in ("choice", f"choice/{choice['kind']}"):
                    items.add(metric, choice["id"], asked.id, right > wrong)
        job.reject(rejects)
        if num_ties:
            job.say(f"{num_ties} ties: equal texts, or texts that differ after max_text_length")
        items.write(job.artifacts)
        job.emit(pa.Table.from_pylist(items.results(), RESULTS))
