"""Distortions of contrastive learning: colour jitter, grey, Gaussian blur and solarisation, without torchvision.

Chen et al. 2020 (SimCLR), https://arxiv.org/abs/2002.05709, appendix A; solarisation as in Grill et al. 2020 (BYOL),
https://arxiv.org/abs/2006.07733, appendix B. All random draws come from the given generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlpipe.stages.loading.augment import Augmentation

if TYPE_CHECKING:
    from PIL import Image

Operation = Callable[["Image.Image"], "Image.Image"]
Rate = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[float, Field(ge=0)]
SOLARISE_FROM = 128  # BYOL: values from half of the range on are inverted


@dataclass(frozen=True, kw_only=True)
class Distortion(Augmentation):
    """As `Augmentation`; then, each with its rate and in this order, colour jitter, grey, blur and solarisation.

    jitter: spans of brightness, contrast, saturation and hue, applied in a random order: factors are drawn from 1 - span to
    1 + span and not below 0, the turn of the hue from -span to span (1: a full turn). SimCLR at strength s: 0.8 s, three
    times, and 0.2 s, at a rate of 0.8. blur_sigma: deviation in pixels, drawn between the two. blur_kernel: side of the
    kernel as a fraction of the picture's.
    """

    jitter: tuple[Span, Span, Span, Annotated[float, Field(ge=0, le=0.5)]] | None = None
    jitter_rate: Rate = 1.0
    grey_rate: Rate = 0.0
    blur_rate: Rate = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: Rate = 0.1
    solarise_rate: Rate = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be two numbers above 0, ascending, got {self.blur_sigma}")


def drawn(spec: Distortion, rng: np.random.Generator) -> list[Operation]:
    """Draws the operations after crop, flip and RandAugment; applied in order, they distort any picture alike."""
    from PIL import ImageOps

    found: list[Operation] = []
    if spec.jitter is not None and rng.random() < spec.jitter_rate:
        found += _jitter(spec.jitter, rng)
    if rng.random() < spec.grey_rate:
        found.append(grey)
    if rng.random() < spec.blur_rate:
        found.append(partial(blur, sigma=rng.uniform(*spec.blur_sigma), kernel=spec.blur_kernel))
    if rng.random() < spec.solarise_rate:
        found.append(partial(ImageOps.solarize, threshold=SOLARISE_FROM))
    return found


def _jitter(spans: tuple[float, float, float, float], rng: np.random.Generator) -> list[Operation]:
    factors = [rng.uniform(max(0.0, 1 - span), 1 + span) for span in spans[:3]]
    turn = rng.uniform(-spans[3], spans[3])
    found: list[Operation] = [
        partial(brightness, factor=factors[0]),
        partial(contrast, factor=factors[1]),
        partial(saturation, factor=factors[2]),
        partial(hue, turn=turn),
    ]
    return [found[k] for k in rng.permutation(4)]


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image with all values multiplied by the factor."""
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image with differences to the mean of its grey version multiplied by the factor."""
    from PIL import ImageEnhance

    return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image with differences to its grey version multiplied by the factor."""
    from PIL import ImageEnhance

    return ImageEnhance.Color(image).enhance(factor)


def hue(image: Image.Image, turn: float) -> Image.Image:
    """Returns the image with its hues turned by a fraction of the circle."""
    from PIL import Image

    h, s, v = image.convert("HSV").split()
    by = round(255 * turn)
    turned = Image.fromarray(np.asarray(h) + np.uint8(by % 256))  # of uint8, so it wraps
    return Image.merge("HSV", (turned, s, v)).convert("RGB")


def grey(image: Image.Image) -> Image.Image:
    """Returns the luminance (ITU-R 601-2) in all three colours."""
    return image.convert("L").convert("RGB")


def blur(image: Image.Image, sigma: float, kernel: float) -> Image.Image:
    """Returns the image after a Gaussian blur.

    sigma: deviation in pixels. kernel: side of the square kernel as a fraction of the height, of which the next odd number
    of pixels is taken. Beyond the edges the picture goes on as at the edge.
    """
    from PIL import Image

    pixels = np.asarray(image)
    height, width, colours = pixels.shape
    radius = int(height * kernel) // 2
    at = np.arange(-radius, radius + 1)
    weights = np.exp(-(at**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    rows = pixels.reshape(height, width * colours).astype(np.float32)
    down = np.pad(rows, ((radius, radius), (0, 0)), mode="edge")
    blurred = _weighted([down[k : k + height] for k in range(2 * radius + 1)], weights)
    cells = blurred.reshape(height, width, colours)
    across = np.pad(cells, ((0, 0), (radius, radius), (0, 0)), mode="edge").reshape(height, -1)
    found = _weighted(
        [across[:, k * colours : (k + width) * colours] for k in range(2 * radius + 1)], weights
    )
    return Image.fromarray(np.rint(found).astype(np.uint8).reshape(pixels.shape))


def _weighted(
    parts: list[npt.NDArray[np.float32]], weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Returns the sum of parts times symmetric weights; both halves are added first, which halves the products."""
    radius = len(parts) // 2
    total = parts[radius] * weights[radius]
    both = np.empty_like(total)
    for k in range(radius):
        np.add(parts[k], parts[-1 - k], out=both)
        both *= weights[k]
        total += both
    return total
