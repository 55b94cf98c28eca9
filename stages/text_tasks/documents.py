"""Documents from the narration of videos: BERT's pretraining wants sentences in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.clips.captions import SOURCES, clean, pick_track
from vlpipe.stages.clips.sentences import sentences
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.video.rows import CUES

MAX_S = 24 * 3600.0  # seconds; replaces an unknown or longer duration


@dataclass(frozen=True, kw_only=True)
class NarrationDocuments(MapStage):
    """Turns video rows into documents: `texts` are the sentences of the narration, in order, with source asr or human.

    sources, lang: choose the track (see `clips.captions.pick_track`). max_gap_s, max_words: where a sentence ends (see
    `clips.sentences`). Reject codes (filtered): no_cues (none in such a track), short_document (fewer than `min_sentences`).
    """

    NAME: ClassVar[str] = "text_tasks.documents:NarrationDocuments"
    VERSION: ClassVar[int] = 2  # 2: `lang` is a whole part of a language

    sources: tuple[str, ...] = SOURCES
    lang: str = ""
    max_gap_s: Annotated[float, Field(ge=0)] = 1.0
    max_words: Annotated[int, Field(ge=1)] = 20
    min_sentences: Annotated[int, Field(ge=1)] = 2

    def schema(self, inp: pa.Schema) -> pa.Schema:
        wanted = {"id": pa.string(), "url": pa.string(), "duration_s": pa.float64(), "cues": CUES}
        need(inp, "text_tasks.documents", **wanted)
        return LISTED

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._work

    def _work(self, videos: pa.Table) -> Out:
        rows: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        counts: Counter[str] = Counter()
        for video in videos.select(["id", "url", "duration_s", "cues"]).to_pylist():
            track = pick_track(video["cues"] or (), self.sources, self.lang)
            if not track:
                rejects.append(Reject(video["id"], "filtered", "no_cues", f"{len(video['cues'] or ())} cues"))
                continue
            left_out: Counter[str] = Counter()
            captions = clean(track, min(video["duration_s"] or MAX_S, MAX_S), left_out)
            counts.update({f"cues:{why}": num for why, num in left_out.items()})
            found = sentences(captions, self.max_gap_s, self.max_words) if captions else []
            if len(found) < self.min_sentences:
                rejects.append(Reject(video["id"], "filtered", "short_document", f"{len(found)} sentence(s)"))
                continue
            source = "human" if track[0]["source"] == "manual" else "asr"
            texts = [text(one.text, source) for one in found]
            rows.append({"id": video["id"], "url": video["url"], "texts": texts})
        return Out(pa.Table.from_pylist(rows, LISTED), rejects, counts=dict(counts))
