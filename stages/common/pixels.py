"""Decodes image bytes to RGB: checks the header first, then converts each kind of image by one rule.

Rules: EXIF orientation is applied; alpha is composited on white; 16 bits are scaled to 8, not clipped; CMYK is
converted with its ICC profile if it has one; of an animation the first frame is used. Float and 32-bit images are
rejected: they do not define which value is white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from vlpipe.pipeline.errors import RowFault

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "AVIF",
    "BMP",
    "TIFF",
)  # the formats of the web; all other decoders are disabled
MAX_PIXELS = 50_000_000  # 200 MB for one decoded copy
MAX_FRAMES = 1000
MAX_SCANS = (
    100  # of a progressive JPEG (encoders write about 10): a scan of a few bytes costs a pass over all pixels
)
MAX_INVISIBLE = 2  # of 255: alpha up to this is invisible
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, as in BLIP
STD = (0.26862954, 0.26130258, 0.27577711)
ORIENTATION = 0x0112  # EXIF tag
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The header of an image. width, height: in pixels, after EXIF orientation is applied."""

    format: str  # as Pillow names it: JPEG, PNG, ...
    width: int
    height: int
    num_frames: int


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES) -> Probe:
    """Returns the Probe of an image, reading only its header.

    Raises RowFault: empty, not_an_image, truncated, broken, too_many_pixels, too_many_frames, too_many_scans.
    """
    with _opened(data, max_pixels) as image:
        return _probed(image, max_frames)


def verify(data: bytes, *, max_pixels: int = MAX_PIXELS, max_frames: int = MAX_FRAMES) -> Probe:
    """Returns the Probe of an image after decoding its first frame. Raises RowFault as `probe`, or transparent.

    A JPEG is read whole, but decoded at 1/8 scale: 0.47 ms instead of 0.90 ms at 640 x 480.
    """
    return verify_decode(data, lambda _: None, max_pixels=max_pixels, max_frames=max_frames)[0]


def verify_decode(
    data: bytes,
    wanted: Callable[[Probe], tuple[int, int] | None],
    *,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
) -> tuple[Probe, Image.Image | None]:
    """Returns (Probe, RGB image or None): the results of `verify` and `decode`, in one pass.

    wanted: maps the Probe to the min (width, height) of the decoded image, or to None if no image is needed.
    Raises RowFault as `verify` and `decode`.
    """
    with _opened(data, max_pixels) as image:
        found = _probed(image, max_frames)
        at_least = wanted(found)
        if at_least is None:
            image.draft("L", (1, 1))  # has no effect for formats other than JPEG
        else:
            _draft(image, at_least)
        _load(image)
        need_opaque(image)
        if image.format == "PNG":  # its orientation may be stored after the pixels
            width, height = _shown_size(image)
            found = replace(found, width=width, height=height)
            at_least = wanted(found)
        return found, None if at_least is None else _upright(image)


def need_opaque(image: Image.Image) -> None:
    """Raises RowFault (transparent) if the max alpha of a decoded image is at most MAX_INVISIBLE."""
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = image.getchannel("A")
    elif image.mode == "P" and "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
    else:
        return
    highest = alpha.getextrema()[1]
    if isinstance(highest, (int, float)) and highest <= MAX_INVISIBLE:
        raise RowFault("transparent", f"alpha is at most {highest:g} of 255 everywhere")


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Returns the first frame as upright RGB. Raises RowFault as `verify` (except transparent), or unsupported_pixels.

    at_least: min (width, height) of the upright image; a JPEG may be decoded at scale 1/2, 1/4 or 1/8 if the result is
    no smaller than that, which is several times faster.
    """
    with _opened(data, max_pixels) as image:
        if at_least is not None:
            _draft(image, at_least)
        _load(image)
        return _upright(image)


def to_pixels(image: Image.Image, size: int) -> npt.NDArray[np.float32]:
    """Returns an RGB image as (3, size, size) float32: bicubic resize without crop, CLIP's mean and deviation."""
    import numpy as np
    from PIL import Image

    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    mean, std = (np.array(v, np.float32) for v in (MEAN, STD))
    values = (np.asarray(image).astype(np.float32) / np.float32(255) - mean) / std  # (H, W, 3)
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)


