"""Digests of JSON values and of folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def sha256_json(*parts: Any) -> str:
    """Returns the sha256 over the parts as compact JSON with sorted keys, as 64 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()  # file names may hold any bytes


def tree_digest(files: Mapping[str, str]) -> str:
    """Returns a digest of a folder. files: relative path -> digest. For a single file (path ""), returns its own digest."""
    return files[""] if set(files) == {""} else sha256_json("tree", sorted(files.items()))
