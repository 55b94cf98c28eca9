"""Detects the format of a file by its first bytes, and whether it is truncated; lists the accepted formats.

Sources: https://mimesniff.spec.whatwg.org/#image-type-pattern-matching-algorithm for the formats of browsers, the formats'
own specifications for the others.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

# format as Pillow names it -> ending of a file name. JPEG includes MPO, a JPEG with further pictures behind the first.
ENDINGS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "AVIF": "avif",
    "BMP": "bmp",
    "ICO": "ico",
    "TIFF": "tif",
    "MPO": "jpg",
}
FORMATS = tuple(
    name for name in ENDINGS if name != "MPO"
)  # decoders that are enabled; MPO is found by that of JPEG
OTHER_ENDINGS = ("jpeg", "mpo", "tiff")  # also in use

_HEAD = 512  # bytes looked at
_MAX_BOXES = 10_000  # files have about five
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def format_of(data: bytes) -> str | None:
    """Returns the accepted format that the first bytes are of, a key of ENDINGS except MPO, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if b"avif" in _brands(data) or b"avis" in _brands(data):
        return "AVIF"
    if (
        data.startswith(b"BM") and len(data) > 6 and not data[6:10].strip(b"\0")
    ):  # reserved; a text may begin with BM
        return "BMP"
    if data.startswith(b"\x00\x00\x01\x00") and len(data) > 4:
        return "ICO"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    return None


def ends_early(data: bytes) -> bool:
    """Returns True if a file of an accepted format is shorter than its own sizes say, or lacks its end marker."""
    found = _IS_CUT.get(format_of(data) or "")
    return found is not None and found(data)


def other_format(data: bytes) -> str | None:
    """Returns the name of an image format that is not accepted, such as `HEIC`; None if it is accepted or unknown."""
    if format_of(data):
        return None
    head = data[:_HEAD]
    if _brands(data) & set(_HEIC):
        return "HEIC"
    if head[4:6] == bytes(2) and _is_tga(
        head
    ):  # otherwise it may be a cursor, of which this is the number of pictures
        return "TGA"
    found = next((name for name, at, marks in _IMAGES if head[at:].startswith(marks)), None)
    found = found or next((name for name, pattern in _IMAGE_PATTERNS if pattern.match(head)), None)
    return found or ("TGA" if _is_tga(head) else None)


