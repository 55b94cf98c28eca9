"""Pictures in a terminal: as the Kitty protocol sends them, as sixels, or as half blocks with 24-bit colours."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from typing import Literal

from PIL import Image

from vlpipe.pipeline.cli.sixel import knows_sixel, sixel_lines

COLUMNS = 36  # width of a picture, in characters
LINES = 14  # its height at most; a line has two pixels of a half block
KITTY_PX = 320
CHUNK = 4096  # characters of a Kitty command
MAX_PIXELS = 64_000_000


Way = Literal["kitty", "sixel", "blocks"]


def best_way() -> Way:
    """Returns how this terminal draws pictures best."""
    return "kitty" if knows_kitty() else "sixel" if knows_sixel() else "blocks"


def knows_kitty(environ: Mapping[str, str] = os.environ) -> bool:
    """True if the terminal says that it draws pictures by the Kitty protocol."""
    return "KITTY_WINDOW_ID" in environ or environ.get("TERM") in ("xterm-kitty", "xterm-ghostty")


def drawn(data: bytes, way: Way) -> Iterator[str]:
    """Yields the lines that draw a picture; one line with the reason if it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            picture = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        yield f"<no picture: {type(error).__name__}>"
        return
    yield from {"kitty": kitty_lines, "sixel": sixel_lines, "blocks": half_blocks}[way](picture)


def half_blocks(picture: Image.Image) -> Iterator[str]:
    """Yields lines of at most COLUMNS characters: the upper pixel is the colour of each, the lower one its background."""
    scale = min(COLUMNS / picture.width, 2 * LINES / picture.height)
    width, height = max(1, round(picture.width * scale)), max(2, 2 * round(picture.height * scale / 2))
    pixels = picture.resize((width, height), Image.Resampling.BILINEAR).load()
    assert pixels is not None
    for y in range(0, height, 2):
        cells = []
        for x in range(width):
            (r, g, b), (p, q, s) = pixels[x, y], pixels[x, y + 1]  # type: ignore[misc]  # an RGB picture
            cells.append(f"\x1b[38;2;{r};{g};{b};48;2;{p};{q};{s}m\u2580")
        yield "".join(cells) + "\x1b[0m"


def kitty_lines(picture: Image.Image) -> Iterator[str]:
    """Yields one line, with the picture as PNG in commands of at most CHUNK characters."""
    picture.thumbnail((KITTY_PX, KITTY_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    parts = [text[k : k + CHUNK] for k in range(0, len(text), CHUNK)]
    first = "a=T,f=100,"
    commands = []
    for n, part in enumerate(parts):
        more = int(n < len(parts) - 1)
        commands.append(f"\x1b_G{first if n == 0 else ''}m={more};{part}\x1b\\")
    yield "".join(commands)
