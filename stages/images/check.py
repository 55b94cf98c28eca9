"""Whether an image decodes, and what is kept of it; run as a program, the shut-in child that `decoder` asks.

The child has little memory and opens no files or sockets: header checks bound pixels, frames and scans, but not what a
decoder does with hostile data.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import Probe, verify_decode
from vlpipe.stages.images import sandbox
from vlpipe.stages.images.resize import Resize, pixels_needed, resized

MESSAGE_S = 0.1


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
    spec = rules.resize
    probe, image = verify_decode(
        data,
        lambda found: pixels_needed(spec, found.width, found.height) if spec else None,
        max_pixels=rules.max_pixels,
        max_frames=rules.max_frames,
    )
    if image is None or spec is None:
        return Checked(probe=probe, data=data, format=probe.format, width=probe.width, height=probe.height)
    new, width, height = resized(image, spec, probe.width, probe.height)
    return Checked(probe=probe, data=new, format=FORMAT_OF[spec.format], width=width, height=height)


FORMAT_OF = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}


def main() -> None:
    """The child: images after images, until its input ends."""
    start = sandbox.begin()
    rules = start["rules"]
    rules = Rules(**{**rules, "resize": Resize(**rules["resize"]) if rules["resize"] else None})
    _load()
    sandbox.ready(start["memory_mb"], num_files=3)
    for request in sandbox.requests():
        _answer_all(json.loads(request), start["file"], rules)


def _load() -> None:
    """What decoding needs, while files can be opened."""
    from PIL import Image, ImageCms

    Image.init()  # all plugins, as they are imported when first used
    ImageCms.createProfile("sRGB")


def _answer_all(sizes: list[int], file: int, rules: Rules) -> None:
    """One message, or more when it takes long: that is how a slow image is told from many."""
    said: list[list[Any]] = []
    new: list[bytes] = []
    at, began = 0, time.monotonic()
    for size in sizes:
        one, encoded = _answer(os.pread(file, size, at), rules)
        said.append([len(encoded), *one])
        new.append(encoded)
        at += size
        if time.monotonic() > began + MESSAGE_S:
            sandbox.answer(_packed(said, new))
            said, new, began = [], [], time.monotonic()
    if said:
        sandbox.answer(_packed(said, new))


def _answer(data: bytes, rules: Rules) -> tuple[list[Any], bytes]:
    """What `Checked` or a `RowFault` is made of, and the bytes of a resized image."""
    try:
        found = check(data, rules)
    except RowFault as fault:
        return [fault.why, fault.detail], b""
    except MemoryError:
        return ["decode_memory", "decoding it takes more than `decode_memory_mb`"], b""
    came = found.probe
    said = [came.format, came.width, came.height, came.num_frames, found.format, found.width, found.height]
    return said, b"" if found.data is data else found.data


def _packed(said: list[list[Any]], new: list[bytes]) -> bytes:
    return json.dumps(said).encode() + b"\n" + b"".join(new)


if __name__ == "__main__":
    main()
