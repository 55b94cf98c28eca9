"""Triples of caption, tags and image of which one part is another image's: Oscar's contrast.

Li et al. 2020, https://arxiv.org/abs/2004.06165; Zhang et al. 2021 (VinVL), https://arxiv.org/abs/2101.00529.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import ROW, TARGET, Item, Maker, Sample, folded
from vlpipe.stages.loading.makers.text_pair import FIRST, SECOND, TextPair

Rate = Annotated[float, Field(ge=0, le=1)]
RIGHT, TAGS, CAPTION = 0, 1, 2
PARTS = {TAGS: SECOND, CAPTION: FIRST}


@dataclass(frozen=True, kw_only=True)
class Pollute:
    """Replaces the tags of some samples, or their caption, by those of another picture of the micro-batch.

    Records target["polluted"] (B,), 0 for right triples, 1 for wrong tags, 2 for a wrong caption, and target["match"] (B,),
    1 for right ones. tags, caption: probabilities; Oscar: 0.5 and 0, Oscar+: 0.25 and 0.25. The other part differs in more
    than case and spaces; where the micro-batch has none, the sample stays right. Raises ValueError for a stream without two
    texts.
    """

    stream: str = "text"
    tags: Rate = 0.25
    caption: Rate = 0.25

    def __post_init__(self) -> None:
        if self.tags + self.caption > 1:
            raise ValueError(
                f"pollute: tags and caption must be at most 1 together, got {self.tags}, {self.caption}"
            )

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        maker = pair_maker("pollute", self.stream, makers)
        items = [sample[self.stream] for sample in samples]
        for k, sample in enumerate(samples):
            draw = rng(k)
            drawn = draw.random()
            kind = TAGS if drawn < self.tags else CAPTION if drawn < self.tags + self.caption else RIGHT
            other = another(items, k, PARTS[kind], draw) if kind else None
            if other is None:
                kind = RIGHT
            item = items[k] if other is None else with_part(items[k], PARTS[kind], other, maker)
            labels = {f"{TARGET}polluted": np.int64(kind), f"{TARGET}match": np.int64(kind == RIGHT)}
            sample[self.stream] = {**item, **labels}
        return samples


@dataclass(frozen=True, kw_only=True)
class ReplaceTags:
    """Gives every sample no tags, or those of another picture of the micro-batch, and records nothing: a control.

    by: "none" or "another"; a sample keeps its own where all others are the same.
    """

    by: Literal["none", "another"]
    stream: str = "text"

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        maker = pair_maker("replace_tags", self.stream, makers)
        items = [sample[self.stream] for sample in samples]
        for k, sample in enumerate(samples):
            other = "" if self.by == "none" else another(items, k, SECOND, rng(k))
            if other is not None:
                sample[self.stream] = with_part(items[k], SECOND, other, maker)
        return samples


def pair_maker(who: str, stream: str, makers: Mapping[str, Maker]) -> TextPair:
    """Returns the maker of `stream`. Raises ValueError, naming `who`, if it makes no pairs of texts."""
    if not isinstance(maker := makers[stream], TextPair):
        raise ValueError(
            f"{who}: the stream {stream!r} needs the maker tags:CaptionAndTags, but has {type(maker).__name__}"
        )
    return maker


def another(items: list[Item], k: int, part: str, rng: np.random.Generator) -> str | None:
    """Returns the text `part` of another picture that differs from that of item k; None if there is none."""
    own, row = folded(items[k][part][0]), items[k][ROW][0]
    for other in rng.permutation(len(items)):
        if items[other][ROW][0] != row and folded(items[other][part][0]) != own:
            return str(items[other][part][0])
    return None


def with_part(item: Item, part: str, text: str, maker: TextPair) -> dict[str, Any]:
    """Returns an item whose first or second text is `text`."""
    both = {FIRST: item[FIRST][0], SECOND: item[SECOND][0], part: text}
    return {**item, **maker.encoded(both[FIRST], both[SECOND])}
