"""The training loader against webdataset and Hugging Face datasets: samples per CPU second, and what an exact resume costs.

    python benchmarks/loaders.py            # some minutes on one core; VLPIPE_DATA names the real data
    python benchmarks/loaders.py --write    # and puts the page into loaders.md beside this file

The same photos (flickr8k, at its 160 px and scaled up) and captions in Parquet and in tar files, shuffled: all loaders hold
all of them in their window or buffer. All decode the whole picture, augment it as BLIP does in pretraining to 224 x 224 and
make token ids with the same functions, in one process, and deliver batches normalised as models read them; "vlpipe" alone is
the loader as it is, which decodes the part that it needs at the scale that it needs. A rate is the samples of one epoch by
the CPU seconds of the process, opening included.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import datasets
import numpy as np
import pyarrow as pa
import torch
import webdataset
from PIL import Image as Pictures
from record import machine, machine_line, table

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.pixels import decode, resized_part, square
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.loading import rows as loading_rows
from vlpipe.stages.loading.augment import Augmentation, augmented
from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row, int64_id
from vlpipe.stages.train.loader import Loader
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
OUT, BATCH, ROUNDS = 224, 20, 3
CASES = ((160, 500), (500, 200), (1280, 120))  # (pixels of a side, photos)
SHARD, BUFFER = 100, 1000  # rows of a file; of a shuffle buffer
RESUME_ROWS, RESUME_AT, RESUME_WINDOW = 2000, 1300, 400
AUGMENT = Augmentation(crop_scale=(0.2, 1.0), flip=True, randaugment=(2, 5.0))


@dataclass(frozen=True, kw_only=True)
class Counted(Image):
    """The loader's own maker of pictures, which counts what it makes."""

    made: list[int]

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        self.made[0] += 1
        return super().__call__(row, text, rng)


class Whole(Counted):
    """The same crops, cut from the whole decoded picture."""

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        self.made[0] += 1
        assert self.augment is not None
        image = augmented(partial(_resized, row.columns["image"]), self.augment, self.size, text, rng)
        return {"data": np.ascontiguousarray(square(image, self.size).transpose(2, 0, 1))}


def _resized(data: bytes, part: Any, size: int) -> Any:
    image = decode(data)
    return resized_part(image, part(*image.size), size)


@dataclass
class Photos:
    """The same rows three times: of the pipeline, in Parquet files for datasets, in tar files for webdataset."""

    ours: Dataset
    parquet: list[str]
    tars: list[str]
    tokenizer: Tokenizer

    @classmethod
    def write(cls, folder: Path, rows: Sequence[dict[str, Any]]) -> Photos:
        found = dataset(
            folder, pa.Table.from_pylist(list(rows), pa.schema([*LISTED, *IMAGE_FIELDS])), shard_rows=SHARD
        )
        tars = []
        for first in range(0, len(rows), SHARD):
            tars.append(str(folder / f"{first:06d}.tar"))
            with tarfile.open(tars[-1], "w") as tar:
                for row in rows[first : first + SHARD]:
                    captions = json.dumps([t["text"] for t in row["texts"]]).encode()
                    for end, data in (("jpg", row["image"]), ("json", captions)):
                        about = tarfile.TarInfo(f"{row['id']}.{end}")
                        about.size = len(data)
                        tar.addfile(about, io.BytesIO(data))
        files = [found.store.path(shard.path) for shard in found.shards]
        tokenizer = Tokenizer.train([t["text"] for row in rows for t in row["texts"]], 2000)
        return cls(found, files, tars, tokenizer)


