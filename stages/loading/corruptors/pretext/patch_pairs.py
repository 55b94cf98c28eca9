"""Pairs of neighbouring patches. Doersch et al. 2015 (context prediction), https://arxiv.org/abs/1505.05192."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.pretext.pixels import Pixels, pixels_of, window
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample

PLACES = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # down, right


@dataclass(frozen=True, kw_only=True)
class PatchPairs:
    """Makes a picture (3, H, W) a patch and one of its eight neighbours, (2, 3, patch, patch); target["drawn"] (B,): which.

    gap: pixels between patches. jitter: each is moved by at most so many. keep_colour: extra["colour"] (B, 2) is the one
    colour that each patch keeps, against chromatic aberration; the model drops the others. shrink_rate: of patches that are
    made smaller, to `least_pixels` pixels at least, and enlarged again. Raises ValueError if a picture has no room for two
    patches.
    """

    patch: int
    gap: Annotated[int, Field(ge=0)]
    jitter: Annotated[int, Field(ge=0)] = 0
    keep_colour: bool = False
    shrink_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    least_pixels: Annotated[int, Field(ge=1)] = 100
    stream: str = "image"

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item: dict[str, Any] = sample[self.stream]
            draw = rng(k)
            which = int(draw.integers(len(PLACES)))
            patches = self._pair(pixels_of(item, "patch_pairs"), PLACES[which], draw)
            made = {**item, "data": np.stack(patches), f"{TARGET}drawn": np.int64(which)}
            if self.keep_colour:
                made[f"{EXTRA}colour"] = draw.integers(3, size=2)
            sample[self.stream] = made
        return samples

    def _pair(self, pixels: Pixels, step: tuple[int, int], rng: np.random.Generator) -> list[Pixels]:
        far = self.patch + self.gap
        corner = []
        for side, along in zip(pixels.shape[1:], step, strict=True):
            low, high = max(0, -along * far), side - self.patch - max(0, along * far)
            if high < low:
                raise ValueError(
                    f"patch_pairs: {side} pixels have no room for two patches of {self.patch} and a gap of {self.gap}"
                )
            corner.append(int(rng.integers(low, high + 1)))
        found = []
        for down, right in ((0, 0), step):
            by = rng.integers(-self.jitter, self.jitter + 1, size=2)
            top, left = corner[0] + down * far + int(by[0]), corner[1] + right * far + int(by[1])
            found.append(self._shrunk(window(pixels, top, left, self.patch), rng))
        return found

    def _shrunk(self, patch: Pixels, rng: np.random.Generator) -> Pixels:
        from PIL import Image

        if not rng.random() < self.shrink_rate:
            return patch
        side = round(rng.uniform(self.least_pixels, self.patch**2) ** 0.5)
        image = Image.fromarray(np.ascontiguousarray(patch.transpose(1, 2, 0)))
        small = image.resize((side, side), Image.Resampling.BILINEAR)
        large = small.resize((self.patch, self.patch), Image.Resampling.BILINEAR)
        return np.asarray(large).transpose(2, 0, 1)
