"""Two segments of a document: BERT's pairs for next-sentence prediction.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805. As `create_pretraining_data.py` of their code,
https://github.com/google-research/bert, but drawn anew in each epoch, and from each sentence on; theirs cuts documents into
chunks once, up to ten times with other draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import ROW, Item, note
from vlpipe.stages.loading.makers.text_pair import TextPair
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class Segments(TextPair):
    """As `TextPair`, of segments: the texts of a row are the sentences of a document, in order.

    The sentences from the sample's own on, until they fill a target length, are cut in two between sentences, at a place
    that is drawn; the last sentence follows the one before it. The target is `max_length` less three tokens, and with
    probability `short_rate` one that is drawn from 2 up to that. Raises VlpipeError for a document of one sentence.
    """

    short_rate: Annotated[float, Field(ge=0, le=1)] = 0.1

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        if len(row.texts) < 2:
            raise VlpipeError(
                f"segments: row {row.id} is a document of one sentence, wanted at least two; add a step before training "
                "that rejects such rows"
            )
        first, second = self.cut(row.texts, row.texts.index(text), rng)
        return {**self.encoded(" ".join(first), " ".join(second)), ROW: note(row.image_id)}

    def cut(
        self, sentences: Sequence[str], start: int, rng: np.random.Generator
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Returns the sentences of both segments, at least one each."""
        room = self.length - 3
        target = int(rng.integers(2, room + 1)) if rng.random() < self.short_rate else room
        start = min(start, len(sentences) - 2)
        stop, num_tokens = start, 0
        while stop < len(sentences) and (stop < start + 2 or num_tokens < target):
            num_tokens += len(self.tokenizer.ids(sentences[stop]))
            stop += 1
        middle = int(rng.integers(start + 1, stop))
        return sentences[start:middle], sentences[middle:stop]
