"""Whatever the order of the list, the size of the shards, the number of workers, Ray or not: the same rows stay."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

WORKFLOW = """
name: twins
steps:
  images: {{use: "lists.captions:CaptionsJsonl", captions: {folder}/list.jsonl, images: {folder}, shard_rows: {shard_rows}}}
  vectors: {{use: "features.embed:Embed", from: images, batch_size: 16}}
  looks: {{use: "dedup.looks:PictureLooks", from: vectors}}
  bytes: {{use: "dedup.exact:ExactDuplicates", from: looks, phash: true}}
  near: {{use: "dedup.faiss:FaissDuplicates", from: vectors, threshold: 0.97, exact_below: 0, clusters: 4}}
  decided: {{use: "dedup.redecide:Decide", from: vectors, edges: {{from: near}}, merge_texts: true}}
  unique:
    use: "dedup.apply:DropDuplicates"
    from: vectors
    decisions: {{from: decided, path: decisions.parquet}}
    merge_texts: true
  fewer: {{use: "dedup.apply:DropDuplicates", from: unique, decisions: {{from: bytes, path: decisions.parquet}}}}
  same_text: {{use: "text_dedup.texts:TextDuplicates", from: fewer, sources: [human], threshold: null}}
  texts: {{use: "text_dedup.decisions:DropTexts", from: fewer, decisions: {{from: same_text, path: texts.parquet}}}}
"""


def pictures(folder: Path, num: int = 40) -> list[str]:
    """`num` photos, of every third one a copy at lower quality and of every fifth one the same bytes."""
    names = []
    for n in range(num):
        coarse = np.random.default_rng(n).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((96 + n, 72), Image.Resampling.BICUBIC)
        for name, quality in ((f"{n}.jpg", 95), (f"{n}-again.jpg", 60), (f"{n}-same.jpg", 95)):
            if name == f"{n}.jpg" or n % {60: 3, 95: 5}[quality] == 0:
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=quality)
                (folder / name).write_bytes(buffer.getvalue())
                names.append(name)
    return names


def kept(tmp_path: Path, names: list[str], run: str, shard_rows: int, *more: str) -> pa.Table:
    """What the workflow keeps, by id."""
    here = tmp_path / run
    here.mkdir()
    folder = tmp_path / "images"
    lines = [
        json.dumps({"file": name, "captions": [f"photo {int(name.split('.')[0].split('-')[0]) // 2}"]})
        for name in names
    ]
    (folder / "list.jsonl").write_text("\n".join(lines))
    (here / "w.yaml").write_text(WORKFLOW.format(folder=folder, shard_rows=shard_rows))
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        str(here / "w.yaml"),
        "--root",
        str(here / "root"),
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shards = sorted((here / "root").glob("texts-*/[0-9]*.parquet"))
    return pa.concat_tables(pq.read_table(path) for path in shards).sort_by("id")


@pytest.mark.slow
def test_order_shards_workers_and_ray_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = pictures(tmp_path / "images")
    shuffled = random.Random(1).sample(names, len(names))
    first = kept(tmp_path, names, "local", 50, "--local")
    assert 30 < first.num_rows <= 40 < len(names)
    others = {
        "order": kept(tmp_path, shuffled, "order", 50, "--local"),
        "shards": kept(tmp_path, names, "shards", 7, "--local"),
        "ray": kept(tmp_path, shuffled, "ray", 7),
    }
    for name, other in others.items():
        assert other["id"].equals(first["id"]), name
        assert other["texts"].combine_chunks().equals(first["texts"].combine_chunks()), name
