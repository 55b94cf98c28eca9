"""Where the samples of a webdataset tar lie: members `KEY.jpg`, `KEY.txt`, `KEY.json` make the sample KEY.

https://github.com/webdataset/webdataset: the key ends at the first dot of the file name.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlpipe.pipeline.errors import VlpipeError

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff")


class Span(NamedTuple):
    """A member's data: bytes `start` to `start + size` of the tar."""

    start: int
    size: int


Samples = Mapping[str, Mapping[str, Span]]  # key -> ending (lower case) -> where


def samples(path: Path) -> Samples:
    """All samples of an uncompressed tar, in order. VlpipeError when the tar is cut short or is none."""
    found: dict[str, dict[str, Span]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    key, ending = _key_and_ending(member.name)
                    sample = found.setdefault(key, {})
                    if ending in sample:
                        raise VlpipeError(f"{path} has {member.name} twice")
                    sample[ending] = Span(member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise VlpipeError(f"{path} is cut short, or no uncompressed tar: {error}") from error
    with open(path, "rb") as handle:  # tarfile takes a broken header after the first one for the end
        handle.seek(end)
        if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise VlpipeError(f"{path} is cut short: its end mark is missing at byte {end}; write it again")
    return found


def image_span(sample: Mapping[str, Span]) -> Span | None:
    """The image of a sample."""
    return next((sample[ending] for ending in IMAGE_ENDINGS if ending in sample), None)


def read_span(path: Path, span: Span) -> bytes:
    """A member's data."""
    with open(path, "rb") as handle:
        handle.seek(span.start)
        return handle.read(span.size)


def read_json(path: Path, span: Span, where: str) -> dict[str, Any]:
    """A member that is a JSON object."""
    try:
        record = json.loads(read_span(path, span))
    except ValueError as error:
        raise VlpipeError(f"{where}: its json is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise VlpipeError(f"{where}: its json is no object")
    return record


def _key_and_ending(name: str) -> tuple[str, str]:
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()