def load_pixels(
    images: Sequence[bytes], size: int, *, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.float32]:
    """Returns B encoded images as (B, 3, size, size) float32, by `decode` and `to_pixels`. Raises RowFault as `decode`."""
    import numpy as np

    out = np.empty((len(images), 3, size, size), np.float32)
    for row, data in enumerate(images):
        out[row] = to_pixels(decode(data, max_pixels=max_pixels), size)
    return out


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise RowFault("empty", "0 bytes")
    if data.startswith(b"\xff\xd8") and next(islice(_SCAN.finditer(data), MAX_SCANS, None), None):
        num = sum(1 for _ in _SCAN.finditer(data))
        raise RowFault("too_many_scans", f"{num} scans, the limit is {MAX_SCANS}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RowFault("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise _unread(data, _looks_like(data)) from error
    except MemoryError:
        raise
    except Exception as error:  # parsers of hostile headers raise anything
        raise _unread(data, _error_text(error)) from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise RowFault("too_many_pixels", f"{width} x {height}, the limit is {max_pixels} pixels")
        if width < 1 or height < 1:
            raise RowFault("not_an_image", f"{width} x {height} pixels")
        yield image


def _probed(image: Image.Image, max_frames: int) -> Probe:
    try:
        num_frames = int(getattr(image, "n_frames", 1))
    except MemoryError:
        raise
    except Exception as error:  # a broken chain of frames
        raise RowFault("broken", _error_text(error)) from error
    if num_frames > max_frames:
        raise RowFault("too_many_frames", f"{num_frames} frames, the limit is {max_frames}")
    width, height = _shown_size(image)
    return Probe(format=image.format or "", width=width, height=height, num_frames=num_frames)


def _draft(image: Image.Image, at_least: tuple[int, int]) -> None:
    turned = _orientation(image) in TURNED
    image.draft(None, at_least[::-1] if turned else at_least)


def _upright(image: Image.Image) -> Image.Image:
    step = _transpose_step(image)
    rgb = _to_rgb(image)
    return rgb if step is None else rgb.transpose(step)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders of hostile data raise anything
        raise RowFault("truncated" if _ends_early(error) else "broken", _error_text(error)) from error


def _ends_early(error: Exception) -> bool:
    message = str(error).lower()
    return isinstance(error, EOFError) or "truncated" in message or "not enough image data" in message


def _shown_size(image: Image.Image) -> tuple[int, int]:
    turned = image.format != "TIFF" and _orientation(image) in TURNED  # Pillow rotates TIFF itself
    return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info and "xmp" not in image.info:
        return 1  # `getexif` would decode the whole image
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF: viewers then show the pixels as stored
        return 1


def _transpose_step(image: Image.Image) -> Image.Transpose | None:
    from PIL.Image import Transpose

    if image.format == "TIFF":
        return None
    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return steps.get(_orientation(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bits(image)
    if image.mode in ("I", "F", "LAB"):
        raise RowFault("unsupported_pixels", f"mode {image.mode} has no standard conversion to RGB")
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.format == "JPEG" and image.mode == "RGB":
        return image  # no copy
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    table = [(value + 128) // 257 for value in range(65536)]  # 65535 / 257 = 255
    return image.convert("I").point(table, "L").convert("RGB")


def _from_cmyk(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            found = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):  # ignore a broken profile
            return image.convert("RGB")
        assert found is not None  # None only with inPlace
        return found
    return image.convert("RGB")


def _on_white(rgba: Image.Image) -> Image.Image:
    from PIL import Image

    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return white


def _unread(data: bytes, detail: str) -> RowFault:
    for name, start, end in _SIGNATURES:
        if data.startswith(start):
            why = "broken" if end in data[-64:] else "truncated"
            return RowFault(why, f"it starts as {name}, but its header cannot be read")
    return RowFault("not_an_image", detail)


def _looks_like(data: bytes) -> str:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    seen = f"it looks like {kind}" if kind else f"it starts with {data[:8]!r}"
    return f"{seen}; accepted: {', '.join(FORMATS)}"


# Start-of-scan marker with its length and number of components. The two must agree, so these bytes do not occur by
# chance in a video appended to a photo.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_SIGNATURES = (
    ("JPEG", b"\xff\xd8\xff", b"\xff\xd9"),
    ("PNG", b"\x89PNG\r\n\x1a\n", b"IEND"),
)
_MARKS = (
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"%!ps", "PostScript"),
    (b"%pdf", "PDF"),
    (b"{", "JSON"),
)


def _error_text(error: Exception) -> str:
    """Returns the decoder's error text without memory addresses, so that the same bytes give the same text."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}")[:300]
