"""The transparency of decoded images, in each way that a file may store it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

PNG_DEPTH = 24  # byte of a PNG with its bits per channel


def alpha_of(image: Image.Image, data: bytes) -> Image.Image | None:
    """Returns the alpha of a decoded image (mode L, 0: invisible), or None if it has none. data: the file.

    A PNG may name one transparent colour (tRNS), at the depth of the file. 16-bit colours are compared by their upper 8
    bits, which are all that Pillow keeps of them; 16-bit grey levels exactly.
    """
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A")
    key = image.info.get("transparency")
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if key is None:
        return None
    depth = data[PNG_DEPTH] if image.format == "PNG" else 8
    if image.mode == "1":
        return image.convert("L").point([255 if value != key else 0 for value in range(256)])
    if image.mode == "L" and isinstance(key, int):
        level = (key & ((1 << depth) - 1)) * 255 // ((1 << depth) - 1)
        return image.point([255 if value != level else 0 for value in range(256)])
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return image.convert("I").point([255 if value != key else 0 for value in range(1 << 16)], "L")
    if image.mode == "RGB" and isinstance(key, tuple):
        colour = tuple(value >> 8 if depth == 16 else value & 0xFF for value in key)
        return _unequal(image, colour)
    return None


def _unequal(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Returns a mask of the pixels of an RGB image that differ from `colour` (255) or equal it (0)."""
    from PIL import ImageChops

    differs = None
    for channel, wanted in zip(image.split(), colour, strict=True):
        one = channel.point([255 if value != wanted else 0 for value in range(256)])
        differs = one if differs is None else ImageChops.lighter(differs, one)
    assert differs is not None
    return differs
