"""The texts of an evaluation set, from the files such sets come in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.ingest.folder import wanted
from vlpipe.stages.ingest.list import lines, text_of


def read_texts(path: str) -> Iterator[tuple[str, str]]:
    """(where it stands, text), without empty ones."""
    file = Path(path)
    readers = {".txt": _txt, ".jsonl": _jsonl, ".json": _json}
    if file.suffix.lower() not in readers:
        raise VlpipeError(f"texts: {path}: wanted a file that ends in {', '.join(readers)}")
    for where, value in readers[file.suffix.lower()](file):
        text = text_of(value, where)
        if text.strip():
            yield where.removeprefix(f"{file.parent}/"), text  # where a root lies is no part of a decision


def _txt(file: Path) -> Iterator[tuple[str, Any]]:
    yield from lines(file)


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    for where, line in lines(file):
        if line.strip():
            record = _parsed(line, where)
            found = [
                record[k] for k in ("text", "caption", "captions") if isinstance(record, dict) and k in record
            ]
            if len(found) != 1:
                raise VlpipeError(f"{where}: wanted an object with one of 'text', 'caption' and 'captions'")
            for text in found[0] if isinstance(found[0], list) else found:
                yield where, text


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    content = _parsed("".join(line + "\n" for _, line in lines(file)), str(file))
    if isinstance(content, list):
        yield from ((f"{file}[{n}]", text) for n, text in enumerate(content))
        return
    for number, annotation in enumerate(wanted(content, "annotations", list, str(file))):
        where = f"{file} annotations[{number}]"
        yield where, wanted(annotation, "caption", str, where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise VlpipeError(f"{where} is not JSON: {error}") from error
