"""iGPT's masking of pixels: each place on its own. Chen et al. 2020, section 2.1 and the released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class MaskPlaces:
    """Hides each place of an image with probability `rate`, at least one: extra["masked"] and target["masked"] (B, N) bool.

    N: the codes of the stream (`code_grid:CodeGrid`), or the patches of its pictures of `patch` x `patch` pixels.
    """

    rate: float = 0.15
    patch: int = 1
    stream: str = "image"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"mask_places: rate must be between 0 and 1, got {self.rate}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        maker = makers[self.stream]
        num = getattr(maker, "num_places", None) or (maker.size // self.patch) ** 2  # type: ignore[attr-defined]
        for k, sample in enumerate(samples):
            draw = rng(k)
            masked = draw.random(num) < self.rate
            masked[draw.integers(num)] |= not masked.any()
            sample[self.stream] = {**sample[self.stream], f"{EXTRA}masked": masked, f"{TARGET}masked": masked}
        return samples
