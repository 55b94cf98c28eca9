"""Reads HowTo100M's captions: caption.json, raw_caption.json, one CSV per video (as in MIL-NCE), or a zip of these.

The JSON maps video ids to {"text": [...], "start": [...], "end": [...]}, parallel lists with times in seconds; a CSV has
the columns start, end, text.
https://www.di.ens.fr/willow/research/howto100m/, https://github.com/antoine77340/MIL-NCE_HowTo100M
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.stages.howto100m.captions_json import entries
from vlpipe.stages.subtitles.cue import RawCue, utf8
from vlpipe.stages.subtitles.text import plain
from vlpipe.stages.subtitles.youtube_formats import number


class Captions(NamedTuple):
    """The captions of one video, as published: parallel lists.

    A text is None if the value is not text (such as NaN), a time is None if the value is not a number.
    """

    texts: list[str | None]
    starts_s: list[float | None]
    ends_s: list[float | None]

    def found(self) -> RawCue:
        """Returns the captions as a `RawCue`; those without text or times are dropped and counted in its `counts`."""
        found = RawCue()
        for text, start_s, end_s in zip(*self, strict=True):
            if start_s is None or end_s is None:
                found.counts["cues_bad_times"] += 1
            else:
                found.add(start_s, end_s, plain(text or ""))
        return found


def read_captions(path: Path) -> Iterator[tuple[str, Captions | RowFault]]:
    """Yields (video id, `Captions`), in order of the JSON or of the CSV names.

    path: a .json, a .zip, or a folder of .csv. For a video with invalid captions, yields (video id, RowFault bad_captions).
    Raises VlpipeError if the file has another format or is broken.
    """
    if path.is_dir():
        yield from _csv_folder(path)
    elif path.suffix == ".zip":
        yield from _zipped(path)
    elif path.suffix == ".json":
        with path.open("rb") as handle:
            yield from _json(handle, str(path))
    else:
        hint = (
            "; a pickle can run code when loaded: save it as JSON"
            if "pickle" in path.suffix or path.suffix == ".pkl"
            else ""
        )
        raise VlpipeError(
            f"captions: {path} must be a .json, a .zip, or a folder with one .csv per video{hint}"
        )


def _json(handle: IO[bytes], name: str) -> Iterator[tuple[str, Captions | RowFault]]:
    for key, value in entries(handle, name):
        video_id = utf8(key)
        yield video_id, _checked(video_id, value)


def _zipped(path: Path) -> Iterator[tuple[str, Captions | RowFault]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise VlpipeError(f"{path} is not a zip file: {error}") from error
    with archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        tables = sorted(name for name in names if name.endswith(".csv"))
        whole = [name for name in names if name.endswith(".json")]
        if len(whole) + bool(tables) != 1:
            raise VlpipeError(
                f"captions: {path} must contain one .json, or one .csv per video, but contains {len(whole)} .json and "
                f"{len(tables)} .csv"
            )
        for name in whole:
            with archive.open(name) as handle:
                yield from _json(handle, f"{path}/{name}")
        for name in tables:
            yield Path(name).stem, _table(Path(name).name, archive.read(name))


def _csv_folder(path: Path) -> Iterator[tuple[str, Captions | RowFault]]:
    names = sorted(file.name for file in path.iterdir() if file.suffix == ".csv")
    if not names:
        raise VlpipeError(f"folder {path} has no .csv files with captions")
    for name in names:
        yield name.removesuffix(".csv"), _table(name, (path / name).read_bytes())


def _table(name: str, data: bytes) -> Captions | RowFault:
    """Returns the captions in a CSV with a header, or a RowFault (bad_captions) if it is broken, such as by a quotation mark
    that is left open, or lacks a column.

    name: of the file, for the detail. Other columns (such as pandas' index) are ignored.
    """
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        return RowFault("bad_captions", f"{name} cannot be read: {error}")
    header = rows[0] if rows else []
    if missing := [column for column in ("start", "end", "text") if column not in header]:
        return RowFault("bad_captions", f"{name} has no column {missing[0]!r}")
    if uneven := [number for number, row in enumerate(rows, 1) if row and len(row) != len(header)]:
        return RowFault(
            "bad_captions", f"{name} line {uneven[0]} does not have {len(header)} fields, as its header does"
        )
    columns = (header.index("text"), header.index("start"), header.index("end"))
    texts, starts, ends = ([row[column] for row in rows[1:] if row] for column in columns)
    return Captions([_text(one) for one in texts], _numbers(starts), _numbers(ends))


def _checked(video_id: str, value: Any) -> Captions | RowFault:
    got = [value.get(key) for key in ("text", "start", "end")] if isinstance(value, dict) else []
    columns = [column for column in got if isinstance(column, list)]
    if len(columns) != 3:
        return RowFault("bad_captions", f"{video_id} does not have the lists `text`, `start` and `end`")
    texts, starts, ends = columns
    if not len(texts) == len(starts) == len(ends):
        return RowFault(
            "bad_captions", f"{video_id} has {len(texts)} texts, {len(starts)} starts and {len(ends)} ends"
        )
    return Captions([_text(one) for one in texts], _numbers(starts), _numbers(ends))


def _text(value: Any) -> str | None:
    """Returns a caption as text, a number (a spoken one) as its digits; None for NaN, null, booleans, lists and objects."""
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else str(value)


def _numbers(values: Sequence[Any]) -> list[float | None]:
    return [value if type(value) is float else number(value) for value in values]
