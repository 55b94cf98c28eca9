"""The rows of the filter benchmark: real alt-texts resampled, generated JPEGs of 40 to 400 px, 5 % copies, corrupt files.

A copy has the text and the image bytes of an earlier row, so that dedup by text (Data-Juicer) and by bytes (vlpipe)
agree. Words without a letter are left out of the texts: Data-Juicer does not count them.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

LETTER = re.compile(r"[A-Za-z]")
NUM_PICTURES = 2000  # different pictures; a comment with the row's number makes each file's bytes its own
COPIES = 0.05


@dataclass(frozen=True)
class Data:
    """`rows.jsonl` has a line {"file", "captions", "text", "images"} per row, of which each system reads what it knows."""

    folder: Path
    corrupt: frozenset[str]  # file names

    @property
    def jsonl(self) -> Path:
        return self.folder / "rows.jsonl"


def make(folder: Path, num_rows: int, corrupt_rate: float) -> Data:
    """Deterministic; made once per folder."""
    rng = np.random.default_rng(num_rows)
    corrupt = frozenset(_name(i) for i in np.flatnonzero(rng.random(num_rows) < corrupt_rate).tolist())
    if not (folder / "rows.jsonl").exists():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        pictures = [_picture(rng) for _ in range(NUM_PICTURES)]
        with (folder / "rows.part").open("w") as file:
            for i, (of, text) in enumerate(_texts(rng, num_rows)):
                data = _numbered(pictures[of % NUM_PICTURES], of)
                name = _name(i)
                (folder / "images" / name).write_bytes(_broken(data, i) if name in corrupt else data)
                path = str((folder / "images" / name).resolve())
                row = {"file": name, "captions": [text], "text": text, "images": [path]}
                file.write(json.dumps(row) + "\n")
        os.rename(folder / "rows.part", folder / "rows.jsonl")
    return Data(folder, corrupt)


def _name(i: int) -> str:
    return f"{i:07d}.jpg"


def _texts(rng: np.random.Generator, num_rows: int) -> Iterator[tuple[int, str]]:
    """(the row it is a copy of, or itself; text): a real text, or the halves of two; texts of different rows differ."""
    words, seen, made = [t.split() for t in real_texts()], set(), []
    while len(made) < num_rows:
        if made and rng.random() < COPIES:
            of, text = made[int(rng.integers(len(made)))]
        else:
            a, b = (words[int(k)] for k in rng.integers(len(words), size=2))
            text = " ".join(a if len(made) < len(words) // 4 else [*a[: len(a) // 2 + 1], *b[len(b) // 2 :]])
            if text in seen:
                continue
            of = len(made)
            seen.add(text)
        made.append((of, text))
        yield of, text


def real_texts() -> Sequence[str]:
    """LAION's raw alt-texts and CC3M's captions, in words that have a letter."""
    root = (
        Path(os.environ.get("VLPIPE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
        / "alttext"
    )
    raw = [t for t in pq.read_table(root / "laion_10000.parquet")["TEXT"].to_pylist() if t]
    raw += [line.split("\t")[0] for line in (root / "cc3m_validation.tsv").read_text().splitlines()]
    texts = (" ".join(word for word in text.split() if LETTER.search(word)) for text in raw)
    return list(dict.fromkeys(text for text in texts if text))


def _picture(rng: np.random.Generator) -> bytes:
    width, height = (int(n) for n in rng.integers(40, 401, size=2))
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def _numbered(jpeg: bytes, number: int) -> bytes:
    """The JPEG with a comment (marker FF FE) after its first marker."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + jpeg[2:]


def _broken(data: bytes, i: int) -> bytes:
    """Cut short, a web page, or nothing."""
    return (data[: len(data) * 6 // 10], b"<!doctype html><title>404</title>", b"")[i % 3]
