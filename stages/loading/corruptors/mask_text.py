"""BERT's masked words. Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import IGNORE, TARGET, Maker, Sample

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MaskText:
    """Masks words of a text stream and records the originals in `target["ids"]` (B, L), IGNORE elsewhere.

    Each token (whole_words: each word) is chosen with probability `rate`, at least one per text; of those chosen, 80 %
    become the mask token, 10 % a random one, 10 % stay. Start and end tokens are never chosen. split: (mask, random) shares.
    at_least_one: False leaves a text whole if no token was drawn, as in the released codes of ALBEF, LXMERT and ViLBERT; of
    short texts, more than `rate` of the tokens are masked otherwise.
    """

    stream: str = "text"
    rate: float = 0.15
    whole_words: bool = False
    split: tuple[float, float] = (0.8, 0.1)
    at_least_one: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"mask_text: rate must be between 0 and 1, got {self.rate}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        tokenizer = makers[self.stream].tokenizer  # type: ignore[attr-defined]
        for k, sample in enumerate(samples):
            item = sample[self.stream]
            ids, target = self._masked(item["data"], item["words"], rng(k), tokenizer)
            sample[self.stream] = {**item, "data": ids, f"{TARGET}ids": target}
        return samples

    def _masked(
        self, ids: Ints, words: Ints, rng: np.random.Generator, tokenizer: object
    ) -> tuple[Ints, Ints]:
        chosen = self._choose(words, rng)
        target = np.where(chosen, ids, IGNORE)
        return self._replaced(ids, chosen, rng, tokenizer), target

    def _replaced(
        self, ids: Ints, chosen: npt.NDArray[np.bool_], rng: np.random.Generator, tokenizer: object
    ) -> Ints:
        """Returns the ids with chosen ones masked, replaced or left, by the shares of `split`."""
        ids = ids.copy()
        at = np.flatnonzero(chosen)
        draws = rng.random(len(at))
        random_ids = rng.choice(tokenizer.plain_ids, len(at))  # type: ignore[attr-defined]
        mask, other = self.split
        ids[at] = np.where(
            draws < mask,
            tokenizer.mask,  # type: ignore[attr-defined]
            np.where(draws < mask + other, random_ids, ids[at]),
        )
        return ids

    def _choose(self, words: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        units = words if self.whole_words else np.where(words >= 0, np.arange(len(words)), -1)
        names = np.unique(units[units >= 0])
        if not len(names):
            return np.zeros(len(words), np.bool_)
        return np.isin(units, names[self._picked(len(names), rng)])

    def _picked(self, num: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Returns (num,): which of the `num` tokens or words of a text are chosen. num: at least 1."""
        picked = rng.random(num) < self.rate
        if not picked.any() and self.at_least_one:
            picked[rng.choice(num, 1)] = True
        return picked
