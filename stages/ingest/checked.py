"""Whether an image decodes, and what is kept of it; run as a program, the shut-in child that `decoder` asks.

The child has little memory and opens no files or sockets: header checks bound pixels, frames and scans, but not what a
decoder does with hostile data.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.ingest.resize import Resize, is_small, resized
from vlpipe.stages.pixels import Probe, verify
from vlpipe.stages.pixels import probe as read_header

JPEG_START = b"\xff\xd8"
LENGTH = 8  # bytes, big-endian, before each image
ANSWER = struct.Struct("!IQ")  # before each answer: bytes of JSON, of a resized image


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What an image may be, and what is to be done with it."""

    max_pixels: int
    max_frames: int
    resize: Resize | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An image that decodes. `probe`: as it came; `data`, width, height: as it is kept."""

    probe: Probe
    data: bytes
    format: str
    width: int
    height: int


def check(data: bytes, rules: Rules) -> Checked:
    """In this process. RowFault: those of `stages.pixels`."""
    limits = {"max_pixels": rules.max_pixels, "max_frames": rules.max_frames}
    # A JPEG to be resized is decoded there, and hides nothing behind alpha: one pass is enough.
    once = rules.resize is not None and data.startswith(JPEG_START)
    probe = read_header(data, **limits) if once else verify(data, **limits)
    if rules.resize is None or is_small(rules.resize, probe.width, probe.height):
        if once:
            verify(data, **limits)
        return Checked(probe=probe, data=data, format=probe.format, width=probe.width, height=probe.height)
    new, width, height = resized(data, rules.resize, probe.width, probe.height, rules.max_pixels)
    return Checked(probe=probe, data=new, format=FORMAT_OF[rules.resize.format], width=width, height=height)


FORMAT_OF = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}


def _answer(data: bytes, rules: Rules) -> bytes:
    try:
        found = check(data, rules)
    except RowFault as fault:
        return _packed({"why": fault.why, "detail": fault.detail})
    except MemoryError:
        return _packed({"why": "decode_memory", "detail": "decoding it takes more than `decode_memory_mb`"})
    probe = {name: getattr(found.probe, name) for name in Probe.__slots__}
    said = {"probe": probe, "format": found.format, "width": found.width, "height": found.height}
    return _packed(said, b"" if found.data is data else found.data)


def _packed(said: dict[str, Any], new: bytes = b"") -> bytes:
    text = json.dumps(said).encode()
    return ANSWER.pack(len(text), len(new)) + text + new


def write(fd: int, data: bytes) -> None:
    """All of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def main() -> None:
    """The child: image after image, until its input ends."""
    source, answers = sys.stdin.buffer, sys.stdout.fileno()
    start = json.loads(source.read(int.from_bytes(source.read(LENGTH), "big")))
    sys.path[:] = start["path"]
    rules = start["rules"]
    rules = Rules(**{**rules, "resize": Resize(**rules["resize"]) if rules["resize"] else None})
    _shut_in(start["memory_mb"])
    write(answers, _packed({"ready": True}))
    while head := source.read(LENGTH):
        write(answers, _answer(source.read(int.from_bytes(head, "big")), rules))


def _shut_in(memory_mb: int) -> None:
    """Load what decoding needs, then give up the right to more memory, files and sockets."""
    import resource

    from PIL import Image, ImageCms

    Image.init()  # all plugins, as they are imported when first used
    ImageCms.createProfile("sRGB")
    if sys.platform == "linux":  # others do not keep to this limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


if __name__ == "__main__":
    main()
