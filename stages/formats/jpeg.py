"""Decodes JPEGs with libjpeg-turbo (the library simplejpeg), and finds damage that a decoder only warns of.

libjpeg decodes a file with missing or wrong parts to the end: the rest of the picture is grey, shifted or of wrong
colours, and Pillow does not pass its warnings on. simplejpeg raises the first one. Not all of them are about pixels, and
some are common on the web; `damage` tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Bytes between the last pixel and the next marker that are no sign of damage: encoders pad. A photo with a wrong part
# leaves more: of some 460 photos damaged in five ways that leave any bytes, all but two leave at least 5.
MAX_EXTRA_BYTES = 4

_LOST = re.compile(
    r"premature end of data segment|Premature end of JPEG|bad Huffman code|bad arithmetic code|found marker 0x\w+ instead"
)
_EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0x(\w\w)")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that ends the data of a scan
_SOI, _EOI, _SOS, _ALONE = 0xD8, 0xD9, 0xDA, (0x01, *range(0xD0, 0xD8))
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_SIZE = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # start of frame
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # Huffman, arithmetic, quantisation, restart interval
# Segments of a plain header before its scan -> how their content begins. A frame, baseline or progressive, has 8 bits per
# value.
_PLAIN = {
    0xC0: b"\x08",
    0xC2: b"\x08",
    0xC4: b"",
    0xDB: b"",
    0xDD: b"",
    0xE0: b"JFIF\0",
    0xE2: b"ICC_PROFILE\0",
    0xFE: b"",
}
_PLAIN_FRAMES = (0xC0, 0xC2)


class Warned(Exception):
    """Raised by `decode` with the first warning or error of libjpeg; the picture may still be whole."""


def decode(
    data: bytes, colours: Literal["rgb", "gray"], width: int, height: int, scale: int = 1
) -> npt.NDArray[np.uint8]:
    """Returns the pixels as stored, (height / scale, width / scale, 3 or 1) uint8, rounded up. Raises Warned.

    width, height: in pixels, as the header says. colours: `rgb` gives 3 values per pixel, `gray` 1. scale: 1, 2, 4 or 8;
    smaller pictures are decoded faster.
    """
    import simplejpeg

    small = (0, 0) if scale == 1 else (-(-height // scale), -(-width // scale))
    try:
        found: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, colours, min_height=small[0], min_width=small[1]
        )
    except ValueError as error:
        raise Warned(str(error)) from error
    return found


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Returns (width, height) of a JPEG whose header says nothing more about the picture, or None for any other file.

    Such a file is one 8-bit picture in grey or colour, stored upright: its header holds tables, JFIF, a profile and comments
    alone, no EXIF or XMP (orientation), no index of further pictures. This takes a third of the
    time of opening the file with Pillow.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at, size = 2, None
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == _SOS:
            return size
        begins = _PLAIN.get(marker)
        if begins is None or length < 2:
            return None
        if begins and (not data.startswith(begins, at + 4) or (length < 16 and len(begins) > 1)):
            return None  # 16: with a version, or the numbers of the parts of a profile
        if marker in _PLAIN_FRAMES:
            if size or length < 8 or data[at + 9] not in (1, 3):
                return None
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + length
    return None


def damage(data: bytes) -> str | None:
    """Returns the first warning of libjpeg that pixels are missing or wrong, or None. data: a JPEG that Pillow decodes.

    Warnings about anything else give None: bytes between the segments of the header, unusual versions, profiles or scan
    parameters, a missing end marker, padding after the last pixel, data after the image. libjpeg reports only the first
    warning, so the causes of these are removed from a copy of the file, which is then decoded. One cause cannot be removed:
    scans of a progressive JPEG that contradict each other. Damage after it is not found.
    """
    bare = _bare(data)
    if bare is None:
        return None  # no picture data that libjpeg and this function agree on; Pillow decoded it
    said = warning(bare)
    if said is None:
        return None
    if _LOST.search(said):
        return said
    extra = _EXTRA.search(said)
    if extra is None:
        return None
    num_bytes, marker = int(extra[1]), int(extra[2], 16)
    if marker in _ALONE:
        return said  # before a restart marker
    return None if num_bytes <= MAX_EXTRA_BYTES or _is_padding(bare, num_bytes, marker) else said


def warning(data: bytes, width: int = 8, height: int = 8) -> str | None:
    """Returns the first warning or error of libjpeg, or None. width, height: in pixels, if known."""
    try:
        decode(data, "gray", width, height, 8)  # at 1/8: every coefficient is read, few are transformed
    except Warned as warned:
        return str(warned)
    return None


def _is_padding(data: bytes, num_bytes: int, marker: int) -> bool:
    """Returns whether the `num_bytes` extra bytes before `marker`, as libjpeg found, are equal and it is the end marker."""
    last = data[-2 - num_bytes : -2]
    return marker == _EOI and len(last) == num_bytes and last == last[:1] * num_bytes


class _Segment(NamedTuple):
    marker: int
    start: int  # of the marker
    end: int


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yields the segments of the header up to the first start of scan, as libjpeg does: bytes between them are skipped."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF) or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (_SOI, _EOI) or end < at + 4 or end > len(data):
            return
        yield _Segment(marker, at, end)
        if marker == _SOS:
            return
        at = end


def _bare(data: bytes) -> bytes | None:
    """Returns the file with nothing but the tables and the scans, or None if it has no scan.

    If one scan holds a sequential picture, its data is cut at the first marker that ends it; the scan's last three
    parameters, which decoders ignore, are set to their only valid values.
    """
    parts, frame = [b"\xff\xd8"], None
    for segment in _segments(data):
        body = data[segment.start : segment.end]
        if segment.marker in _SIZE:
            frame = body
        if segment.marker in (*_SIZE, *_TABLES):
            parts.append(body)
        if segment.marker != _SOS:
            continue
        if frame is None or len(frame) < 10 or len(body) < 6:
            return None
        if frame[1] not in _SEQUENTIAL or body[4] != frame[9]:
            return b"".join([*parts, data[segment.start :], b"\xff\xd9"])
        after = _AFTER_SCAN.search(data, segment.end)
        scan = data[segment.end : after.start() if after else len(data)].rstrip(b"\xff")
        return b"".join([*parts, body[:-3], b"\x00\x3f\x00", scan, b"\xff\xd9"])
    return None
