"""Official splits of HMDB51 and UCF101 into training and test videos, and a table of both for all splits.

Kuehne et al. 2011 (HMDB51); Soomro et al. 2012, https://arxiv.org/abs/1212.0402 (UCF101).
"""

from __future__ import annotations

import csv
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vlpipe.pipeline.errors import VlpipeError

HMDB = re.compile(r"(.+)_test_split(\d)\.txt")
IS_TRAIN, IS_TEST = "1", "2"  # HMDB51's marks; 0 is in neither


class Labelled(NamedTuple):
    """The class of a video, and whether it is in the training part of the split, or in its test part."""

    label: str
    is_train: bool


def read_split(source: str | Path, split: int) -> dict[str, Labelled]:
    """Returns file name without its ending -> Labelled, of the videos of split 1, 2 or 3.

    source: HMDB51's folder of `CLASS_test_splitK.txt` (lines `NAME MARK`), UCF101's folder of `trainlist0K.txt` and
    `testlist0K.txt` (lines `CLASS/NAME`, with a number behind in the first), or a .csv with columns video_id, label and
    `splitK` of train, test or anything else. Raises VlpipeError for other files or lines, naming them.
    """
    path = Path(source)
    if path.is_file():
        return _table(path, split)
    if not path.is_dir():
        raise VlpipeError(f"splits: {path} is neither a folder nor a .csv")
    hmdb = [
        (file, found[1])
        for file in sorted(path.iterdir())
        if (found := HMDB.fullmatch(file.name)) and found[2] == str(split)
    ]
    if hmdb:
        return {name: one for file, label in hmdb for name, one in _hmdb(file, label).items()}
    lists = [(path / f"{kind}list{split:02d}.txt", kind == "train") for kind in ("train", "test")]
    if not all(file.is_file() for file, _ in lists):
        raise VlpipeError(
            f"splits: {path} has neither *_test_split{split}.txt nor {lists[0][0].name} and {lists[1][0].name}"
        )
    return {name: one for file, is_train in lists for name, one in _ucf(file, is_train).items()}


def _hmdb(path: Path, label: str) -> dict[str, Labelled]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, mark = line.strip().rpartition(" ")
        if line.strip() and (not name or mark not in ("0", IS_TRAIN, IS_TEST)):
            raise VlpipeError(f"{path}, line {number}: wanted a file name and 0, 1 or 2, got {line[:80]!r}")
        if mark in (IS_TRAIN, IS_TEST):
            found[_stem(name.strip())] = Labelled(label, mark == IS_TRAIN)
    return found


def _ucf(path: Path, is_train: bool) -> dict[str, Labelled]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        file = PurePosixPath(line.split()[0])
        if len(file.parts) != 2:
            raise VlpipeError(f"{path}, line {number}: wanted CLASS/NAME, got {line[:80]!r}")
        found[_stem(file.name)] = Labelled(file.parts[0], is_train)
    return found


def _table(path: Path, split: int) -> dict[str, Labelled]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        needed = ("video_id", "label", f"split{split}")
        if lacking := [name for name in needed if name not in (rows.fieldnames or ())]:
            raise VlpipeError(
                f"{path} has no column {', '.join(lacking)}; it has {', '.join(rows.fieldnames or ())}"
            )
        return {
            _stem(row["video_id"]): Labelled(row["label"], row[needed[2]] == "train")
            for row in rows
            if row[needed[2]] in ("train", "test")
        }


def _stem(name: str) -> str:
    return name.rpartition(".")[0] if name.endswith((".avi", ".mp4", ".mkv", ".webm")) else name
