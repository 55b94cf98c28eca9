"""Measures whether a model tells two images and two captions apart that have the same words in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.fine_grained.items import Items
from vlpipe.stages.fine_grained.scoring import ScoresTexts
from vlpipe.stages.lists.winoground import PAIR, SIDES

Side = tuple[str, str, Sequence[float]]  # row id, tag, score of each caption


@dataclass(frozen=True, kw_only=True)
class Winoground(ScoresTexts):
    """Emits RESULTS `text_score`, `image_score` and `group_score`, shares of pairs; and `NAME/TAG` if pairs have tags.

    text_score: each image scores highest with its own caption. image_score: each caption with its own image. group_score:
    both. A tie counts as wrong; chance is 1/4, 1/4 and 1/6 (https://arxiv.org/abs/2204.03162). Input: rows with the column
    `pair`, two for each pair, such as those of `lists.winoground`; a row without the other is rejected (no_partner).
    Artifact items.parquet: 1 or 0 for each pair, by its id.
    """

    NAME: ClassVar[str] = "fine_grained.winoground:Winoground"
    COLUMN: ClassVar[pa.Field] = pa.field("pair", PAIR)

    def run(self, job: Job) -> None:
        rejects: list[Reject] = []
        pairs: dict[str, dict[int, Side]] = {}
        for asked, scores in self.scored(job, lambda pair: pair["captions"], rejects):
            pair = asked.about
            if pair["side"] in pairs.setdefault(pair["id"], {}):
                raise VlpipeError(
                    f"rows {pairs[pair['id']][pair['side']][0]} and {asked.id} are both image {pair['side']} of pair "
                    f"{pair['id']!r}"
                )
            pairs[pair["id"]][pair["side"]] = asked.id, pair["tag"] or "", scores
        items = Items()
        for name, sides in pairs.items():
            if len(sides) < len(SIDES):
                rejects += [
                    Reject(row, "filtered", "no_partner", f"pair {name}") for row, _, _ in sides.values()
                ]
                continue
            tag = sides[0][1]
            for metric, is_hit in hits([sides[side][2] for side in SIDES]).items():
                for each in (metric, *([f"{metric}/{tag}"] if tag else [])):
                    items.add(each, name, sides[0][0], is_hit)
        job.reject(rejects)
        if not len(items):
            raise VlpipeError(
                f"no pair has both images; the first of {len(rejects)} rejected: {rejects[0].detail}"
            )
        items.write(job.artifacts)
        job.emit(pa.Table.from_pylist(items.results(), RESULTS))


def hits(scores: Sequence[Sequence[float]]) -> dict[str, bool]:
    """Returns whether a pair counts for each score. scores: [image][caption]."""
    (own_0, other_0), (other_1, own_1) = scores
    text = own_0 > other_0 and own_1 > other_1
    image = own_0 > other_1 and own_1 > other_0
    return {"text_score": text, "image_score": image, "group_score": text and image}
