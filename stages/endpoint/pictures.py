"""Pictures as they are sent: as data URIs, never as URLs, and no larger than needed."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vlpipe.stages.common.pixels import decode, probe
from vlpipe.stages.images.resize import Resize, need_possible, pixels_needed, resized

MAX_PIXELS = 50_000_000
MIME = {"JPEG": b"image/jpeg", "PNG": b"image/png", "WEBP": b"image/webp"}  # that servers read
SENT_AS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """How a picture is sent. max_side: of its longer side, in pixels; larger ones are resized.

    A JPEG, PNG or WebP that is small enough, and has neither EXIF nor alpha, is sent as it is. All others are encoded anew
    in `format`: upright, on white, without what else the file holds, such as the place where it was taken.
    """

    max_side: Annotated[int, Ge(1)] = 1024
    format: Literal["jpg", "png", "webp"] = "jpg"
    quality: Annotated[int, Ge(1), Le(100)] = 90

    @property
    def resize(self) -> Resize:
        return Resize(size=self.max_side, mode="keep_ratio_largest", format=self.format, quality=self.quality)


def as_it_is(data: bytes, sent: Sent) -> bytes | None:
    """Returns the data URI of a picture that is sent as it is; None for one to encode anew. data: its file.

    Raises RowFault if its header cannot be read.
    """
    found = probe(data, max_pixels=MAX_PIXELS)
    is_small = pixels_needed(sent.resize, found.width, found.height) is None
    if not (is_small and found.num_frames == 1 and found.format in MIME and _is_plain(data)):
        return None
    return b"data:%b;base64,%b" % (MIME[found.format], base64.b64encode(data))


def encoded_anew(data: bytes, sent: Sent) -> bytes:
    """Returns the data URI of a picture that is decoded, made smaller if it is too large, and encoded.

    Raises RowFault if it cannot be decoded.
    """
    spec = sent.resize
    found = probe(data, max_pixels=MAX_PIXELS)
    needed = pixels_needed(spec, found.width, found.height)
    if needed is None:
        spec = replace(spec, size=max(found.width, found.height), only_if_bigger=False)
    need_possible(spec, found.width, found.height, MAX_PIXELS)
    image = decode(data, max_pixels=MAX_PIXELS, at_least=needed)
    smaller, _, _ = resized(image, spec, found.width, found.height)
    return b"data:%b;base64,%b" % (MIME[SENT_AS[sent.format]], base64.b64encode(smaller))


def _is_plain(data: bytes) -> bool:
    """Returns whether a file may be sent as it is: it has no EXIF, which may turn it or tell a place, and no alpha."""
    if b"Exif" in data or b"eXIf" in data or b"EXIF" in data:
        return False
    if data[:4] == b"\x89PNG":
        return data[25:26] in (b"\x00", b"\x02", b"\x03") and b"tRNS" not in data
    return data[:4] != b"RIFF" or data[12:16] == b"VP8 "
