"""Fragments of a text that are generated from the rest of it.

Li et al. 2021 (UNIMO), https://arxiv.org/abs/2012.15409; Xiao et al. 2020 (ERNIE-GEN), https://arxiv.org/abs/2001.11314.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import IGNORE, TARGET, Item, Maker, Sample

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Fragments:
    """Moves fragments of a text behind it, each between a start and an end token: they are generated from what is left.

    Lengths are drawn from `shortest` to `longest`, each equally likely, until `share` of the words' tokens are taken,
    rounded up; the last one is cut there. Places are drawn such that fragments do not overlap; they stay in order.
    Records target["prefix"] (B,), the number of tokens that are given, and target["rest"] (B, L): at each token of a
    fragment and at its start token, the next one; IGNORE elsewhere. Each fragment adds two tokens; there are no more than
    the model has positions for, and none in a text of one token.
    """

    stream: str = "text"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    shortest: Annotated[int, Field(ge=1)] = 4
    longest: Annotated[int, Field(ge=1)] = 32

    def __post_init__(self) -> None:
        if self.longest < self.shortest:
            raise ValueError(
                f"fragments: longest must be at least shortest, got {self.longest} and {self.shortest}"
            )

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        maker = makers[self.stream]
        most = maker.max_positions  # type: ignore[attr-defined]
        start, end = maker.tokenizer.start, maker.tokenizer.end  # type: ignore[attr-defined]
        for k, sample in enumerate(samples):
            item = sample[self.stream]
            room = len(item["data"]) if most is None else (most - len(item["data"])) // 2
            sample[self.stream] = self._split(item, room, start, end, rng(k))
        return samples

    def _split(self, item: Item, room: int, start: int, end: int, rng: np.random.Generator) -> Item:
        ids, words = item["data"], item["words"]
        tokens = np.flatnonzero(words >= 0)
        spans = self.spans(len(tokens), room, rng)
        given = np.ones(len(ids), np.bool_)
        data, names, rest = [], [], []
        for first, last in spans:
            at = tokens[first:last]
            given[at] = False
            data += [[start], ids[at], [end]]
            names += [[-1], words[at], [-1]]
            rest += [ids[at], [end, IGNORE]]
        prefix = int(given.sum())
        arrays = {
            "data": np.concatenate([ids[given], *data]).astype(np.int64),
            "words": np.concatenate([words[given], *names]).astype(np.int64),
            f"{TARGET}rest": np.concatenate([np.full(prefix, IGNORE), *rest]).astype(np.int64),
        }
        return {**item, **arrays, f"{TARGET}prefix": np.int64(prefix)}

    def spans(self, num: int, room: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Returns (first, last + 1) of each fragment among `num` tokens, in order; at most `room` of them."""
        left = min(num - 1, math.ceil(self.share * num - 1e-9))
        lengths: list[int] = []
        while left > 0 and len(lengths) < room:
            lengths.append(min(int(rng.integers(self.shortest, self.longest + 1)), left))
            left -= lengths[-1]
        free = num - sum(lengths)
        gaps = np.sort(
            rng.permutation(free + len(lengths))[: len(lengths)]
        )  # of what is left, before each fragment
        starts = gaps - np.arange(len(lengths)) + np.cumsum([0, *lengths])[:-1]
        return [(int(first), int(first) + length) for first, length in zip(starts, lengths, strict=True)]
