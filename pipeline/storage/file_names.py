"""Names of the files that the engine writes. A file with any other name is never removed."""

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
# A file being written has its final name, 8 random hex digits and `.part`. A user's `film.mkv.part` must not match.
_WRITTEN = r"_[a-z]+\.(json|parquet)|\d{6,}\.(parquet|jsonl?)|(manifest|run|digests)\.json|forgotten\.parquet"
PART_FILE = re.compile(rf"({_WRITTEN})\.[0-9a-f]{{8}}\.part")
_PART_END = re.compile(r"\.[0-9a-f]{8}\.part$")


def is_part(name: str) -> bool:
    """Returns True for a temporary file of the engine."""
    return bool(PART_FILE.fullmatch(name))


def is_engines(entry: str) -> bool:
    """Returns True if the engine writes an entry of this name into a step's folder.

    Examples: `_step.json`, `work`, `000001.parquet`, and `000001.parquet.1a2b3c4d.part` while that is being written.
    """
    name = _PART_END.sub("", entry)
    return name in INSIDE or bool(SHARD_FILE.fullmatch(name))
