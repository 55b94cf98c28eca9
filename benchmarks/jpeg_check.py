"""Damaged JPEGs: how many are found, how many genuine images are refused, and what the check costs.

    python benchmarks/jpeg_check.py            # two minutes on one core
    python benchmarks/jpeg_check.py --write    # and puts the page into jpeg_check.md beside this file

Damage is made from photos of flickr8k with a fixed seed. The images are found through VLPIPE_DATA or at ../shared/data
beside the repository (flickr8k, dup_images, odd_images).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from record import machine, machine_line, table

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import decode, verify

HERE = Path(__file__).parent
NUM = 200  # photos of each kind of damage
SEED = 0
ROUNDS = 7
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF")
Check = Callable[[bytes], object]
Damage = Callable[[bytes, int, random.Random], bytes]  # of (file, first byte of the scan, random)


def find_data() -> Path:
    return Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data")


def by_pillow(data: bytes) -> None:
    """The check before: the header, then all scans at 1/8."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.draft("L", (1, 1))
        image.load()


def decoded_by_pillow(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        return image.convert("RGB")


def is_refused(check: Check, data: bytes) -> bool:
    try:
        check(data)
    except RowFault:
        return True
    except Exception:  # Pillow, asked directly, raises anything
        return True
    return False


def cut(data: bytes, start: int, rng: random.Random) -> bytes:
    return data[: start + int((len(data) - start) * rng.uniform(0.1, 0.9))]


def closed(data: bytes, start: int, rng: random.Random) -> bytes:
    return cut(data, start, rng) + b"\xff\xd9"


def holed(data: bytes, start: int, rng: random.Random) -> bytes:
    at = rng.randrange(start, max(start + 1, len(data) - 1100))
    return data[:at] + data[at + 1024 :]


def page(data: bytes, start: int, rng: random.Random) -> bytes:
    at = rng.randrange(start, len(data) - 300)
    return data[:at] + b"<html><body>502 Bad Gateway</body></html>" * 4 + data[at:]


def zeroed(data: bytes, start: int, rng: random.Random) -> bytes:
    at = rng.randrange(start, len(data) - 300)
    return data[:at] + bytes(200) + data[at + 200 :]


def flipped(num: int) -> Damage:
    def flip(data: bytes, start: int, rng: random.Random) -> bytes:
        bad = bytearray(data)
        for _ in range(num):
            bad[rng.randrange(start, len(bad) - 2)] ^= 1 << rng.randrange(8)
        return bytes(bad)

    return flip


KINDS: dict[str, Damage] = {
    "cut at 10 to 90 %": cut,
    "the same, closed with an end marker": closed,
    "1 KB missing": holed,
    "a web page written into it": page,
    "200 bytes zero": zeroed,
    "ten bits flipped": flipped(10),
    "one bit flipped": flipped(1),
}


def progressive(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.resize((320, 320), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95, progressive=True)
    return buffer.getvalue()


def changed(data: bytes, bad: bytes) -> float:
    """Share of pixels that differ by more than 16 of 255 in some channel."""
    one, other = (np.asarray(decode(each), np.int16) for each in (data, bad))
    return float((np.abs(one - other).max(axis=2) > 16).mean())


def damaged_rows(photos: Sequence[Path], make: Callable[[bytes], bytes]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, damage in KINDS.items():
        rng = random.Random(SEED)
        before = after = 0
        missed: list[float] = []
        for path in rng.sample(list(photos), NUM):
            data = make(path.read_bytes())
            bad = damage(data, data.rindex(b"\xff\xc4") if make is progressive else _scan(data), rng)
            before += is_refused(by_pillow, bad)
            if is_refused(verify, bad):
                after += 1
            else:
                missed.append(changed(data, bad))
        share = f"{np.median(missed):.1%}, {max(missed):.1%}" if missed else ""
        rows.append([name, NUM, before, after, f"{after / NUM:.3f}", share])
    return rows


def _scan(data: bytes) -> int:
    at = data.rindex(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def genuine(root: Path) -> dict[str, list[Path]]:
    """The images that Pillow opens and decodes, of the accepted formats."""
    odd = [json.loads(line) for line in (root / "odd_images" / "manifest.jsonl").read_text().splitlines()]
    kept = [one for one in odd if one["status"] == "ok" and one["format"] in (*FORMATS, "ICO")]
    names = (
        path
        for path in (root / "dup_images").rglob("*")
        if path.suffix in (".jpg", ".png", ".jpeg") and not is_refused(by_pillow, path.read_bytes())
    )
    return {
        "flickr8k": sorted((root / "flickr8k" / "images").glob("*.jpg")),
        "dup_images": sorted(names),
        "odd_images, JPEG": [root / "odd_images" / one["file"] for one in kept if one["format"] == "JPEG"],
        "odd_images, other formats": [
            root / "odd_images" / one["file"] for one in kept if one["format"] != "JPEG"
        ],
    }


def genuine_rows(root: Path) -> tuple[list[list[object]], int]:
    rows: list[list[object]] = []
    num_wrong = 0
    for name, paths in genuine(root).items():
        codes = Counter(_code(path.read_bytes()) for path in paths)
        wrong = codes["damaged"] + codes["truncated"] + codes["broken"]
        num_wrong += wrong
        others = {
            code: num for code, num in codes.items() if code not in ("", "damaged", "truncated", "broken")
        }
        listed = ", ".join(f"{code} {num}" for code, num in sorted(others.items()))
        rows.append([name, len(paths), wrong, listed])
    return rows, num_wrong


def _code(data: bytes) -> str:
    try:
        verify(data)
    except RowFault as fault:
        return fault.why
    return ""


def ms(fns: Sequence[Check], images: Sequence[bytes]) -> list[str]:
    """CPU time per image of each function, the functions in turn; best of ROUNDS."""
    best = [float("inf")] * len(fns)
    for _ in range(ROUNDS):
        for k, fn in enumerate(fns):
            began = time.process_time()
            for data in images:
                fn(data)
            best[k] = min(best[k], time.process_time() - began)
    return [f"{1000 * one / len(images):.3f}" for one in best]


def time_rows(photos: Sequence[Path]) -> list[list[object]]:
    small = [path.read_bytes() for path in photos[:400]]
    large = [_enlarged(data) for data in small[:100]]
    holed_ones = [holed(data, _scan(data), random.Random(n)) for n, data in enumerate(small)]
    rows: list[list[object]] = []
    for what, before, after, images in (
        ("check, 160 x 160", by_pillow, verify, small),
        ("check, 640 x 480", by_pillow, verify, large),
        (
            "check, 160 x 160 with 1 KB missing",
            lambda data: is_refused(by_pillow, data),
            lambda data: is_refused(verify, data),
            holed_ones,
        ),
        ("decode to RGB, 160 x 160", decoded_by_pillow, decode, small),
        ("decode to RGB, 640 x 480", decoded_by_pillow, decode, large),
        ("decode to RGB at 1/2, 640 x 480", _half_by_pillow, lambda d: decode(d, at_least=(320, 240)), large),
    ):
        rows.append([what, len(images), *ms([before, after], images)])
    return rows


def _half_by_pillow(data: bytes) -> None:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.draft(None, (320, 240))
        image.load()


def _enlarged(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def page_text() -> str:
    at, root = machine(), find_data()
    photos = sorted((root / "flickr8k" / "images").glob("*.jpg"))
    good, num_wrong = genuine_rows(root)
    bad, bad_progressive = damaged_rows(photos, bytes), damaged_rows(photos, progressive)
    found = sum(int(str(row[3])) for row in (*bad, *bad_progressive))
    header = [
        "damage",
        "photos",
        "refused before (Pillow)",
        "refused",
        "recall",
        "changed pixels of missed ones",
    ]
    return f"""# Damaged JPEGs

libjpeg decodes a JPEG with missing or wrong parts to the end, warns, and Pillow passes no warning on. `verify` decodes with
simplejpeg, which raises the first warning, and sorts out those that say nothing about pixels. Damage is made with seed
{SEED} from {NUM} photos of flickr8k for each kind; "changed pixels": the share of pixels that differ by more than 16 of 255,
median and maximum over the photos that were not refused. A decoder can notice only what breaks the code: after a flipped
bit a Huffman code often falls into step again, and 200 zero bytes are valid code; some pixels are then wrong, and the
file is as valid as any.

{machine_line(at)}

## Found, baseline JPEG (the files as they are, 160 x 160, 7 KB)

{table(header, bad)}

## Found, progressive JPEG (320 x 320, damage in the last scans)

{table(header, bad_progressive)}

## Genuine images refused

All images of the data folder that Pillow decodes. "Refused" counts damaged, truncated and broken; the other codes are rules
(nothing visible, too large, no standard colours).

{table(["images", "number", "refused", "rejected by a rule"], good)}

Precision over all damaged and genuine images of this page: {found / (found + num_wrong):.4f}.

## CPU ms per image

Before: Pillow; now: `verify` and `decode` (simplejpeg; the same pixels). The two in turn, best of {ROUNDS} rounds.

{table(["", "images", "before", "now"], time_rows(photos))}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = page_text()
    print(text)
    if options.write:
        (HERE / "jpeg_check.md").write_text(text)


if __name__ == "__main__":
    main()
