"""Broken files that a fetcher must handle: a decompression bomb, an HTML page instead of an image, a truncated image."""

from __future__ import annotations

import struct
import zlib

BOMB_SIDE_PX = 30_000  # 900 Mpx from a file of about 110 KB


def bomb_png() -> bytes:
    """Returns a valid 1-bit PNG of BOMB_SIDE_PX x BOMB_SIDE_PX pixels, which takes 2.7 GB when decoded to RGB."""
    row = bytes(1 + (BOMB_SIDE_PX + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join([packer.compress(row * 500) for _ in range(BOMB_SIDE_PX // 500)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", BOMB_SIDE_PX, BOMB_SIDE_PX, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def html_page(name: str) -> bytes:
    """Returns the page that a host sends with status 200 for a removed image."""
    return f"<!DOCTYPE html><html><body><h1>{name} was removed</h1></body></html>\n".encode()


def truncated(data: bytes) -> bytes:
    """Returns the first 60 % of a file: a complete header, incomplete pixels."""
    return data[: len(data) * 6 // 10]
