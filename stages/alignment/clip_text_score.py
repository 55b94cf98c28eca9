"""Scores how well each text matches its clip, for filtering noisy narration.

MIL-NCE's score is the dot product of S3D-G's clip and text vectors (https://arxiv.org/abs/1912.06430); for an image-text
model it is the mean cosine between frames and text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.shard import need, with_field
from vlpipe.stages.alignment.base import TextWindowStage
from vlpipe.stages.alignment.encoders import (
    Encode,
    Vectors,
    check_windows,
    encode_each,
)
from vlpipe.stages.common.by_video import CLIP_TIME
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.rule import scored
from vlpipe.stages.common.scores import name_of, with_columns
from vlpipe.stages.common.texts import FlatTexts, as_array
from vlpipe.stages.features.windows import WindowFeats, centred_in
from vlpipe.stages.video.rows import CANDIDATE


@dataclass(frozen=True, kw_only=True)
class ClipTextScore(TextWindowStage):
    """Adds `align_score`, one per text, `candidate_scores`, one per candidate (list<float32>), and `align_weights`.

    With `words`, reads `s3d` (model: S3D-G, words: its s3d_dict.npy); without, reads `frame_feats` (model: the image-text
    model that computed them). The score is the dot product of the text vector and the mean of the clip's windows (those
    with their centre in the clip, else the nearest one). Texts that are already dropped get null. align_weights: digest
    of `model`. encoder: the encoder's name for `filter.rules:Rules`, which refuses a threshold for another encoder; default:
    the hub id, the folder's name or the step. max_words: max length of a text, in words of the list (20 in MIL-NCE's
    training) or in tokens.
    """

    NAME: ClassVar[str] = "features.video_text:ClipTextScore"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "alignment.clip_text_score", texts=TEXTS, candidates=pa.list_(CANDIDATE), **CLIP_TIME)
        check_windows(inp, "alignment.clip_text_score", self.column)
        name = name_of(self.model, self.encoder)
        for column in ("align_score", "candidate_scores"):
            inp = with_field(inp, scored(column, pa.list_(pa.float32()), name))
        return with_field(inp, pa.field("align_weights", pa.string()))

    def compare(self, rows: pa.Table, encode: Encode, windows: Iterator[WindowFeats]) -> pa.Table:
        times = zip(rows["start_s"].to_pylist(), rows["end_s"].to_pylist(), windows, strict=True)
        clips = np.stack([mean_within(w, start_s, end_s) for start_s, end_s, w in times])  # (B, D)
        texts = FlatTexts(rows["texts"])
        kept = texts.kept()
        scores = np.full(len(kept), np.nan, np.float32)
        scores[kept] = dots(
            clips[texts.row[kept]],
            encode_each(encode, texts.field("text").filter(pa.array(kept)).to_pylist()),
        )
        candidates = as_array(rows["candidates"])
        row_of = np.repeat(np.arange(rows.num_rows), pc.fill_null(pc.list_value_length(candidates), 0))
        others = dots(
            clips[row_of], encode_each(encode, pc.struct_field(candidates.flatten(), "text").to_pylist())
        )
        offsets = np.searchsorted(row_of, np.arange(rows.num_rows + 1))
        return with_columns(
            rows,
            align_score=texts.nested(pa.array(scores, mask=~kept)),
            candidate_scores=pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(others)),
            align_weights=pa.array([self.model.digest] * rows.num_rows, pa.string()),
        )


def mean_within(windows: WindowFeats, start_s: float, end_s: float) -> npt.NDArray[np.float64]:
    """Returns the mean (D,) of the windows with their centre in [start_s, end_s); if none, the one nearest to its middle.

    windows: at least one.
    """
    inside = centred_in(windows.start_s, windows.end_s, start_s, end_s)
    mean: npt.NDArray[np.float64] = windows.feats[inside].astype(np.float64).mean(0)
    return mean


def dots(a: npt.NDArray[np.float64], b: Vectors) -> Vectors:
    """Returns row-wise dot products, (N, D), (N, D) -> (N,), computed in float64, so they do not depend on the batch."""
    return (a * b).sum(1).astype(np.float32) if len(a) else np.zeros(0, np.float32)
