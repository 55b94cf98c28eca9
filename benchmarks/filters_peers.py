"""Job J1 by others: a plain Python loop, and Data-Juicer with its own way of counting the same things."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from filters_data import Data
from PIL import Image

MIN_WORDS, MAX_WORDS, MIN_CHARS, MAX_CHARS, MIN_ALNUM = 3, 64, 5, 1000, 0.25
MIN_SIDE, MAX_RATIO = 64, 3.0

RECIPE = """
project_name: j1
dataset_path: {data}
export_path: {out}/rows.jsonl
np: 2
open_tracer: false
process:
  - words_num_filter: {{min_num: {min_words}, max_num: {max_words}}}
  - text_length_filter: {{min_len: {min_chars}, max_len: {max_chars}}}
  - alphanumeric_filter: {{tokenization: false, min_ratio: {min_alnum}}}
  - image_shape_filter: {{min_width: {min_side}, min_height: {min_side}{alone}}}
  - image_aspect_ratio_filter: {{min_ratio: {min_ratio}, max_ratio: {max_ratio}{alone}}}
  - document_deduplicator: {{lowercase: false, ignore_non_character: false}}
"""


def recipe(data: Data, out: Path, one_by_one: bool) -> Path:
    """Data-Juicer's YAML. `one_by_one`: its image filters get one row at a time, so that a bad one costs no others."""
    out.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(
        data=data.jsonl,
        out=out,
        alone=", batch_size: 1" if one_by_one else "",
        min_words=MIN_WORDS,
        max_words=MAX_WORDS,
        min_chars=MIN_CHARS,
        max_chars=MAX_CHARS,
        min_alnum=MIN_ALNUM,
        min_side=MIN_SIDE,
        min_ratio=1 / MAX_RATIO,
        max_ratio=MAX_RATIO,
    )
    (out / "recipe.yaml").write_text(text)
    return out / "recipe.yaml"


def data_juicer(python: str, data: Data, out: Path, one_by_one: bool = False) -> int:
    """Run it with the interpreter of its own environment, offline; returns its exit status."""
    command = [str(Path(python).with_name("dj-process")), "--config", str(recipe(data, out, one_by_one))]
    own = {"UV_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache")}
    own |= {"DATA_JUICER_CACHE_HOME": str(out / "dj")}
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | own
    with (out / "log.txt").open("w") as log:
        return subprocess.run(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=out).returncode


def plain(rows: str, out: str) -> None:
    """One process, one loop: decode, rules, a set of digests; bad rows in a file."""
    seen: set[bytes] = set()
    with open(rows) as lines, open(f"{out}/rows.jsonl", "w") as kept, open(f"{out}/bad.txt", "w") as bad:
        for line in lines:
            row = json.loads(line)
            try:
                with Image.open(row["images"][0]) as image:
                    image.load()
                    width, height = image.size
            except Exception as error:
                bad.write(f"{row['file']}\t{error}\n")
                continue
            text = row["text"]
            digest = hashlib.md5(text.encode()).digest()
            if passes(text, width, height) and digest not in seen:
                seen.add(digest)
                kept.write(line)


def passes(text: str, width: int, height: int) -> bool:
    alnum = sum(map(str.isalnum, text)) / len(text)
    return (
        MIN_WORDS <= len(text.split()) <= MAX_WORDS
        and MIN_CHARS <= len(text) <= MAX_CHARS
        and alnum >= MIN_ALNUM
        and min(width, height) >= MIN_SIDE
        and max(width, height) / min(width, height) <= MAX_RATIO
    )


if __name__ == "__main__":
    plain(*sys.argv[1:])
