"""Resizes images before they are stored, if a workflow sets `resize`; otherwise image bytes are stored unchanged.

The modes are those of img2dataset's `resize_mode`. Pixels follow the rules of `common.pixels` (upright, RGB, alpha on
white). All other content of the file (EXIF with locations and serial numbers, comments, data after the end) is dropped,
except the colour profile of RGB pixels.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from vlpipe.pipeline.errors import RowFault

if TYPE_CHECKING:
    from PIL import Image

WHITE = (255, 255, 255)
# A JPEG is decoded at the smallest scale (1/2, 1/4 or 1/8) that is at least this many times the target size. From 640 x
# 480 to 171 x 128 this and the filter below take 1.9 ms, bicubic from full size 4.8 ms; PSNR against Lanczos from full
# size: 42.1 and 47.9 dB. From 160 to 128 px: 38.8 dB, and 38.9 dB with OpenCV's INTER_AREA (as in img2dataset).
REDUCING_GAP = 1.5
MAX_SIDE = {"jpg": 65_500, "webp": 16_383}  # pixels, of libjpeg and libwebp


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Settings for resizing an image. size: in pixels.

    mode: keep_ratio: the shorter side becomes `size`; keep_ratio_largest: the longer side does; center_crop: keep_ratio,
    then a central square is cut out; border: keep_ratio_largest, then padded with white to a square.
    only_if_bigger: an image whose shorter or longer side (by mode) is at most `size` is stored unchanged.
    quality: of jpg and webp, 1 to 100; not used for png.
    """

    size: Annotated[int, Ge(1)] = 256
    mode: Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep_ratio"
    only_if_bigger: bool = True
    format: Literal["jpg", "webp", "png"] = "jpg"
    quality: Annotated[int, Ge(1), Le(100)] = 95

    def side_of(self, width: int, height: int) -> int:
        """Returns the side that `mode` compares with `size`, in pixels."""
        return min(width, height) if self.mode in ("keep_ratio", "center_crop") else max(width, height)


def pixels_needed(spec: Resize, width: int, height: int) -> tuple[int, int] | None:
    """Returns the min (width, height) to decode an image at, or None if it is stored unchanged.

    It is REDUCING_GAP times the new size. width, height: of the upright image.
    """
    if spec.only_if_bigger and spec.side_of(width, height) <= spec.size:
        return None
    width, height = inner_size(spec, width, height)
    return round(width * REDUCING_GAP), round(height * REDUCING_GAP)


def need_possible(spec: Resize, width: int, height: int, max_pixels: int) -> None:
    """Raises RowFault (too_many_pixels) if the resized image, such as that of a thin line, is too large.

    It is if it has more than `max_pixels` or, in the modes keep_ratio and keep_ratio_largest, a side longer than its format
    allows.
    """
    new = inner_size(spec, width, height)
    longest = MAX_SIDE.get(spec.format, max_pixels) if spec.mode.startswith("keep_ratio") else max_pixels
    if math.prod(new) > max_pixels or max(new) > longest:
        limit = f"the limits are {max_pixels} pixels in total and {longest} per side"
        raise RowFault("too_many_pixels", f"the resized image would have {new[0]} x {new[1]} pixels, {limit}")


def resized(image: Image.Image, spec: Resize, width: int, height: int) -> tuple[bytes, int, int]:
    """Returns (encoded bytes, width, height) of a resized RGB image.

    image: may be decoded at a smaller scale. width, height: of the original, from its Probe.
    """
    image = fitted(image, spec, inner_size(spec, width, height))
    return _encoded(image, spec), image.width, image.height


def inner_size(spec: Resize, width: int, height: int) -> tuple[int, int]:
    """Returns the new (width, height) of the full image, before a crop or border."""
    scale = spec.size / spec.side_of(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fitted(image: Image.Image, spec: Resize, size: tuple[int, int]) -> Image.Image:
    """Returns the image resized to `size` (down: Hamming, with antialiasing; up: bicubic), then cropped or padded."""
    from PIL import Image

    if image.size != size:
        smaller = size[0] <= image.width and size[1] <= image.height
        image = image.resize(size, Image.Resampling.HAMMING if smaller else Image.Resampling.BICUBIC)
    left, top = (image.width - spec.size) // 2, (image.height - spec.size) // 2
    if spec.mode == "center_crop":
        return image.crop((left, top, left + spec.size, top + spec.size))
    if spec.mode == "border":
        square = Image.new("RGB", (spec.size, spec.size), WHITE)
        square.paste(image, (-left, -top))
        return square
    return image


def _encoded(image: Image.Image, spec: Resize) -> bytes:
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile") or b""  # Pillow writes everything in `info`, also comments
    image.info = {"icc_profile": profile} if profile[16:20] == b"RGB " else {}
    if spec.format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, {"jpg": "JPEG", "webp": "WEBP"}[spec.format], quality=spec.quality)
    return buffer.getvalue()
