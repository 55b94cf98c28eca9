"""Dedup of real photos by real embeddings: MobileNetV2 on the edited copies of `dup_images` among 5,000 Flickr8k photos.

    python benchmarks/dedup_photos.py            # about 15 minutes on 2 cores
    python benchmarks/dedup_photos.py --write    # and puts the page into dedup_photos.md beside this file

The data is found through VLPIPE_DATA or at ../shared/data beside the repository (mobilenetv2, dup_images, flickr8k). Every
Flickr8k photo also comes once more, edited in one of four ways.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mobilenet import DIM, MobileNet
from PIL import Image, ImageEnhance
from record import machine, machine_line, table

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.dedup.faiss import FaissDuplicates
from vlpipe.stages.dedup.redecide import Decide

HERE = Path(__file__).parent
THRESHOLDS = (0.70, 0.75, 0.80, 0.85, 0.90, 0.95, 0.98)


def _saved(photo: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    photo.save(data, "JPEG", quality=quality)
    return Image.open(data)


def _cropped(photo: Image.Image) -> Image.Image:
    x, y = round(0.06 * photo.width), round(0.06 * photo.height)
    return photo.crop((x, y, photo.width - x, photo.height - y))


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "6 % cropped from each side": _cropped,
    "JPEG at quality 30": lambda p: _saved(p, 30),
    "half the size, JPEG at quality 60": lambda p: _saved(p.resize((p.width // 2, p.height // 2)), 60),
    "brightness 1.15, contrast 1.2": lambda p: ImageEnhance.Contrast(
        ImageEnhance.Brightness(p).enhance(1.15)
    ).enhance(1.2),
}


def photos(data: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """(id, what it shows, picture); rows that show the same thing are duplicates."""
    truth = json.loads((data / "dup_images/ground_truth.json").read_text())["imagededup"]
    for name, files in truth.items():
        for file in files:
            try:
                photo = decode((data / "dup_images" / file).read_bytes())
            except RowFault as fault:
                print(f"{file}: {fault.why}, left out")
                continue
            yield f"dup_images/{file}", file if name == "distractors" else name, photo
    for place, path in enumerate(sorted((data / "flickr8k/images").glob("*.jpg"))):
        photo = decode(path.read_bytes())
        yield f"flickr8k/{path.name}", path.name, photo
        edit = list(EDITS)[place % len(EDITS)]
        yield f"flickr8k/{edit}/{path.name}", path.name, EDITS[edit](photo)


def embedded(data: Path, file: Path) -> pa.Table:
    """id, shows, embedding; computed once."""
    if not file.exists():
        ids, shows = [], []

        def noted() -> Iterator[Image.Image]:
            for id_, thing, photo in photos(data):
                ids.append(id_)
                shows.append(thing)
                yield photo

        vectors = MobileNet(data / "mobilenetv2").embed(noted())
        file.parent.mkdir(parents=True, exist_ok=True)
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM)
        pq.write_table(pa.table({"id": ids, "shows": shows, "embedding": column}), file)
    return pq.read_table(file)


def pair_figures(vectors: npt.NDArray[np.float32], shows: list[str], threshold: float) -> dict[str, float]:
    """Of the pairs at this cosine how many are right, and of the right pairs how many are at this cosine."""
    cosines = vectors @ vectors.T
    found = np.argwhere(np.triu(cosines >= threshold, k=1))
    right = sum(shows[a] == shows[b] for a, b in found.tolist())
    places: dict[str, list[int]] = {}
    for place, thing in enumerate(shows):
        places.setdefault(thing, []).append(place)
    num_true = sum(len(list(combinations(p, 2))) for p in places.values())
    return {
        "found": len(found),
        "right": right,
        "precision": right / max(len(found), 1),
        "recall": right / num_true,
    }


def drop_figures(decisions: list[dict[str, Any]], shows: dict[str, str]) -> dict[str, float]:
    """A dropped row is right when the row that stands for it shows the same; all but one row of a thing are redundant."""
    dropped = [row for row in decisions if not row["keep"]]
    right = sum(shows[row["id"]] == shows[row["group"]] for row in dropped)
    redundant = len(decisions) - len({shows[row["id"]] for row in decisions})
    return {
        "found": len(dropped),
        "right": right,
        "precision": right / max(len(dropped), 1),
        "recall": right / redundant,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write dedup_photos.md")
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / "runs" / "dedup_photos", help="what it leaves"
    )
    options = parser.parse_args()
    data = Path(os.environ.get("VLPIPE_DATA") or HERE.parent.parent / "shared" / "data")
    if not all((data / name).is_dir() for name in ("mobilenetv2", "dup_images", "flickr8k")):
        print("skipped: no mobilenetv2, dup_images and flickr8k in VLPIPE_DATA or ../shared/data")
        return
    at, rows = machine(), embedded(data, options.folder / "embedded.parquet")
    page = markdown(at, rows, options.folder)
    print(page)
    if options.write:
        (HERE / "dedup_photos.md").write_text(page)


def markdown(at: dict[str, Any], rows: pa.Table, folder: Path) -> str:
    shows = dict(zip(rows["id"].to_pylist(), rows["shows"].to_pylist(), strict=True))
    vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(shows), -1)
    few = [place for place, id_ in enumerate(shows) if id_.startswith("dup_images/")]
    named = [list(shows.values())[place] for place in few]
    alone = [[t, *_cells(pair_figures(vectors[few], named, t))] for t in THRESHOLDS]
    pairs = [[t, *_cells(pair_figures(vectors, list(shows.values()), t))] for t in THRESHOLDS]
    drops = [[t, *_cells(drop_figures(found, shows))] for t, found in decided(rows, folder)]
    header = ["cosine at least", "found", "right", "precision", "recall"]
    parts = [
        "# Near duplicates of real photos by MobileNetV2",
        f"Written by `python benchmarks/dedup_photos.py --write`. {machine_line(at)}",
        f"`dup_images`, alone: pairs among {len(few)} files: two photos with copies, flips, rotations, a resize and a grey "
        "version, and 8 others. Files that no decoder reads whole are left out.",
        table(header, alone),
        f"The same among {len(shows) - len(few):,} Flickr8k photos (160 x 160), half of them edited copies of the other "
        f"half ({'; '.join(EDITS)}). Pairs:",
        table(header, pairs),
        "Rows that `dedup.faiss` at 0.70 and `dedup.redecide` at each threshold (greedy) would drop:",
        table(header, drops),
        edit_text(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(figures: dict[str, float]) -> list[str]:
    return [
        f"{figures['found']:,}",
        f"{figures['right']:,}",
        f"{figures['precision']:.4f}",
        f"{figures['recall']:.4f}",
    ]


def decided(rows: pa.Table, folder: Path) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    kind = pa.list_(pa.float32(), DIM)
    schema = pa.schema([("id", pa.string()), heavy("embedding", kind)])
    data = [dataset(folder / "rows", rows.select(["id", "embedding"]).cast(schema))]
    searched = run_gather(FaissDuplicates(threshold=min(THRESHOLDS)), data, folder / "search")
    edges = File(path=str(searched.artifacts))
    for threshold in THRESHOLDS:
        got = run_gather(Decide(edges=edges, threshold=threshold), data, folder / f"decide-{threshold}")
        yield threshold, got.table.to_pylist()


def edit_text(rows: pa.Table) -> str:
    """The cosines between a photo and its edited copy."""
    place = {id_: k for k, id_ in enumerate(rows["id"].to_pylist())}
    vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(place), -1)
    lines = []
    for edit in EDITS:
        prefix = f"flickr8k/{edit}/"
        pairs = [
            (k, place["flickr8k/" + id_[len(prefix) :]]) for id_, k in place.items() if id_.startswith(prefix)
        ]
        a, b = np.array(pairs).T
        low, middle, high = np.percentile((vectors[a] * vectors[b]).sum(axis=1), [1, 50, 99])
        lines.append([edit, f"{len(pairs):,}", f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}"])
    return "Cosine of a photo and its edited copy:\n\n" + table(
        ["edit", "pairs", "1st percentile", "median", "99th percentile"], lines
    )


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    main()
