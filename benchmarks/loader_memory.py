"""Memory of the training loader: of the process that reads, and of each process that decodes.

    python benchmarks/loader_memory.py            # two minutes; VLPIPE_DATA names the real data
    python benchmarks/loader_memory.py --write    # and puts the page into loader_memory.md beside this file

Photos (flickr8k, scaled up to 1,280 px) in Parquet; two loader processes, batches of 64 augmented to 224 x 224. A shuffle
window is 64 MB and the cache 64 MB. Each line is a process of its own that makes two
epochs of batches. Peaks are of memory that is no copy of a file (RssAnon and RssShmem), sampled every 20 ms: of the process
that reads, what the loader added; of a process that decodes, all that it holds, Python and the libraries included.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image as Pictures
from record import machine, machine_line, table

HERE = Path(__file__).parent
SIDE, BATCH, PROCESSES, LIMIT = 1280, 64, 2, 64 << 20
SIZES = (500, 2000, 6000)  # photos
FIELDS = ("RssAnon", "RssShmem")


def held(pid: int) -> int:
    """Bytes that a process holds apart from files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(FIELDS))


class Peaks:
    """Samples what this process and its children hold while it is open."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children() if p.pid)):
                try:
                    self.of[pid] = max(self.of.get(pid, 0), held(pid))
                except OSError:  # it has ended
                    continue


def photos(folder: Path, num: int, to: Path) -> Any:
    """A dataset of `num` photos with a caption each."""
    from vlpipe.pipeline.testing import dataset
    from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text

    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = []
    for k in range(num):
        line = lines[k % len(lines)]
        file = io.BytesIO()
        with Pictures.open(folder / line["file"]) as image:
            image.convert("RGB").resize((SIDE, SIDE)).save(file, "JPEG", quality=90)
        texts = [text(line["captions"][0], "web")]
        more = {"url": "", "sha256": None, "format": "JPEG", "width": SIDE, "height": SIDE}
        rows.append({"id": str(k), "texts": texts, "image": file.getvalue(), **more})
    return dataset(to, pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS])), shard_rows=100)


def prepare(folder: Path, num: int, to: Path) -> None:
    """Writes a dataset and its description, in a process of its own: it needs memory for all photos."""
    (to / "dataset.pickle").write_bytes(pickle.dumps(photos(folder, num, to)))


def measure(to: Path, num: int) -> dict[str, float]:
    """Makes two epochs of batches; returns MB."""
    import torch

    from vlpipe.models.tokenizer import Tokenizer
    from vlpipe.stages.loading.augment import Augmentation
    from vlpipe.stages.loading.makers.image import Image
    from vlpipe.stages.loading.makers.text import Text
    from vlpipe.stages.train.loader import Loader
    from vlpipe.stages.train.train import Train

    torch.set_num_threads(1)
    data = pickle.loads((to / "dataset.pickle").read_bytes())
    size = sum(f.stat().st_size for f in to.rglob("*.parquet"))
    recipe = Train(
        objectives=["lm:Lm"],
        model={},
        steps=1,
        batch_size=BATCH,
        loader_processes=PROCESSES,
        window_bytes=LIMIT,
        cache_bytes=LIMIT,
    )
    augment = Augmentation(crop_scale=(0.2, 1.0), flip=True, randaugment=(2, 5))
    tokenizer = Tokenizer.train(["a photo of a dog"], vocab_size=100)
    makers = {"image": Image(size=224, augment=augment), "text": Text(tokenizer=tokenizer)}
    loader = Loader([data], recipe, tokenizer, makers)
    before = held(os.getpid())
    with Peaks() as peaks, loader.batches(0) as batches:
        for _ in range(2 * num // BATCH):
            next(batches)
            time.sleep(0.05)  # a step
    reader = peaks.of.pop(os.getpid()) - before
    workers = max(peaks.of.values())
    return {"data": size / 1e6, "reader": reader / 1e6, "worker": workers / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write loader_memory.md")
    parser.add_argument("--prepare", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data") / "flickr8k"
    if not folder.exists():
        sys.exit("skipped: no flickr8k in VLPIPE_DATA or ../shared/data")
    if options.prepare:
        prepare(folder, options.prepare, options.to)
        return
    if options.measure:
        print(json.dumps(measure(options.to, options.measure)))
        return
    at, lines = machine(), []
    for num in SIZES:
        with tempfile.TemporaryDirectory() as to:
            for what in ("--prepare", "--measure"):
                command = [sys.executable, __file__, what, str(num), "--to", to]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        lines.append((f"{num:,}", *(f"{found[name]:.0f}" for name in ("data", "reader", "worker"))))
        print(lines[-1], flush=True)
    header = ("photos", "data, MB", "process that reads, MB", "process that decodes, MB")
    page = f"# Memory of the training loader\n\n{(__doc__ or '').strip()}\n\n{machine_line(at)}\n\n"
    page += table(header, lines) + "\n"
    print(page)
    if options.write:
        (HERE / "loader_memory.md").write_text(page)


if __name__ == "__main__":
    main()
