"""Decoding and augmenting of training pictures: a part at the scale that it needs, beside the whole and a crop of it.

    python benchmarks/decode_part.py            # a minute
    python benchmarks/decode_part.py --write    # and puts the page into decode_part.md beside this file

Photos (flickr8k, scaled up) as JPEG of quality 90, one thread, BLIP's augmentation in pretraining (crop of 0.2 to 1 of the
area, flip, RandAugment) to 224 x 224. "Whole" is what training did before: decode, crop, resize.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import machine, machine_line, table

from vlpipe.stages.common.pixels import decode, decode_part, resized_part, to_pixels
from vlpipe.stages.loading.augment import Augmentation, augmented

HERE = Path(__file__).parent
OUT = 224
SIDES = (500, 1280, 2560)
SPEC = Augmentation(crop_scale=(0.2, 1.0), flip=True, randaugment=(2, 5.0))


def photos(folder: Path, width: int, num: int) -> list[bytes]:
    """`num` photos, `width` pixels wide."""
    found = []
    for path in sorted(folder.rglob("*.jpg"))[:num]:
        image = Image.open(path).convert("RGB")
        buffer = io.BytesIO()
        image.resize((width, 3 * width // 4), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def whole(data: bytes, part: Any, size: int) -> Image.Image:
    image = decode(data)
    return resized_part(image, part(*image.size), size)


def scaled(data: bytes, part: Any, size: int) -> Image.Image:
    return decode_part(data, part, size)[0]


def seconds(way: Callable[..., Image.Image], data: list[bytes]) -> float:
    """CPU seconds per picture; the same crops for both ways."""
    began = time.process_time()
    for k, one in enumerate(data):
        to_pixels(augmented(partial(way, one), SPEC, OUT, "", np.random.default_rng(k)), OUT)
    return (time.process_time() - began) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write decode_part.md")
    options = parser.parse_args()
    folder = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data") / "flickr8k"
    if not folder.exists():
        print("skipped: no flickr8k in VLPIPE_DATA or ../shared/data")
        return
    at, rows = machine(), []
    for width in SIDES:
        data = photos(folder, width, 60)
        taken = [(seconds(whole, data), seconds(scaled, data)) for _ in range(5)]
        before, now = (statistics.median(times) for times in zip(*taken, strict=True))
        rows.append(
            (
                f"{width} x {3 * width // 4}",
                f"{1000 * before:.1f}",
                f"{1000 * now:.1f}",
                f"{before / now:.2f}",
            )
        )
    header = ("pixels", "whole, ms per picture", "part, ms per picture", "pictures/s, whole = 1")
    text = (__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[2].strip()
    page = "\n".join(["# Decoding and augmenting\n", text, "", machine_line(at), "", table(header, rows), ""])
    print(page)
    if options.write:
        (HERE / "decode_part.md").write_text(page)


if __name__ == "__main__":
    main()
