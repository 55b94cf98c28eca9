"""Official splits of HMDB51 and UCF101 into training and test videos, and a table of both for all splits.

Kuehne et al. 2011 (HMDB51); Soomro et al. 2012, https://arxiv.org/abs/1212.0402 (UCF101).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.text_lines import lines_of

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
        return _once((pair for file, label in hmdb for pair in _hmdb(file, label)), path)
    lists = [(path / f"{kind}list{split:02d}.txt", kind == "train") for kind in ("train", "test")]
    if not all(file.is_file() for file, _ in lists):
        raise VlpipeError(
            f"splits: {path} has neither *_test_split{split}.txt nor {lists[0][0].name} and {lists[1][0].name}"
        )
    return _once((pair for file, is_train in lists for pair in _ucf(file, is_train)), path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number, line). Raises VlpipeError if the file is not UTF-8."""
    try:
        yield from enumerate(lines_of(path.read_text(encoding="utf-8-sig")), 1)
    except UnicodeDecodeError as error:
        raise VlpipeError(f"{path} is not UTF-8 text: {error}") from error


def _once(found: Iterable[tuple[str, Labelled]], source: Path) -> dict[str, Labelled]:
    """Returns video -> Labelled. Raises VlpipeError for a video with two labels, or in both parts of the split."""
    videos: dict[str, Labelled] = {}
    for name, one in found:
        if videos.setdefault(name, one) != one:
            parts = [
                f"{x.label!r} for {'training' if x.is_train else 'the test'}" for x in (videos[name], one)
            ]
            raise VlpipeError(f"splits: {source}: video {name!r} is {parts[0]}, and {parts[1]}")
    return videos


def _hmdb(path: Path, label: str) -> Iterator[tuple[str, Labelled]]:
    for number, line in _lines(path):
        name, _, mark = line.strip().rpartition(" ")
        if line.strip() and (not name or mark not in ("0", IS_TRAIN, IS_TEST)):
            raise VlpipeError(f"{path}, line {number}: wanted a file name and 0, 1 or 2, got {line[:80]!r}")
        if mark in (IS_TRAIN, IS_TEST):
            yield _stem(name.strip()), Labelled(label, mark == IS_TRAIN)


def _ucf(path: Path, is_train: bool) -> Iterator[tuple[str, Labelled]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        file = PurePosixPath(line.split()[0])
        if len(file.parts) != 2:
            raise VlpipeError(f"{path}, line {number}: wanted CLASS/NAME, got {line[:80]!r}")
        yield _stem(file.name), Labelled(file.parts[0], is_train)


def _table(path: Path, split: int) -> dict[str, Labelled]:
    needed = ("video_id", "label", f"split{split}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)  # else an open quotation mark hides all rows below
            names = list(rows.fieldnames or ())
            if lacking := [name for name in needed if names.count(name) != 1]:
                raise VlpipeError(f"{path} has no column {lacking[0]}, or several; it has {', '.join(names)}")
            found = [tuple(row[name] or "" for name in needed) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise VlpipeError(f"{path} cannot be read as a csv: {error}") from error
    for video, label, part in found:
        if part in ("train", "test") and not (video and label):
            raise VlpipeError(f"{path}: video {video!r} with the label {label!r} is in {part}; wanted both")
    pairs = (
        (_stem(v), Labelled(label, part == "train")) for v, label, part in found if part in ("train", "test")
    )
    return _once(pairs, path)


def _stem(name: str) -> str:
    return name.rpartition(".")[0] if name.endswith((".avi", ".mp4", ".mkv", ".webm")) else name