def read_rows(folder: Path, side: int, num: int) -> list[dict[str, Any]]:
    """`num` photos with their five captions, scaled to `side` pixels as JPEGs of quality 90 if they are smaller."""
    rows = []
    for line in itertools.islice((folder / "train.jsonl").open(), num):
        one = json.loads(line)
        data = (folder / one["file"]).read_bytes()
        with Pictures.open(io.BytesIO(data)) as image:
            if image.width != side:
                buffer = io.BytesIO()
                size = (side, 3 * side // 4)
                image.convert("RGB").resize(size, Pictures.Resampling.BICUBIC).save(
                    buffer, "JPEG", quality=90
                )
                data = buffer.getvalue()
        texts = [text(caption, "human") for caption in one["captions"]]
        plain = {"url": "", "sha256": None, "format": "JPEG", "width": None, "height": None}
        rows.append({**plain, "id": f"{len(rows):08d}", "texts": texts, "image": data})
    return rows


Makers = dict[str, Any]  # stream -> maker


def loader_of(photos: Photos, makers: Makers, window: int = 1 << 20, batch_size: int = BATCH) -> Loader:
    recipe = Train(
        objectives=["lm:Lm"],
        model={},
        tokenizer=File(path="made"),
        steps=1,
        texts="images",
        batch_size=batch_size,
        shuffle_window=window,
        loader_threads=1,
    )
    return Loader([photos.ours], recipe, photos.tokenizer, makers)


@contextmanager
def ours(photos: Photos, makers: Makers) -> Iterator[Iterator[Any]]:
    with loader_of(photos, makers).batches(0) as batches:
        yield batches


@contextmanager
def by_webdataset(photos: Photos, makers: Makers) -> Iterator[Iterator[Any]]:
    rng = np.random.default_rng(0)

    def item(parts: tuple[bytes, bytes]) -> dict[str, Item]:
        return _item(makers, parts[0], json.loads(parts[1]), rng)

    source = webdataset.WebDataset(photos.tars, shardshuffle=1000, seed=0, empty_check=False)
    shuffled = source.shuffle(BUFFER, initial=BUFFER).to_tuple("jpg", "json").map(item)
    yield iter(shuffled.batched(BATCH, collation_fn=partial(_collate, makers)))


@contextmanager
def by_datasets(photos: Photos, makers: Makers, *, streaming: bool, cache: str) -> Iterator[Iterator[Any]]:
    rng = np.random.default_rng(0)
    source = datasets.load_dataset(
        "parquet", data_files=photos.parquet, split="train", streaming=streaming, cache_dir=cache
    )
    source = source.select_columns(["texts", "image"])
    source = source.shuffle(seed=0, buffer_size=BUFFER) if streaming else source.shuffle(seed=0)

    def batches() -> Iterator[Any]:
        found = (_item(makers, row["image"], [t["text"] for t in row["texts"]], rng) for row in source)
        while items := list(itertools.islice(found, BATCH)):
            yield _collate(makers, items)

    yield batches()


def _item(makers: Makers, data: bytes, captions: Sequence[str], rng: np.random.Generator) -> dict[str, Item]:
    caption = captions[int(rng.integers(len(captions)))]
    row = Row("", 0, [], {"image": data})
    return {name: maker(row, caption, rng) for name, maker in makers.items()}


def _collate(makers: Makers, items: Sequence[dict[str, Item]]) -> dict[str, Any]:
    found = {name: maker.collate([item[name] for item in items]) for name, maker in makers.items()}
    return {name: makers[name].on_device(stream) for name, stream in found.items()}


Way = Callable[[Photos, Makers], Any]  # opens a loader: a context manager of its batches


def rate(way: Way, kind: type[Counted], photos: Photos, num_rows: int) -> float:
    """Samples per CPU second of one epoch."""
    made = [0]
    makers = {
        "image": kind(size=OUT, augment=AUGMENT, made=made),
        "text": Text(tokenizer=photos.tokenizer, max_length=30),
    }
    began = time.process_time()
    with way(photos, makers) as batches:
        for _ in range(num_rows // BATCH):
            next(batches)
    return made[0] / (time.process_time() - began)  # with those that were made ahead


def resume_costs(folder: Path, photos: Photos, cache: str) -> list[tuple[str, str, str]]:
    """Per way: rows read again that were used before sample RESUME_AT, and whether the same samples follow."""
    found = []
    for name, order in (
        ("vlpipe", _resume_ours),
        ("webdataset: skip", _resume_webdataset),
        ("datasets, streaming: load_state_dict", partial(_resume_streaming, cache=cache, by_state=True)),
        ("datasets, streaming: skip", partial(_resume_streaming, cache=cache, by_state=False)),
        ("datasets, map-style: select", partial(_resume_map_style, cache=cache)),
    ):
        whole, after, read = order(photos)
        again = len(set(read) & set(whole[:RESUME_AT]))
        follow = whole[RESUME_AT : RESUME_AT + len(after)] == after
        found.append((name, f"{again:,}", "yes" if follow else "no"))
    return found


def _resume_ours(photos: Photos) -> tuple[list[Any], list[Any], list[Any]]:
    """Ids of all samples in order, of those after the resume, and of rows that were read for the first of these."""
    makers = {"text": Text(tokenizer=photos.tokenizer, max_length=30)}
    loader = loader_of(photos, makers, RESUME_WINDOW)
    with loader.batches(0) as batches:
        whole = [i for _ in range(RESUME_ROWS // BATCH) for i in next(batches).same.tolist()]
    read: list[int] = []
    real = loading_rows.read_unit

    def counted(*args: Any, **more: Any) -> Any:
        rows = real(*args, **more)
        read.extend(int64_id(row.id) for row in rows)
        return rows

    loading_rows.read_unit = counted
    try:
        with loader.batches(RESUME_AT // BATCH) as batches:
            after = [i for _ in range(10) for i in next(batches).same.tolist()]
    finally:
        loading_rows.read_unit = real
    return whole, after, read


def _resume_webdataset(photos: Photos) -> tuple[list[Any], list[Any], list[Any]]:
    """It has no state: the same seed gives the same order, and what was used is read again and left out."""

    def keys(read: list[Any]) -> Iterator[Any]:
        def note(sample: Any) -> Any:
            read.append(sample["__key__"])
            return sample

        source = webdataset.WebDataset(photos.tars, shardshuffle=1000, seed=0, empty_check=False)
        return (s["__key__"] for s in source.map(note).shuffle(RESUME_WINDOW, seed=0))

    read: list[Any] = []
    whole = list(keys([]))
    after = list(itertools.islice(keys(read), RESUME_AT, RESUME_AT + 200))
    return whole, after, read


def _resume_streaming(
    photos: Photos, *, cache: str, by_state: bool
) -> tuple[list[Any], list[Any], list[Any]]:
    read: list[Any] = []

    def note(row: Any) -> Any:
        read.append(row["id"])
        return row

    def opened() -> Any:
        files = {"data_files": photos.parquet, "split": "train", "streaming": True, "cache_dir": cache}
        source = datasets.load_dataset("parquet", **files).select_columns(["id"]).map(note)
        return source.shuffle(seed=0, buffer_size=RESUME_WINDOW)

    first = opened()
    whole, state = [], None
    for row in first:
        whole.append(row["id"])
        if len(whole) == RESUME_AT:
            state = first.state_dict()
    second = opened()
    if by_state:
        second.load_state_dict(state)
    read.clear()
    rest = second if by_state else second.skip(RESUME_AT)
    return whole, [row["id"] for row in itertools.islice(rest, 200)], read


def _resume_map_style(photos: Photos, *, cache: str) -> tuple[list[Any], list[Any], list[Any]]:
    source = datasets.load_dataset("parquet", data_files=photos.parquet, split="train", cache_dir=cache)
    shuffled = source.select_columns(["id"]).shuffle(seed=0)
    after = [row["id"] for row in shuffled.select(range(RESUME_AT, RESUME_AT + 200))]
    return [row["id"] for row in shuffled], after, after  # rows are read by their number


def rates(folder: Path, cache: str) -> list[list[str]]:
    map_style = partial(by_datasets, streaming=False, cache=cache)
    streaming = partial(by_datasets, streaming=True, cache=cache)
    ways: dict[str, tuple[Way, type[Counted]]] = {
        "vlpipe, whole pictures": (ours, Whole),
        "webdataset": (by_webdataset, Whole),
        "datasets, streaming": (streaming, Whole),
        "datasets, map-style": (map_style, Whole),
        "vlpipe": (ours, Counted),
    }
    seen: dict[tuple[str, int], list[float]] = {}
    for side, num in CASES:
        with tempfile.TemporaryDirectory() as made:
            photos = Photos.write(Path(made), read_rows(folder, side, num))
            with map_style(photos, {}):
                pass  # datasets writes its copy in Arrow once; that does not count
            for _ in range(ROUNDS):
                for name, (way, kind) in ways.items():
                    seen.setdefault((name, side), []).append(rate(way, kind, photos, num))
    lines = []
    for name in ways:
        line = [name]
        for side, _ in CASES:
            own = statistics.median(seen[name, side])
            line += [f"{own:.0f}", f"{own / statistics.median(seen['webdataset', side]):.2f}"]
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write loaders.md")
    options = parser.parse_args()
    folder = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data") / "flickr8k"
    if not folder.exists():
        print("skipped: no flickr8k in VLPIPE_DATA or ../shared/data")
        return
    torch.set_num_threads(1)
    at = machine()
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as made:
        photos = Photos.write(Path(made), read_rows(folder, 160, RESUME_ROWS))
        resumed = resume_costs(Path(made), photos, cache)
        speed = rates(folder, cache)
    header = [""]
    for side, _ in CASES:
        header += [f"{side} px, samples per CPU s", "webdataset = 1"]
    after = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    versions = f"webdataset {version('webdataset')}, datasets {version('datasets')}"
    parts = [
        "# Training loaders",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(),
        f"Written by `python benchmarks/loaders.py --write`. {machine_line(at)} When it ended: {after}. {versions}. "
        f"Medians of {ROUNDS} rounds, the loaders in turn.",
        table(header, speed),
        "## Exact resume",
        f"{RESUME_ROWS:,} photos, shuffled in a window or buffer of {RESUME_WINDOW} rows; the run goes on at sample "
        f"{RESUME_AT:,}. Read again: rows that are read before or with the next 200 samples although they were used before.",
        table(["", "rows read again", "the same samples follow"], resumed),
        "vlpipe reads the row groups of the window at which it goes on, and nothing before it.",
    ]
    page = "\n\n".join(parts) + "\n"
    print(page)
    if options.write:
        (HERE / "loaders.md").write_text(page)


if __name__ == "__main__":
    main()
