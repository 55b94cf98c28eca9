"""The training loader against Ray Data's `streaming_split`, which would feed several workers from one reader.

    python benchmarks/streaming_split.py            # some minutes
    python benchmarks/streaming_split.py --write    # and puts the page into streaming_split.md beside this file

Made photos and captions in Parquet, shuffled; both decode the whole picture, augment it as BLIP does in pretraining to
224 x 224, make token ids with the same functions and deliver the same batches to two readers. A rate is the samples of one
epoch by the CPU seconds of all processes, those of Ray's workers included; starting Ray does not count, opening does.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from loaders import AUGMENT, BATCH, BUFFER, OUT, Photos, Whole, loader_of
from PIL import Image as Pictures
from record import machine, machine_line, table

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.common.row import text
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

PAGE = Path(__file__).with_suffix(".md")
READERS, ROUNDS = 2, 3
CASES = ((160, 800), (500, 400))  # (pixels of a side, photos)
WORDS = [
    "a",
    "photo",
    "of",
    "red",
    "green",
    "blue",
    "small",
    "large",
    "round",
    "thing",
    "on",
    "the",
    "left",
    "table",
]


def made_rows(side: int, num: int) -> list[dict[str, Any]]:
    """Smooth noise, which costs a decoder what photos cost."""
    draw, rows = np.random.default_rng(0), []
    for k in range(num):
        small = Pictures.fromarray(draw.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((side, side), Pictures.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        texts = [text(" ".join(draw.choice(WORDS, 10)), "human") for _ in range(5)]
        plain = {"url": "", "sha256": None, "format": "JPEG", "width": None, "height": None}
        rows.append({**plain, "id": f"{k:08d}", "texts": texts, "image": buffer.getvalue()})
    return rows


def makers_of(tokenizer: Tokenizer) -> dict[str, Any]:
    made = [0]
    return {
        "image": Whole(size=OUT, augment=AUGMENT, made=made),
        "text": Text(tokenizer=tokenizer, max_length=30),
    }


def ours(photos: Photos, reader: int, num: int) -> int:
    seen = 0
    loader = loader_of(photos, makers_of(photos.tokenizer), batch_size=BATCH * READERS)
    with loader.batches(0, reader, READERS) as batches:
        while seen < num:
            seen += len(next(batches))
    return seen


class Make:
    """Rows -> what the loader's makers make of them; one of each worker."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.makers, self.draw = makers_of(tokenizer), np.random.default_rng(0)

    def __call__(self, rows: pa.Table) -> dict[str, Any]:
        items = []
        for image, texts in zip(rows["image"].to_pylist(), rows["texts"].to_pylist(), strict=True):
            caption = texts[int(self.draw.integers(len(texts)))]["text"]
            row = Row("", 0, [], {"image": image})
            items.append({name: make(row, caption, self.draw) for name, make in self.makers.items()})
        ids = [item["text"]["data"] for item in items]
        width = max(map(len, ids))
        return {
            "image": np.stack([item["image"]["data"] for item in items]),
            "text": np.stack([np.pad(np.asarray(one), (0, width - len(one))) for one in ids]),
        }


def split(photos: Photos) -> list[Any]:
    rows = ray.data.read_parquet(photos.parquet, columns=["texts", "image"]).randomize_block_order(seed=0)
    made = rows.map_batches(
        Make, fn_constructor_args=(photos.tokenizer,), batch_size=BATCH, batch_format="pyarrow", concurrency=1
    )
    found: list[Any] = made.streaming_split(READERS, equal=True)
    return found


def by_ray(photos: Photos, splits: list[Any], reader: int, num: int) -> int:
    seen, image = 0, makers_of(photos.tokenizer)["image"]
    for batch in splits[reader].iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=BUFFER // 5):
        image.on_device(image.collate([{"data": one} for one in batch["image"].numpy()]))
        seen += len(batch["text"])
    return seen


def spent() -> float:
    """CPU seconds of this process and those below it."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def rate(read: Callable[[int], int]) -> float:
    """Samples per CPU second of one epoch, in as many threads as there are readers."""
    began, seen = spent(), [0] * READERS

    def one(reader: int) -> None:
        seen[reader] = read(reader)

    threads = [Thread(target=one, args=(reader,)) for reader in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(seen) / (spent() - began)


def measured() -> Iterator[list[object]]:
    for side, num in CASES:
        with tempfile.TemporaryDirectory() as folder:
            photos = Photos.write(Path(folder), made_rows(side, num))
            rates: dict[str, list[float]] = {"vlpipe": [], "ray": []}
            for _ in range(ROUNDS):
                rates["vlpipe"].append(rate(partial(ours, photos, num=num // READERS)))
                rates["ray"].append(rate(partial(by_ray, photos, split(photos), num=num // READERS)))
        one, other = (statistics.median(found) for found in rates.values())
        yield [f"{side} px", f"{one:.0f}", f"{other:.0f}", f"{one / other:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the page")
    args = parser.parse_args()
    at = machine()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    ray.data.DataContext.get_current().enable_progress_bars = False
    began = time.monotonic()
    rows = table(["", "vlpipe, samples per CPU s", "Ray Data", "ratio"], list(measured()))
    ray.shutdown()
    about = (__doc__ or "").split("\n\n")[2].strip()
    page = (
        f"# Training loader and `streaming_split`\n\n{about}\n\nWritten by `python benchmarks/streaming_split.py --write`, "
        f"in {time.monotonic() - began:.0f} s. {machine_line(at)} Medians of {ROUNDS} rounds, in turn.\n\n{rows}\n\n"
        "Training reads by its own loader alone, which also goes on exactly where a killed run was; "
        "nothing uses `streaming_split`.\n"
    )
    print(page)
    if args.write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
