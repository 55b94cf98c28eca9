"""The words of all texts as a tokenizer for models that read bags of words, with or without vectors from word2vec."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.loading.rows import usable

WORD = re.compile(r"[\w']+")  # as in the code of HowTo100M and MIL-NCE
MAX_DISTINCT = 5_000_000  # words counted at a time; beyond it, the rarest are forgotten
WORDS = pa.schema([("token_id", pa.int64()), ("token", pa.string()), ("count", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class WordList(GatherStage):
    """Makes a tokenizer of the words in `texts`, or in the `cues` of videos. Rows: the words with their counts.

    Word k, the most frequent first, has id k + 1; 0 is padding. Artifacts: `tokenizer/`; with `vectors`, also the words'
    vectors as a model folder, for `init_parts: [{weights: {from: STEP}, part: table, into: text.words}]`.

    max_words: the most frequent, 66,249 in MIL-NCE. min_count: of a word. lower: texts are lower-cased, here and whenever
    they are read. vectors: word2vec's binary file, or that in .gz; only words in it are kept.
    """

    NAME: ClassVar[str] = "words.word_list:WordList"
    ROWS_ARE: ClassVar[str] = "the words"
    TORCH: ClassVar[bool] = True

    max_words: Annotated[int, Field(ge=1)] = 66_249
    min_count: Annotated[int, Field(ge=1)] = 1
    lower: bool = True
    vectors: File | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        if not {"texts", "cues"} & set(inp.names):
            raise SchemaError("words.word_list needs a column `texts` or `cues`")
        return WORDS

    def run(self, job: Job) -> None:
        from vlpipe.models.tokenization.word_list import ROLES, pipeline
        from vlpipe.models.tokenizer import Tokenizer

        counts = self._counts(job.inputs)
        words = [word for word, num in counts.most_common() if num >= self.min_count]
        words = self._with_vectors(job, words) if self.vectors else words[: self.max_words]
        if not words:
            raise VlpipeError("words.word_list: no text has a word that is kept")
        tokenizer = Tokenizer(pipeline(words, lower=self.lower), ROLES)
        tokenizer.save(f"{job.artifacts}/tokenizer")
        ids = range(tokenizer.vocab_size)
        job.emit(
            pa.table([ids, tokenizer.tokens, [counts.get(t, 0) for t in tokenizer.tokens]], schema=WORDS)
        )
        job.say(f"{len(words):,} words")

    def _counts(self, inputs: Sequence[Dataset]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for one in _texts(inputs):
            counts.update(WORD.findall(one.lower() if self.lower else one))
            if len(counts) > MAX_DISTINCT:
                counts = Counter(dict(counts.most_common(MAX_DISTINCT // 2)))
        return counts

    def _with_vectors(self, job: Job, words: Sequence[str]) -> list[str]:
        """Returns the words that have a vector, and writes the vectors; padding's and unknown words' are 0."""
        import numpy as np
        import torch

        from vlpipe.models import folder
        from vlpipe.models.video.word_vectors import WordVectors
        from vlpipe.models.weights import word2vec

        assert self.vectors is not None
        try:
            known, vectors = word2vec.read(self.vectors.path, words)
        except ValueError as error:
            raise VlpipeError(f"words.word_list: {error}") from error
        places = {word: at for at, word in enumerate(known)}
        kept = [word for word in words if word in places][: self.max_words]
        zero = np.zeros((1, vectors.shape[1]), np.float32)
        table = np.concatenate([zero, vectors[[places[word] for word in kept]], zero])
        model = WordVectors(vocab_size=len(table), word_dim=table.shape[1])
        model.fill(torch.from_numpy(table))
        folder.save(model, job.artifacts)
        job.say(f"{len(kept):,} of {len(words):,} words have a vector")
        return kept


def _texts(inputs: Sequence[Dataset]) -> Iterator[str]:
    """Yields every usable text, and every cue of inputs without texts."""
    for data in inputs:
        if "texts" in data.schema.names:
            if data.schema.field("texts").type != TEXTS:
                raise VlpipeError(
                    f"words.word_list: the column `texts` of {data.name} is not a list of texts"
                )
            for rows in data.batches(["texts"]):
                for texts in usable(rows["texts"]):
                    yield from texts
        else:
            for rows in data.batches(["cues"]):
                for cues in rows["cues"].to_pylist():
                    yield from (cue["text"] for cue in cues or () if cue["text"])
