"""Opens image files: checks their headers against the limits, and names the fault of those that cannot be opened."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.formats.signatures import (
    FORMATS,
    ends_early,
    format_of,
    icon_sizes,
    other_content,
    other_format,
)

if TYPE_CHECKING:
    from PIL import Image

MAX_SCANS = (
    100  # of a progressive JPEG (encoders write about 10): a scan of a few bytes costs a pass over all pixels
)

NUMPY_BYTES = 1 << 14  # of a file, above which NumPy is faster


@contextmanager
def opened(data: bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    """Context manager that yields an image opened by Pillow, of which only the header is read (an ICO is decoded).

    max_pixels: None (no limit) for images that an earlier step has checked. Raises RowFault: empty,
    not_an_image, unsupported_format, truncated, broken, too_many_pixels, too_many_scans.
    """
    if not data:
        raise RowFault("empty", "the file has 0 bytes")
    if has_many_scans(data):
        num = sum(1 for _ in _SCAN.finditer(data))
        raise RowFault("too_many_scans", f"the JPEG has {num} scans, the limit is {MAX_SCANS}")
    if format_of(data) == "ICO":  # Pillow decodes it when it opens it
        for width, height in icon_sizes(data):
            need_small(width, height, max_pixels)
    with _open(data, max_pixels) as image:
        width, height = image.size
        need_small(width, height, max_pixels)
        if width < 1 or height < 1:
            raise RowFault(
                "not_an_image", f"the header gives {width} x {height} pixels; wanted at least 1 x 1"
            )
        yield image


def has_many_scans(data: bytes) -> bool:
    """Returns whether the file is a JPEG of more than MAX_SCANS scans."""
    if not data.startswith(b"\xff\xd8"):
        return False
    if (
        len(data) > NUMPY_BYTES
    ):  # counting two bytes with NumPy takes half the time of the search, and tells nearly always
        import numpy as np

        values = np.frombuffer(data, np.uint8)
        if np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)) <= MAX_SCANS:
            return False
    return next(islice(_SCAN.finditer(data), MAX_SCANS, None), None) is not None


def need_small(width: int, height: int, max_pixels: int | None) -> None:
    """Raises RowFault (too_many_pixels) if width x height exceeds `max_pixels`; None: no limit."""
    if max_pixels is not None and width * height > max_pixels:
        raise too_many_pixels(width * height, max_pixels)


def too_many_pixels(num: int, limit: int) -> RowFault:
    """Returns the fault of an image of `num` pixels, more than `limit`."""
    return RowFault("too_many_pixels", f"the image has {num} pixels, the limit is {limit}")


@cache
def _silence_pillow() -> None:
    """Ignores Pillow's Python warnings about odd metadata, which would reach the terminal of a run."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _open(data: bytes, max_pixels: int | None) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    _silence_pillow()
    own = Image.MAX_IMAGE_PIXELS  # of Pillow; it raises at twice that
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        if own == Image.MAX_IMAGE_PIXELS:  # else another thread has just raised it
            if own is None or (max_pixels is not None and max_pixels <= 2 * own):
                num = re.search(r"\d+", str(error))
                raise too_many_pixels(int(num[0]) if num else 0, max_pixels or 0) from error
            Image.MAX_IMAGE_PIXELS = max_pixels  # no smaller again: other threads may be decoding
        return _open(data, max_pixels)
    except UnidentifiedImageError as error:
        if own != Image.MAX_IMAGE_PIXELS:  # another thread raised it while Pillow compared
            return _open(data, max_pixels)
        raise _unread(data, _why_unidentified(data)) from error
    except MemoryError:
        raise
    except Exception as error:  # parsers of hostile headers raise anything
        if own != Image.MAX_IMAGE_PIXELS:  # as above
            return _open(data, max_pixels)
        raise _unread(data, error_text(error)) from error


def _why_unidentified(data: bytes) -> str:
    """Returns the error text, which `Image.open` hides, of the decoder for the format that the first bytes show."""
    from PIL import Image

    found = format_of(data)
    try:
        if found is not None:
            Image.OPEN[found][0](io.BytesIO(data), "")
    except MemoryError:
        raise
    except Exception as error:
        return error_text(error)
    return "no decoder recognises the format"


def _unread(data: bytes, detail: str) -> RowFault:
    """Returns the fault of bytes that Pillow cannot open: truncated, unsupported_format, broken, not_an_image.

    detail: the decoder's error text.
    """
    found = format_of(data)
    if found and ends_early(data):
        return RowFault("truncated", f"the file starts as {found}, but ends early: {detail}")
    if found and _OTHER_KIND.search(detail):
        return RowFault(
            "unsupported_format", f"the file is a {found} of a kind that cannot be read: {detail}"
        )
    if found:
        return RowFault("broken", f"the file starts as {found}, but its header cannot be read: {detail}")
    accepted = f"accepted are {', '.join(FORMATS)}"
    if other := other_format(data):
        return RowFault("unsupported_format", f"the file is {other}; {accepted}")
    kind = other_content(data)
    return RowFault(
        "not_an_image",
        f"the file looks like {kind}; {accepted}"
        if kind
        else f"the file starts with {data[:8]!r}; {accepted}",
    )


_OTHER_KIND = re.compile(
    "unsupported|unknown pixel mode|unknown raw mode", re.IGNORECASE
)  # in Pillow's errors
# Start-of-scan marker with its length and number of components. The two must agree, so these bytes do not occur by
# chance in a video appended to a photo.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")


def error_text(error: Exception) -> str:
    """Returns the type and text of a decoder's error, without memory addresses: the same bytes give the same text."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}")[:300]
