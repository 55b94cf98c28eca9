"""Manually annotated clips: a list of time spans with captions, as in YouCook2, MSR-VTT and many other datasets."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import SchemaError, VlpipeError, did_you_mean, shown
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.clips.captions import SOURCES, clean, pick_track
from vlpipe.stages.clips.cut_windows import CutClips, Found, schema_with_windows, windows_problems
from vlpipe.stages.common.row import RowIds, text
from vlpipe.stages.video.rows import CLIPS, CUES, FILE_FIELDS

READS = {f.name: f.type for f in FILE_FIELDS} | {"id": pa.string(), "video_id": pa.string()}
Span = tuple[float, float, list[str]]
NO_NUMBER = ("", "na", "n/a", "#n/a", "nan", "-nan", "null", "none")  # as programs write that there is none
TRANSCRIPT = pa.field("transcript", pa.string())
SpansByVideo = dict[str, dict[tuple[float, float], list[str]]]


@dataclass(frozen=True, kw_only=True)
class CutsSpans(MapStage):
    """Base of stages that turn video rows into clip rows (CLIPS) with source `human`: one per span of a list, sorted by
    (start, end), with all texts of that span.

    windows: as in `clips.pairing:Pairing`. transcript: adds the column of this name with what is said in the clip: the
    captions of the video with their middle in it, of one track, or null.

    Reject codes (filtered): no_window; no_span, if the list has none for a video; no_duration, where clips are whole videos
    and the header states none.
    """

    FAN_OUT: ClassVar[bool] = True
    WHOLE: ClassVar[bool] = False  # a clip is the whole video, whatever the times in the list are

    windows: tuple[str, ...] = ()
    transcript: bool = False

    @property
    def READS_HEAVY(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on `windows`
        return self.windows

    @property
    def MORE(self) -> dict[str, pa.DataType]:
        """Further columns that it reads."""
        found = {"duration_s": pa.float64()} if self.WHOLE or self.transcript else {}
        return {**found, "cues": CUES} if self.transcript else found

    @property
    def CLIPS(self) -> pa.Schema:
        """The schema of clips without windows."""
        return with_field(CLIPS, TRANSCRIPT) if self.transcript else CLIPS

    @property
    def who(self) -> str:
        """The name of the stage in error texts."""
        return self.NAME.partition(":")[0]

    def preflight(self) -> list[str]:
        return windows_problems(self.windows)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, self.who, **READS, **self.MORE)
        return schema_with_windows(self.CLIPS, inp, self.windows, self.who)

    @contextmanager
    def open(self) -> Iterator[Work]:
        spans, by = self.spans_by_video(), self.key_column()

        def find(videos: pa.Table) -> Found:
            rows: list[dict[str, Any]] = []
            rejects = []
            for video in videos.select([*READS, *self.MORE]).to_pylist():
                found = spans.get(video[by], {})
                if found and self.WHOLE:
                    if not (video["duration_s"] or 0) > 0:
                        why = "a clip is the whole video, and its header states no duration"
                        rejects.append(Reject(video["id"], "filtered", "no_duration", why))
                        continue
                    found = {(0.0, video["duration_s"]): [t for texts in found.values() for t in texts]}
                if not found:
                    rejects.append(
                        Reject(
                            video["id"],
                            "filtered",
                            "no_span",
                            f"the list has no span with times and text for {by} {video[by]}",
                        )
                    )
                clips = _clips(video, sorted((*times, texts) for times, texts in found.items()))
                rows.extend(with_transcripts(clips, video) if self.transcript else clips)
            return Found(rows, rejects)

        yield CutClips(find, self.CLIPS, self.windows)

    def key_column(self) -> str:
        """Returns the column of video rows whose values are the keys of `spans_by_video`."""
        return "video_id"

    def spans_by_video(self) -> SpansByVideo:
        """Returns video -> (start, end) in seconds -> texts. Raises VlpipeError for what cannot be read, naming it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SpanClips(CutsSpans):
    """`CutsSpans` of a table.

    spans: the list, .parquet, .csv or .tsv. by: the column, in the list and in the video rows, that says to which video a
    span belongs: `video` (path) or `video_id`. start, end, text: columns of the list with times in seconds and with a string
    or a list of strings. Rows with the same span form one clip with several texts; rows without video or text, or without
    0 <= start < end, are ignored. The list of YouCook2 that HowTo100M's authors use: by: video_id, start: start, end: end,
    text: text; the published annotations: `annotated.youcook2`. Raises VlpipeError for a time that is no number, and for a
    text that is none.
    """

    NAME: ClassVar[str] = "clips.spans:SpanClips"
    VERSION: ClassVar[int] = 2  # 2: videos and texts of a csv that are digits alone are kept as written
    ADDED: ClassVar[frozenset[str]] = frozenset({"windows", "transcript"})

    spans: File
    by: Literal["video", "video_id"] = "video"
    start: str = "start_s"
    end: str = "end_s"
    text: str = "captions"

    def key_column(self) -> str:
        return self.by

    def spans_by_video(self) -> SpansByVideo:
        names = {name: getattr(self, name) for name in ("by", "start", "end", "text")}
        found: SpansByVideo = {}
        rows = zip(*_columns(self.spans.path, names), strict=True)
        for number, (name, start, end, value) in enumerate(rows, 1):
            where = f"clips.spans: {self.spans.path} row {number}"
            video, start_s, end_s = _name(name), *(_seconds(time, where) for time in (start, end))
            texts = _texts(value, where)
            if video and texts and 0 <= start_s < end_s:
                found.setdefault(video, {}).setdefault((start_s, end_s), []).extend(texts)
        return found


