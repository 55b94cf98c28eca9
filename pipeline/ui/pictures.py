"""Pictures of rows, from heavy columns, one per request. A browser gets the stored bytes if it knows their format."""

from __future__ import annotations

import io

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.ui.row_sources import rows_of
from vlpipe.pipeline.ui.site import Answer, Missing, Query, Root, Site

MAX_PIXELS = 64_000_000  # a picture that has to be decoded here
FTYP_AVIF = (b"ftypavif", b"ftypavis")


def picture_view(site: Site, root: Root, query: Query) -> Answer:
    """Returns the picture in column `column` of the row at position `at`."""
    table = rows_of(root, query.text("step"))
    value = site.heavy.value(table, query.whole("at"), query.text("column", "image"))
    if not isinstance(value, bytes):
        raise Missing("the row has no picture")
    kind = kind_of(value)
    body = value if kind else as_png(value)
    # Nothing in the answer is a page: it could not run scripts even if somebody opened its URL.
    policy = {
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=600",
    }
    return Answer(200, body, kind or "image/png", policy)


def kind_of(data: bytes) -> str:
    """Returns the media type of a format that browsers show; empty for others. SVG is none of them: it may hold scripts."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in FTYP_AVIF:
        return "image/avif"
    return ""


def as_png(data: bytes) -> bytes:
    """Returns a picture of another format (TIFF, BMP) as PNG. Raises VlpipeError if it is none, or too large."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VlpipeError(
                    f"the picture has {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are drawn"
                )
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "PNG")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise VlpipeError(f"the bytes are no picture that can be drawn ({error})") from error
    return buffer.getvalue()
