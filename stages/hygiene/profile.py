"""A profile of each captioner: how long its captions are, how many words it knows, what is wrong with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.common.texts import FlatTexts, to_mask

MAX_LENGTH = 1_000  # words; longer captions count as so long
MAX_CAPTIONERS = 200
NAME_CHARS = 12  # of a digest
DIGEST = re.compile(rf"\b([0-9a-f]{{{NAME_CHARS}}})[0-9a-f]{{4,}}\b")
QUANTILES = {"words_median": 0.5, "words_p95": 0.95}


@dataclass
class Figures:
    """What is counted of one captioner. lengths: (MAX_LENGTH + 1,), captions by number of words."""

    lengths: np.ndarray[Any, np.dtype[np.int64]] = field(
        default_factory=lambda: np.zeros(MAX_LENGTH + 1, np.int64)
    )
    reasons: Counter[str] = field(default_factory=Counter)
    words: set[str] = field(default_factory=set)
    num_read: int = 0  # captions whose words are in `words`

    @property
    def num(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True, kw_only=True)
class CaptionProfile(GatherStage):
    """Emits RESULTS per captioner, which the report shows: `caption_words_mean/CAPTIONER` and so on.

    words_mean, words_median, words_p95: length in words. vocabulary: different words in its first `vocabulary_texts`
    captions, in lower case; only profiles of as many captions compare. kept: fraction not dropped. dropped/CAPTIONER/REASON:
    fraction dropped for that reason, of all its captions. A captioner is the first digits of `model`, with the name of its
    prompt behind a slash; beyond 200 captioners, `others`. Memory: the words of `vocabulary_texts` captions per captioner.
    """

    NAME: ClassVar[str] = "hygiene.profile:CaptionProfile"
    ROWS_ARE: ClassVar[str] = "figures"

    sources: tuple[str, ...] = ("synth",)
    vocabulary_texts: Annotated[int, Field(ge=1)] = 10_000

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "hygiene.profile", texts=TEXTS)
        return RESULTS

    def run(self, job: Job) -> None:
        found: dict[str, Figures] = {}
        for data in job.inputs:
            for rows in data.batches(["texts"]):
                self._count(FlatTexts(rows["texts"]), found)
        results = [row for name in sorted(found) for row in _results(name, found[name])]
        job.emit(pa.Table.from_pylist(results, RESULTS))
        for name in sorted(found):
            one = found[name]
            worst = ", ".join(f"{why} {num / one.num:.1%}" for why, num in one.reasons.most_common(3))
            job.say(f"{name}: {one.num:,} captions; dropped: {worst or 'none'}")

    def _count(self, texts: FlatTexts, found: dict[str, Figures]) -> None:
        ours = pa.array(to_mask(pc.is_in(texts.field("source"), pa.array(self.sources, pa.string()))))
        columns = [texts.field(name).filter(ours).to_pylist() for name in ("text", "model", "kept", "why")]
        for text, model, kept, why in zip(*columns, strict=True):
            name = captioner(model)
            if name not in found and len(found) >= MAX_CAPTIONERS:
                name = "others"
            one = found.setdefault(name, Figures())
            words = (text or "").split()
            one.lengths[min(len(words), MAX_LENGTH)] += 1
            if kept is False:
                one.reasons[why or "no_reason"] += 1
            if one.num_read < self.vocabulary_texts:
                one.num_read += 1
                one.words.update(word.strip(".,;:!?\"'()").lower() for word in words[:MAX_LENGTH])


def captioner(model: str | None) -> str:
    """Returns the name of a captioner for a table: its digest or commit is cut after NAME_CHARS digits."""
    return DIGEST.sub(r"\1", model) if model else "unknown"


def _results(name: str, one: Figures) -> Iterator[dict[str, Any]]:
    num, ends = one.num, np.cumsum(one.lengths)

    def row(what: str, value: float) -> dict[str, Any]:
        return {"name": what, "value": value, "num_rows": num}

    yield row(f"caption_words_mean/{name}", float(one.lengths @ np.arange(MAX_LENGTH + 1)) / num)
    for what, share in QUANTILES.items():
        yield row(f"caption_{what}/{name}", float(np.searchsorted(ends, share * num)))
    yield {**row(f"caption_vocabulary/{name}", float(len(one.words - {""}))), "num_rows": one.num_read}
    yield row(f"caption_kept/{name}", 1 - one.reasons.total() / num)
    for why, dropped in sorted(one.reasons.items()):
        yield row(f"caption_dropped/{name}/{why}", dropped / num)