def _name(value: Any) -> str:
    """Returns a video as text: numbers as in the rows of videos, which pandas writes as floats where a value is missing."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return "" if value is None or value != value else str(value)


def _seconds(value: Any, where: str) -> float:
    """Returns a time; nan if there is none. Raises VlpipeError if it is not a number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NO_NUMBER):
        return math.nan
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError) as error:
        raise VlpipeError(f"{where}: wanted a time in seconds, got {shown(value)}") from error


def _texts(value: Any, where: str) -> list[str]:
    """Returns the texts of a string or a list of strings, without blank ones. Raises VlpipeError for other values."""
    values = value if isinstance(value, list) else [value]
    if bad := [one for one in values if one is not None and not isinstance(one, str)]:
        raise VlpipeError(f"{where}: wanted a text or a list of texts, got {shown(bad[0])}")
    return [one for one in values if one and one.strip()]


def _columns(path: str, names: Mapping[str, str]) -> list[list[Any]]:
    """Returns the values of the columns, of a csv or tsv as text. names: parameter -> column.

    Raises SchemaError if a column is missing, or is there twice; VlpipeError for a file that cannot be read.
    """
    try:
        if path.endswith(".parquet"):
            table = pq.read_table(path)
            there = table.column_names
        else:
            there, rows = _fields(path)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise VlpipeError(f"clips.spans: {path} cannot be read as .parquet, .csv or .tsv: {error}") from error
    for parameter, name in names.items():
        if name not in there:
            raise SchemaError(
                f"clips.spans: {path} has no column {name!r}{did_you_mean(name, there)} "
                f"(`{parameter}` names a column of the list)"
            )
        if (num := there.count(name)) > 1:
            raise SchemaError(f"clips.spans: {path} has the column {name!r} {num} times; wanted one")
    if path.endswith(".parquet"):
        return [table[name].to_pylist() for name in names.values()]
    return [[row[there.index(name)] for row in rows] for name in names.values()]


def _fields(path: str) -> tuple[list[str], list[list[str]]]:
    """Returns the names of the columns of a csv or tsv, and the fields of its rows.

    Raises csv.Error for a row with more or fewer fields, and for a quotation mark that is left open: the rows below it would
    be read as one text.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.endswith(".tsv") else ",", strict=True)
        there = next(reader, [])
        rows = []
        for row in reader:
            if row and len(row) != len(there):
                raise csv.Error(f"line {reader.line_num} has {len(row)} fields, wanted {len(there)}")
            rows += [row] if row else []
    return there, rows


def _clips(video: Mapping[str, Any], spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    ids = RowIds(f"clips.spans:{video['id']}")
    for start_s, end_s, texts in spans:
        yield {
            **{f.name: video[f.name] for f in FILE_FIELDS},
            "id": ids.next(f"{start_s:.6f}-{end_s:.6f}", "\n".join(texts)),
            "parent": video["id"],
            "video_id": video["video_id"],
            "start_s": start_s,
            "end_s": end_s,
            "texts": [text(one, "human") for one in texts],
            "candidates": [],
        }


def with_transcripts(clips: Iterable[dict[str, Any]], video: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the clips with their `transcript`. video: with `cues` and `duration_s`."""
    track = pick_track(video["cues"] or (), SOURCES, "")
    captions = clean(track, video["duration_s"] or math.inf, Counter())
    for clip in clips:
        said = [
            one.text for one in captions if clip["start_s"] <= (one.start_s + one.end_s) / 2 < clip["end_s"]
        ]
        yield {**clip, "transcript": " ".join(said) or None}