def other_content(data: bytes) -> str | None:
    """Returns the kind of a file that is not an image, such as `HTML` or `a video (MP4)`; None if it is not known."""
    text = data[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((name for mark, name in _TEXTS if text.startswith(mark)), None) or next(
        (name for name, at, marks in _NO_IMAGES if data[at : at + 16].startswith(marks)), None
    )


def icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the (width, height) of each picture in an ICO file, from the picture's own header, not the ICO directory."""
    for start, _ in _icons(data):
        head = data[start : start + 24]
        if head.startswith(b"\x89PNG") and len(head) == 24:
            yield int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        elif len(head) >= 12:  # a BMP without its file header; the mask below doubles the height
            wide, high = (int.from_bytes(head[k : k + 4], "little", signed=True) for k in (4, 8))
            yield abs(wide), abs(high) // 2


def _icons(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields (position, size) in bytes of each picture in an ICO file; truncated directory entries are left out."""
    count = int.from_bytes(data[4:6], "little")
    for at in range(6, min(6 + 16 * count, len(data) - 15), 16):
        yield (
            int.from_bytes(data[at + 12 : at + 16], "little"),
            int.from_bytes(data[at + 8 : at + 12], "little"),
        )


def _brands(data: bytes) -> frozenset[bytes]:
    """Returns the brands of an ISO media file (AVIF, HEIC, MP4), or an empty set if it is none."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), _HEAD)
    listed = {data[at : at + 4] for at in range(16, end, 4)}
    return frozenset({data[8:12], *listed})


def _is_tga(head: bytes) -> bool:
    """Returns whether it may be a TGA, which has no signature: colour map, type, size, depth, descriptor must be valid."""
    if len(head) < 18:
        return False
    has_map, kind, width, height = head[1], head[2] & 7, head[12:14], head[14:16]
    return (
        head[2] in (1, 2, 3, 9, 10, 11)
        and has_map in ((1,) if kind == 1 else (0, 1))
        and any(width)
        and any(height)
        and head[16] in (8, 15, 16, 24, 32)
        and head[17] & 0xC0 == 0
    )


def _boxes_cut(data: bytes) -> bool:
    """Returns whether an ISO media file is truncated: its last box does not end with the file, or no box contains pixels."""
    at, has_pixels = 0, False
    for _ in range(_MAX_BOXES):
        if at + 8 > len(data):
            break
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        has_pixels = has_pixels or data[at + 4 : at + 8] == b"mdat"
        if size == 0:
            return not has_pixels  # the last one, up to the end of the file
        at += max(size, 8)
    return at != len(data) or not has_pixels


def _ico_cut(data: bytes) -> bool:
    count = int.from_bytes(data[4:6], "little")
    return len(data) < 6 + 16 * count or any(start + size > len(data) for start, size in _icons(data))


def _gif_cut(data: bytes) -> bool:
    return not data.rstrip(b"\x00\r\n ").endswith(b";")


def _tiff_cut(data: bytes) -> bool:
    """Returns whether a TIFF is truncated in its first directory, a value, a strip or tile; a BigTIFF, in its header."""
    order = "<" if data[:1] == b"I" else ">"
    if len(data) < 8 or data[2:3] == b"+" or data[3:4] == b"+":
        return len(data) < 16
    (at,) = struct.unpack_from(order + "I", data, 4)
    if at + 2 > len(data):
        return True
    (count,) = struct.unpack_from(order + "H", data, at)
    if at + 2 + 12 * count > len(data):
        return True
    values: dict[int, tuple[int, ...]] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, num, value = struct.unpack_from(order + "HHII", data, entry)
        code = _TIFF_TYPES.get(kind, "B")
        size = num * struct.calcsize(code)
        start = value if size > 4 else entry + 8
        if start + size > len(data):
            return True
        if tag in (273, 279, 324, 325) and tag not in values:  # offsets and sizes of strips, of tiles
            values[tag] = struct.unpack_from(f"{order}{num}{code}", data, start)
    return any(
        start + size > len(data)
        for a, b in ((273, 279), (324, 325))
        for start, size in zip(values.get(a, ()), values.get(b, ()), strict=False)
    )


_TIFF_TYPES = {3: "H", 4: "I", 5: "Q", 8: "h", 9: "i", 10: "q", 11: "f", 12: "d"}  # others: one byte each
_IS_CUT: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda data: b"\xff\xd9" not in data[-64:],
    "PNG": lambda data: b"IEND" not in data[-64:],
    "WEBP": lambda data: int.from_bytes(data[4:8], "little") + 8 > len(data),
    "GIF": _gif_cut,
    "AVIF": _boxes_cut,
    "BMP": lambda data: int.from_bytes(data[2:6], "little") > len(data),
    "ICO": _ico_cut,
    "TIFF": _tiff_cut,
}
# (name, position, what stands there)
_IMAGES: tuple[tuple[str, int, bytes | tuple[bytes, ...]], ...] = (
    ("JPEG 2000", 0, (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    ("JPEG XL", 0, (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")),
    ("JPEG XR", 0, b"II\xbc"),
    ("Photoshop (PSD)", 0, b"8BPS"),
    ("GIMP (XCF)", 0, b"gimp xcf"),
    ("cursor (CUR)", 0, b"\x00\x00\x02\x00"),
    ("Mac icon (ICNS)", 0, b"icns"),
    ("DDS", 0, b"DDS "),
    ("FITS", 0, b"SIMPLE  ="),
    ("SGI", 0, b"\x01\xda"),
    ("OpenEXR", 0, b"\x76\x2f\x31\x01"),
    ("Radiance HDR", 0, (b"#?RADIANCE", b"#?RGBE")),
    ("QOI", 0, b"qoif"),
    ("farbfeld", 0, b"farbfeld"),
    ("FLIF", 0, b"FLIF"),
    ("BPG", 0, b"BPG\xfb"),
    ("MNG", 0, b"\x8aMNG"),
    ("JNG", 0, b"\x8bJNG"),
    ("DjVu", 0, b"AT&TFORM"),
    ("Sun raster", 0, b"\x59\xa6\x6a\x95"),
    ("Windows metafile (WMF)", 0, (b"\xd7\xcd\xc6\x9a", b"\x01\x00\x09\x00\x00\x03")),
    ("Windows metafile (EMF)", 40, b" EMF"),
    ("XPM", 0, b"/* XPM */"),
    ("BLP", 0, (b"BLP1", b"BLP2")),
    ("KTX", 0, b"\xabKTX "),
    ("FLI animation", 4, (b"\x11\xaf", b"\x12\xaf")),
    ("GIMP brush", 20, b"GIMP"),
    ("MSP", 0, (b"DanM", b"LinS")),
    ("DICOM", 128, b"DICM"),
    ("McIDAS", 0, b"\x00\x00\x00\x00\x00\x00\x00\x04"),
)
_IMAGE_PATTERNS = (
    ("PNM", re.compile(rb"P(?:[1-7]\s|[Ff][\r\n])")),
    ("XBM", re.compile(rb"(?:\s*/\*[^*]*\*/)?\s*#define\s+\S*_?width\s+\d+")),
    ("PCX", re.compile(rb"\x0a[\x00\x02\x03\x04\x05][\x00\x01][\x01\x02\x04\x08]")),
    ("IM", re.compile(rb"(?:Image type|Name|Comment):[^\r\n]*\r\n")),
    ("IMT", re.compile(rb"width +\d+\n *height +\d+\n|\*.*\nwidth", re.DOTALL)),
)
_TEXTS = (
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"%!ps", "PostScript"),
    (b"%pdf", "PDF"),
    (b"{\\rtf", "an RTF document"),
    (b"{", "JSON"),
)
_NO_IMAGES: tuple[tuple[str, int, bytes | tuple[bytes, ...]], ...] = (
    ("a video (MP4)", 4, b"ftyp"),
    ("a video (WebM or Matroska)", 0, b"\x1aE\xdf\xa3"),
    ("a video (AVI)", 8, b"AVI "),
    ("a video (FLV)", 0, b"FLV\x01"),
    ("a video (MPEG)", 0, (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")),
    ("sound (WAV)", 8, b"WAVE"),
    ("sound (MP3)", 0, b"ID3"),
    ("sound (FLAC)", 0, b"fLaC"),
    ("sound or video (Ogg)", 0, b"OggS"),
    ("Flash", 0, (b"FWS", b"CWS", b"ZWS")),
    ("PostScript", 0, b"\xc5\xd0\xd3\xc6"),
    ("a zip archive", 0, b"PK\x03\x04"),
    ("a gzip file", 0, b"\x1f\x8b"),
    ("a RAR archive", 0, b"Rar!"),
    ("a 7z archive", 0, b"7z\xbc\xaf\x27\x1c"),
    ("an OLE document", 0, b"\xd0\xcf\x11\xe0"),
    ("a tar archive", 257, b"ustar"),
)
