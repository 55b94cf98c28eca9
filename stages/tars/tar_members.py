"""Locates the samples of a webdataset tar: members `KEY.jpg`, `KEY.txt`, `KEY.json` form the sample KEY.

https://github.com/webdataset/webdataset: the key ends at the first dot of the file name.
"""

from __future__ import annotations

import codecs
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.formats.signatures import ENDINGS, OTHER_ENDINGS
from vlpipe.stages.lists.json_values import need_no_repeats

IMAGE_ENDINGS = frozenset({*ENDINGS.values(), *OTHER_ENDINGS})
MAX_TEXT_BYTES = 1 << 24  # of KEY.txt and KEY.json
KeyEnds = Literal["first_dot", "last_dot"]


class Span(NamedTuple):
    """A member's data: bytes `start` to `start + size` of the tar."""

    start: int
    size: int


Samples = Mapping[str, Mapping[str, Span]]  # key -> ending (lower case) -> position


def samples(path: Path, key_ends: KeyEnds = "first_dot") -> Samples:
    """Returns all samples of an uncompressed tar, in order.

    Raises VlpipeError if it is truncated, compressed or not a tar, or has links or two members with the same key and ending.

    AppleDouble files (`._NAME`), in which macOS keeps attributes of the file NAME, belong to no sample.
    """
    found: dict[str, dict[str, Span]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir() or PurePosixPath(member.name).name.startswith("._"):
                    continue
                if not member.isreg() or member.issparse():
                    raise VlpipeError(
                        f"{path}: {member.name} is a link or another special file; pack it as a plain file"
                    )
                key, ending = _key_and_ending(member.name, key_ends)
                sample = found.setdefault(key, {})
                if ending in sample:
                    raise VlpipeError(
                        f"{path}: {member.name} is the second member with key {key!r} and ending {ending!r}; "
                        "remove or rename one"
                    )
                sample[ending] = Span(member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise VlpipeError(f"{path} is truncated, or not an uncompressed tar: {error}") from error
    with open(path, "rb") as handle:  # tarfile treats a broken header, except the first, as the end
        handle.seek(end)
        if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise VlpipeError(f"{path} is truncated: no end marker at byte {end}; write it again")
    return found


def image_endings(sample: Mapping[str, Span]) -> list[str]:
    """Returns the endings of a sample's members that are images."""
    return [ending for ending in sample if ending in IMAGE_ENDINGS]


def read_span(path: Path, span: Span) -> bytes:
    """Returns the data of a member."""
    with open(path, "rb") as handle:
        handle.seek(span.start)
        return handle.read(span.size)


def read_text(path: Path, span: Span) -> bytes:
    """Returns a text file without byte-order mark and final line ends. Raises RowFault (bad_text: over MAX_TEXT_BYTES)."""
    if span.size > MAX_TEXT_BYTES:
        raise RowFault("bad_text", f"the .txt file has {span.size:,} bytes, the limit is {MAX_TEXT_BYTES:,}")
    return read_span(path, span).removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")


def read_json(path: Path, span: Span) -> dict[str, Any]:
    """Returns a member that is a JSON object. Raises RowFault (bad_json) if it is not, repeats a key, or is too large."""
    if span.size > MAX_TEXT_BYTES:
        raise RowFault("bad_json", f"the .json file has {span.size:,} bytes, the limit is {MAX_TEXT_BYTES:,}")
    try:
        data = read_span(path, span)
        record = json.loads(data.removeprefix(codecs.BOM_UTF8), object_pairs_hook=need_no_repeats)
    except (ValueError, RecursionError) as error:
        raise RowFault("bad_json", f"the .json file is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise RowFault(
            "bad_json", f"the .json file must contain an object, but contains a {type(record).__name__}"
        )
    return record


def _key_and_ending(name: str, key_ends: KeyEnds) -> tuple[str, str]:
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, ending = file.partition(".") if key_ends == "first_dot" else file.rpartition(".")
    if not dot:
        stem, ending = file, ""
    return f"{folder}{slash}{stem}", ending.lower()
