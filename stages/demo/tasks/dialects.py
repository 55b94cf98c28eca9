"""Texts in several made languages over the same words: a model must know each language's rule by heart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import LISTED, ListIds, text

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
ROWS = 10_000  # texts per table


@dataclass(frozen=True, kw_only=True)
class Dialects(GatherStage):
    """Emits `num` texts of `length` words, of source "human". The first word names the dialect, the second is any; each
    further one is, with probability `rule`, that which the dialect has after the word before, else any.

    skew: dialect k comes in proportion to (k + 1) ** -skew; with 1 as words do in natural texts. seed: of the dialects, each
    a permutation of the words. draw: of the texts; others than in training are held out. The rules of a dialect have
    words x log2(words) bits, and the least loss per further word is `least_nats`.
    """

    NAME: ClassVar[str] = "demo.tasks.dialects:Dialects"
    ROWS_ARE: ClassVar[str] = "texts"

    seed: int = 0
    draw: int = 0
    num: Annotated[int, Field(ge=1)] = 16000
    dialects: Annotated[int, Field(ge=1, le=90)] = 16
    words: Annotated[int, Field(ge=2, le=90)] = 64
    length: Annotated[int, Field(ge=3)] = 32
    rule: Annotated[float, Field(gt=0, lt=1)] = 0.9
    skew: Annotated[float, Field(ge=0)] = 0.0

    @property
    def least_nats(self) -> float:
        """The entropy of a word, given the dialect and the word before."""
        other = (1 - self.rule) / self.words
        return float(
            -(self.rule + other) * np.log(self.rule + other) - (self.words - 1) * other * np.log(other)
        )

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return LISTED

    def run(self, job: Job) -> None:
        names = [c + v for v in VOWELS for c in CONSONANTS]
        after = np.random.default_rng([self.seed, 0])
        tables = np.stack([after.permutation(self.words) for _ in range(self.dialects)])
        often = (np.arange(self.dialects) + 1.0) ** -self.skew
        often /= often.sum()
        ids = ListIds("dialects")
        for start in range(0, self.num, ROWS):
            rng = np.random.default_rng([self.seed, 1, self.draw, start])
            num = min(ROWS, self.num - start)
            dialect, last = rng.choice(self.dialects, num, p=often), rng.integers(self.words, size=num)
            columns = [last]
            for _ in range(self.length - 2):
                any_word = rng.integers(self.words, size=num)
                last = np.where(rng.random(num) < self.rule, tables[dialect, last], any_word)
                columns.append(last)
            said = [
                " ".join([f"{names[d]}{names[d]}", *(names[word] for word in row)])
                for d, row in zip(dialect.tolist(), np.stack(columns, 1).tolist(), strict=True)
            ]
            urls = [""] * num
            texts = [[text(one, "human")] for one in said]
            job.emit(
                pa.table(
                    [ids.of(urls, said), pa.array(urls), pa.array(texts, LISTED.field("texts").type)], LISTED
                )
            )
