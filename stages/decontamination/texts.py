"""Reads the texts of an evaluation set, and the names of its images, from .txt, .jsonl and .json files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.decontamination.json_sets import Published, published
from vlpipe.stages.lists.list import lines, text_of

KEYS = ("text", "caption", "captions", "sentence", "question")  # keys of the text in a line of .jsonl


def read_set(path: str, split: Sequence[str] | None = None) -> tuple[list[tuple[str, str]], list[str] | None]:
    """Returns (location, text) of all non-empty texts, and the file names of the set's images (None if it lists none).

    split: splits of Karpathy's JSON to read. Raises VlpipeError for an unknown format, or for `split` in another format.
    """
    file = Path(path)
    ending = file.suffix.lower()
    if ending == ".json":
        content = _parsed("".join(line + "\n" for _, line in lines(file)), str(file))
        found = published(content, str(file), split)
    elif split is not None:
        raise VlpipeError(f"texts: {path}: `split` applies only to Karpathy's JSON; remove it")
    elif ending in (".txt", ".jsonl"):
        found = Published(_jsonl(file) if ending == ".jsonl" else lines(file), None)
    else:
        raise VlpipeError(f"texts: {path}: wanted a file that ends in .txt, .jsonl or .json")
    named = ((where.removeprefix(f"{file.parent}/"), text_of(value, where)) for where, value in found.texts)
    return [(where, text) for where, text in named if text.strip()], found.images


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    for where, line in lines(file):
        if line.strip():
            record = _parsed(line, where)
            found = [record[k] for k in KEYS if isinstance(record, dict) and k in record]
            if len(found) != 1:
                raise VlpipeError(f"{where}: wanted an object with exactly one of {', '.join(KEYS)}")
            for text in found[0] if isinstance(found[0], list) else found:
                yield where, text


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VlpipeError(f"{where} is not valid JSON: {error}") from error
