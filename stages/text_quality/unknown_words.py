"""The share of a text's words that a vocabulary does not have, as a column for rules.

ImageBERT's web recipe drops sentences with many words out of vocabulary. Qi et al. 2020, https://arxiv.org/abs/2001.07966.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")  # letters, with inner apostrophes and hyphens
COLUMN = "unknown_word_ratio"


@dataclass(frozen=True, kw_only=True)
class UnknownWords(MapStage):
    """Adds `unknown_word_ratio` (list<float64>), from 0 to 1, one per text; null for a text without words.

    vocabulary: a text file with a word per line, or a BERT vocabulary, whose pieces (`##ing`) and special tokens are left
    out. Case is ignored. A word with hyphens is known if all its parts are. Numbers are no words. Memory: the vocabulary.
    Raises VlpipeError for a vocabulary without words.
    """

    NAME: ClassVar[str] = "text_quality.unknown_words:UnknownWords"
    VERSION: ClassVar[int] = 2  # 2: curly apostrophes and a byte-order mark in the vocabulary

    vocabulary: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "text_quality.unknown_words", texts=TEXTS)
        return with_field(inp, pa.field(COLUMN, pa.list_(pa.float64())))

    @contextmanager
    def open(self) -> Iterator[Work]:
        known = words_of(Path(self.vocabulary.path))

        def work(rows: pa.Table) -> pa.Table:
            flat = FlatTexts(rows["texts"])
            ratios = [unknown_ratio(text or "", known) for text in flat.field("text").to_pylist()]
            offsets = np.concatenate([[0], flat.lengths.cumsum()])
            column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ratios, pa.float64()))
            return with_columns(rows, **{COLUMN: column})

        yield work


def words_of(path: Path) -> frozenset[str]:
    """Returns the words of a vocabulary file. Raises VlpipeError if it has none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise VlpipeError(f"vocabulary: {path} is not UTF-8 text: {error}") from error
    found = frozenset(folded(line.strip()) for line in lines if WORD.fullmatch(line.strip()))
    if not found:
        raise VlpipeError(f"vocabulary: {path} has no word; wanted one per line")
    return found


def folded(word: str) -> str:
    """Returns a word without case and with straight apostrophes."""
    return word.casefold().replace("\u2019", "'")


def unknown_ratio(text: str, known: frozenset[str]) -> float | None:
    """Returns the share of a text's words that are not in `known`; None for a text without words."""
    words = [folded(word) for word in WORD.findall(text)]
    if not words:
        return None
    is_known = [word in known or all(part in known for part in re.split("[-']", word)) for word in words]
    return 1 - sum(is_known) / len(words)
