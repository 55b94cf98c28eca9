"""What the engine calls its files. Whatever has another name is somebody else's: it is never removed."""

from __future__ import annotations

import re

STEP_FILE = "_step.json"
SHARD_FILE = re.compile(r"(\d{6,})\.parquet")
INSIDE = {
    STEP_FILE,
    "manifest.json",
    "_shards.parquet",
    "_receipts",
    "_rejects",
    "_log",
    "artifacts",
    "work",
}
# A write under way: the name it goes to, eight digits for the attempt. `film.mkv.part` is a download of somebody's.
_WRITTEN = r"_[a-z]+\.(json|parquet)|\d{6,}\.(parquet|jsonl?)|(manifest|run|digests)\.json|forgotten\.parquet"
PART_FILE = re.compile(rf"({_WRITTEN})\.[0-9a-f]{{8}}\.part")
_PART_END = re.compile(r"\.[0-9a-f]{8}\.part$")


def is_part(name: str) -> bool:
    """A file the engine was writing."""
    return bool(PART_FILE.fullmatch(name))


def is_engines(entry: str) -> bool:
    """An entry of a step's folder that the engine writes; `000001.parquet.1a2b3c4d.part` is on its way to be one."""
    name = _PART_END.sub("", entry)
    return name in INSIDE or bool(SHARD_FILE.fullmatch(name))
