"""Checks that an image decodes, and resizes it if `resize` is set. Run as a program, it is the child of `decoder`.

The child has limited memory and cannot open files or sockets: header checks bound pixels, frames and scans, but not what
a decoder does with hostile data.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import Damaged, Probe, verify_decode
from vlpipe.stages.images import sandbox
from vlpipe.stages.images.resize import Resize, need_possible, pixels_needed, resized

MESSAGE_S = 0.1  # after this time, the answers so far are sent


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits for an image, and how to resize it; resize: None stores it unchanged."""

    max_pixels: int
    max_frames: int
    damaged: Damaged = "reject"
    resize: Resize | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An image that decodes. probe: of the original. data, format, width, height: as stored, so after resizing."""

    probe: Probe
    data: bytes
    format: str
    width: int
    height: int


def check(data: bytes, rules: Rules) -> Checked:
    """Returns a checked (and resized) image, decoded in this process. Raises RowFault as `pixels.verify`.

    Also raises it (too_many_pixels) if `resize` would make the image larger than `max_pixels`, or than its format allows.
    """
    spec = rules.resize

    def wanted(found: Probe) -> tuple[int, int] | None:
        size = pixels_needed(spec, found.width, found.height) if spec else None
        if spec and size:
            need_possible(spec, found.width, found.height, rules.max_pixels)
        return size

    probe, image = verify_decode(
        data,
        wanted,
        max_pixels=rules.max_pixels,
        max_frames=rules.max_frames,
        damaged=rules.damaged,
    )
    if image is None or spec is None:
        return Checked(probe=probe, data=data, format=probe.format, width=probe.width, height=probe.height)
    new, width, height = resized(image, spec, probe.width, probe.height)
    return Checked(probe=probe, data=new, format=FORMAT_OF[spec.format], width=width, height=height)


FORMAT_OF = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}


def main() -> None:
    """Runs the child process: checks images until its input ends."""
    start = sandbox.begin()
    rules = start["rules"]
    rules = Rules(**{**rules, "resize": Resize(**rules["resize"]) if rules["resize"] else None})
    _load()
    sandbox.ready(start["memory_mb"], num_files=3)
    for request in sandbox.requests():
        _answer_all(json.loads(request), start["file"], rules)


def _load() -> None:
    """Loads the modules that decoding needs, because the process cannot open files later."""
    import simplejpeg  # noqa: F401
    from PIL import Image, ImageCms

    Image.init()  # imports all plugins, which are otherwise imported at first use
    ImageCms.createProfile("sRGB")


def _answer_all(sizes: list[int], file: int, rules: Rules) -> None:
    """Checks images and sends the answers, in several messages if it takes long.

    Thus the parent's timeout is exceeded by one slow image, but not by many images. sizes: bytes of each image in `file`.
    """
    answers: list[list[Any]] = []
    new: list[bytes] = []
    at, began = 0, time.monotonic()
    for size in sizes:
        one, encoded = _answer(os.pread(file, size, at), rules)
        answers.append([len(encoded), *one])
        new.append(encoded)
        at += size
        if time.monotonic() > began + MESSAGE_S:
            sandbox.answer(_packed(answers, new))
            answers, new, began = [], [], time.monotonic()
    if answers:
        sandbox.answer(_packed(answers, new))


def _answer(data: bytes, rules: Rules) -> tuple[list[Any], bytes]:
    """Returns the fields of a `Checked` (7) or `RowFault` (2), and the bytes of a resized image (empty if unchanged)."""
    try:
        found = check(data, rules)
    except RowFault as fault:
        return [fault.why, fault.detail], b""
    except MemoryError:
        return ["decode_memory", "decoding it takes more than `decode_memory_mb`"], b""
    was = found.probe
    fields = [was.format, was.width, was.height, was.num_frames, found.format, found.width, found.height]
    return fields, b"" if found.data is data else found.data


def _packed(answers: list[list[Any]], new: list[bytes]) -> bytes:
    return json.dumps(answers).encode() + b"\n" + b"".join(new)


if __name__ == "__main__":
    main()
