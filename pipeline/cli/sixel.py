"""Pictures as sixels, six rows of pixels at a time. https://www.vt100.net/docs/vt3xx-gp/chapter14.html"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 320  # pixels
NUM_COLOURS = 255
ASK_S = 0.3  # a terminal that knows the question answers it at once
ANSWER = re.compile(rb"\x1b\[\?([\d;]*)c")
FEATURE = b"4"  # sixel graphics, in the answer
MIN_RUN = 4  # repeats that are written as a number


def knows_sixel(environ: Mapping[str, str] = os.environ) -> bool:
    """True if the terminal says, asked for its device attributes, that it draws sixels. False without a terminal."""
    if environ.get("TERM", "dumb") == "dumb" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        os.write(sys.stdout.fileno(), b"\x1b[c")
        return says_sixel(_answer(file))
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _answer(file: int) -> bytes:
    """Returns what the terminal writes within ASK_S, until its answer is whole."""
    said, until = b"", time.monotonic() + ASK_S
    while not ANSWER.search(said):
        left = until - time.monotonic()
        if left <= 0 or not select.select([file], [], [], left)[0]:
            break
        said += os.read(file, 64)
    return said


def says_sixel(answer: bytes) -> bool:
    """Returns whether an answer to the question for device attributes has sixel graphics in it."""
    found = ANSWER.search(answer)
    return found is not None and FEATURE in found[1].split(b";")


def sixel_lines(picture: Image.Image) -> Iterator[str]:
    """Yields one line that draws an RGB picture, at most SIDE pixels wide and high, in NUM_COLOURS colours."""
    picture.thumbnail((SIDE, SIDE))
    coded = picture.quantize(NUM_COLOURS)
    pixels = np.asarray(coded)
    palette = np.asarray(coded.getpalette("RGB"), int).reshape(-1, 3)
    colours = "".join(
        "#{};2;{};{};{}".format(k, *(round(100 * value / 255) for value in palette[k]))
        for k in np.unique(pixels)
    )
    bands = "-".join(_band(pixels[top : top + 6]) for top in range(0, len(pixels), 6))
    yield f'\x1bPq"1;1;{picture.width};{picture.height}{colours}{bands}\x1b\\'


def _band(rows: npt.NDArray[np.uint8]) -> str:
    """Returns up to six rows of pixels: for each colour in them, the columns' bits as characters from `?` on."""
    weights = 1 << np.arange(len(rows))[:, None]
    return "$".join(f"#{k}{_runs(((rows == k) * weights).sum(0))}" for k in np.unique(rows))


def _runs(bits: npt.NDArray[np.int64]) -> str:
    ends = np.flatnonzero(np.diff(bits, append=-1)) + 1
    text = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        sign, num = chr(63 + int(bits[start])), int(end - start)
        text.append(f"!{num}{sign}" if num >= MIN_RUN else sign * num)
    return "".join(text)
