"""tRNS in each kind of PNG: what is transparent is white, and an image of nothing else is refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import decode, verify


def png(depth: int, colour: int, row: bytes, trns: bytes, width: int = 8) -> bytes:
    """Eight equal rows. colour: 0 grey, 2 RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, 8, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\x00" + row for _ in range(8)))
    chunks = chunk(b"IHDR", header) + chunk(b"tRNS", trns) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# depth, colour type, transparent pixel, another pixel, the transparent colour as tRNS, levels of the other pixel
KINDS = {
    "1-bit grey": (1, 0, "0", "1", b"\x00\x00", 255),
    "2-bit grey": (2, 0, "01", "10", b"\x00\x01", 170),
    "4-bit grey": (4, 0, "0100", "1000", b"\x00\x04", 136),
    "8-bit grey": (8, 0, f"{0x40:08b}", f"{0x80:08b}", b"\x00\x40", 128),
    "16-bit grey": (16, 0, f"{0x4001:016b}", f"{0x4000:016b}", b"\x40\x01", 64),
    "8-bit RGB": (8, 2, f"{0x405060:024b}", f"{0x405061:024b}", b"\x00\x40\x00\x50\x00\x60", None),
    "16-bit RGB": (
        16,
        2,
        f"{0x401150116011:048b}",
        f"{0x801150116011:048b}",
        b"\x40\x11\x50\x11\x60\x11",
        None,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_image_of_the_transparent_colour_alone_is_refused(name: str) -> None:
    depth, colour, clear, other, trns, level = KINDS[name]

    def row(pixels: list[str]) -> bytes:
        bits = "".join(pixels)
        return int(bits, 2).to_bytes(len(bits) // 8, "big")

    with pytest.raises(
        RowFault,
        match=r"^transparent: the image is transparent: the alpha of every pixel is at most 0 of 255$",
    ):
        verify(png(depth, colour, row([clear] * 8), trns))
    half = png(depth, colour, row([clear, other] * 4), trns)
    assert verify(half).width == 8
    pixels = np.asarray(decode(half))[0]
    assert pixels[0].tolist() == [255, 255, 255]
    assert pixels[1].tolist() == ([level] * 3 if level is not None else pixels[1].tolist())
    assert pixels[1].tolist() != [255, 255, 255] or name == "1-bit grey"
    opaque = png(depth, colour, row([other] * 8), trns)
    assert verify(opaque).width == 8
