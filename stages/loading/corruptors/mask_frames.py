"""Masked windows of clips: UniVL's and CBT's, and texts that are masked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import IGNORE, TARGET, Maker, Sample
from vlpipe.stages.loading.makers.videos.windows import LENGTHS


@dataclass(frozen=True, kw_only=True)
class MaskFrames:
    """Sets windows of `stream` to 0, each with probability `rate`, at least one per sample.

    Records target["masked"] (B, N, T) bool and target["feat"] (B, N, T, D), the features before it.
    """

    stream: str = "video"
    rate: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"mask_frames: rate must be between 0 and 1, got {self.rate}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item, draw = sample[self.stream], rng(k)
            feats = item["data"]
            real = np.arange(feats.shape[1]) < item[LENGTHS][:, None]
            chosen = (draw.random(real.shape) < self.rate) & real
            if not chosen.any():
                clip, window = np.argwhere(real)[draw.integers(real.sum())]
                chosen[clip, window] = True
            data = np.where(chosen[..., None], np.float32(0), feats)
            sample[self.stream] = {**item, "data": data, f"{TARGET}masked": chosen, f"{TARGET}feat": feats}
        return samples


@dataclass(frozen=True, kw_only=True)
class MaskWholeText:
    """Masks all words of a text, with probability `rate` (UniVL: 0.15), so that it must come from the video alone.

    After `mask_text`, whose target["ids"] then has all words. UniVL's code takes the words away instead, also from the text
    of its joint loss, and predicts none of them.
    """

    stream: str = "text"
    rate: float = 0.15

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        mask = makers[self.stream].tokenizer.mask  # type: ignore[attr-defined]
        for k, sample in enumerate(samples):
            if rng(k).random() >= self.rate:
                continue
            item, key = sample[self.stream], f"{TARGET}ids"
            if key not in item:
                raise ValueError("mask_frames: MaskWholeText comes after `mask_text` in its view")
            ids = np.where(item[key] == IGNORE, item["data"], item[key])
            words = item["words"] >= 0
            new = {"data": np.where(words, mask, ids), key: np.where(words, ids, IGNORE)}
            sample[self.stream] = {**item, **new}
        return samples
