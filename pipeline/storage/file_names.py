"""Names of the engine's files. A file with any other name is not the engine's and is never removed."""

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
# A file being written: its final name, then eight digits of the attempt. `film.mkv.part` is a user's own download.
_WRITTEN = r"_[a-z]+\.(json|parquet)|\d{6,}\.(parquet|jsonl?)|(manifest|run|digests)\.json|forgotten\.parquet"
PART_FILE = re.compile(rf"({_WRITTEN})\.[0-9a-f]{{8}}\.part")
_PART_END = re.compile(r"\.[0-9a-f]{8}\.part$")


def is_part(name: str) -> bool:
    """True for a temporary file of the engine."""
    return bool(PART_FILE.fullmatch(name))


def is_engines(entry: str) -> bool:
    """True if the engine writes this entry of a step's folder, or its temporary form `000001.parquet.1a2b3c4d.part`."""
    name = _PART_END.sub("", entry)
    return name in INSIDE or bool(SHARD_FILE.fullmatch(name))
