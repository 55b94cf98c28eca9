"""Training augmentation as in BLIP (crop, flip, RandAugment without colour operations), without torchvision.

All random draws come from the given generator: the same generator state gives the same pixels.
BLIP's data/__init__.py: crop scale (0.2, 1) in pretraining and (0.5, 1) in finetuning, N = 2, M = 5, each
operation applied with probability 0.5. https://github.com/salesforce/BLIP
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import ConfigDict

from vlpipe.stages.common.pixels import Box

if TYPE_CHECKING:
    from PIL import Image

OP_PROBABILITY = 0.5
MAX_MAGNITUDE = 10
ASPECT = (3 / 4, 4 / 3)  # of the crop; as in the Inception paper and torchvision's default
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
GREY = (128, 128, 128)  # fills the area uncovered by shear, shift and rotation


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Image augmentation. BLIP uses crop_scale [0.2, 1] in pretraining, [0.5, 1] in finetuning, and randaugment [2, 5]."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    crop_scale: tuple[float, float] | None = (
        None  # min and max area of a random crop, as a fraction of the image
    )
    flip: bool = False  # mirror half of the images, except those whose text says left or right
    randaugment: tuple[int, float] | None = None  # (operations per image, magnitude from 0 to 10)


def augmented(
    resized: Callable[[Callable[[int, int], Box], int], Image.Image],
    spec: Augmentation,
    size: int,
    text: str,
    rng: np.random.Generator,
) -> Image.Image:
    """Returns a (size, size) image: random crop, horizontal flip unless `text` says left or right, RandAugment.

    `spec` selects which of the three are applied. resized: maps (part, size) to that part of the image, (size, size); part
    maps the image's (width, height) to the box to cut out.
    """
    from PIL.Image import Transpose

    def part(width: int, height: int) -> Box:
        return (
            (0, 0, width, height)
            if spec.crop_scale is None
            else crop_box(width, height, spec.crop_scale, rng)
        )

    image = resized(part, size)
    if is_flipped(spec, text, rng):
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    if spec.randaugment is not None:
        image = rand_augment(image, *spec.randaugment, rng)
    return image


def is_flipped(spec: Augmentation, text: str, rng: np.random.Generator) -> bool:
    """Draws whether an image with this text is mirrored."""
    return spec.flip and bool(rng.random() < 0.5) and not SIDES.search(text)


def crop_box(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Returns a random box (left, top, right, bottom) in pixels.

    Its area is a random fraction, within `scale` (min, max), of the image's; its aspect ratio is 3/4 to 4/3. If ten random
    boxes do not fit in the image, it is the largest central one with an allowed aspect ratio (torchvision's rule).
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def rand_augment(image: Image.Image, num_ops: int, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """Returns the image after `num_ops` operations, drawn with replacement, each applied with probability 0.5.

    magnitude: 0 to 10.
    """
    for pick in rng.integers(len(OPS), size=num_ops):
        if rng.random() < OP_PROBABILITY:
            image = OPS[pick](image, magnitude / MAX_MAGNITUDE, rng)
    return image


Op = Callable[
    ["Image.Image", float, np.random.Generator], "Image.Image"
]  # level: magnitude / 10, from 0 to 1


def identity(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return image


def auto_contrast(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.equalize(image)


def brightness(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(image).enhance(_enhance_factor(level))


def sharpness(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    from PIL import ImageEnhance

    return ImageEnhance.Sharpness(image).enhance(_enhance_factor(level))


def shear_x(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, _signed(0.3 * level, rng), 0, 0, 1, 0))


def shear_y(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, _signed(0.3 * level, rng), 1, 0))


def translate_x(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, _signed(_shift(level, image.width), rng), 0, 1, 0))


def translate_y(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _signed(_shift(level, image.height), rng)))


def rotate(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    from PIL import Image

    return image.rotate(_signed(30 * level, rng), Image.Resampling.BILINEAR, fillcolor=GREY)


OPS: tuple[Op, ...] = (
    identity,
    auto_contrast,
    equalize,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
)


def _enhance_factor(level: float) -> float:
    return 0.1 + 1.8 * level  # 1.0 (no change) at BLIP's M = 5


def _shift(level: float, side: int) -> float:
    return level * side * 10 / 224  # BLIP: 10 pixels at 224


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    from PIL import Image

    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY
    )
