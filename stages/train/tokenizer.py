"""Vocabularies learned from all texts that no filter dropped: WordPiece, or byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.loading.rows import usable

VOCABULARY = pa.schema([("token_id", pa.int64()), ("token", pa.string())])


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(GatherStage):
    """Makes a tokenizer. Artifacts: `vocab.txt` and settings, for `Train` and `transformers.AutoTokenizer`.

    Rows: the vocabulary, one token each.
    """

    ROWS_ARE: ClassVar[str] = "the vocabulary"

    vocab_size: int = 30522  # as bert-base-uncased; small corpora may yield fewer tokens
    vocab: File | None = None  # use this vocab.txt (one token per line) instead of learning one

    NAME: ClassVar[str] = "train.tokenizer:TrainTokenizer"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "TrainTokenizer", texts=TEXTS)
        return VOCABULARY

    def preflight(self) -> list[str]:
        return [] if self.vocab_size >= 100 else [f"vocab_size must be at least 100, got {self.vocab_size}"]

    def run(self, job: Job) -> None:
        from vlpipe.models.tokenizer import Tokenizer

        if self.vocab is not None:
            tokenizer = Tokenizer.from_vocab(Path(self.vocab.path))
        else:
            tokenizer = Tokenizer.train(_texts(job), self.vocab_size)
        tokenizer.save(job.artifacts)
        job.emit(pa.table([range(tokenizer.vocab_size), tokenizer.tokens], schema=VOCABULARY))
        job.say(f"vocabulary of {tokenizer.vocab_size:,} tokens")


@dataclass(frozen=True, kw_only=True)
class TrainBpe(GatherStage):
    """Makes a tokenizer. Artifacts: `tokenizer.json` and settings, for `Train` and `transformers.AutoTokenizer`.

    style: `clip` lower-cases, `gpt2` keeps case. vocab_size: CLIP's 49,408 by default, 514 at least; GPT-2's is 50,257, 257
    at least; a small corpus may yield fewer tokens. Rows: the vocabulary, one token each.
    """

    ROWS_ARE: ClassVar[str] = "the vocabulary"

    vocab_size: int = 49408
    style: Literal["clip", "gpt2"] = "clip"

    NAME: ClassVar[str] = "train.tokenizer:TrainBpe"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "TrainBpe", texts=TEXTS)
        return VOCABULARY

    def preflight(self) -> list[str]:
        smallest = 514 if self.style == "clip" else 257
        if self.vocab_size >= smallest:
            return []
        return [f"vocab_size must be at least {smallest} for style {self.style}, got {self.vocab_size}"]

    def run(self, job: Job) -> None:
        from vlpipe.models.tokenizer import Tokenizer

        tokenizer = Tokenizer.train_bpe(_texts(job), self.vocab_size, self.style)
        tokenizer.save(job.artifacts)
        job.emit(pa.table([range(tokenizer.vocab_size), tokenizer.tokens], schema=VOCABULARY))
        job.say(f"vocabulary of {tokenizer.vocab_size:,} tokens")


def _texts(job: Job) -> Iterator[str]:
    """Yields every text of the inputs that no filter dropped."""
    for data in job.inputs:
        for rows in data.batches(["texts"]):
            for texts in usable(rows["texts"]):
                yield from texts
