"""Manually annotated clips: a list of time spans with captions, as in YouCook2, MSR-VTT and many other datasets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import SchemaError, VlpipeError, did_you_mean
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.clips.captions import SOURCES, clean, pick_track
from vlpipe.stages.clips.cut_windows import CutClips, Found, schema_with_windows, windows_problems
from vlpipe.stages.common.row import RowIds, text
from vlpipe.stages.video.rows import CLIPS, CUES, FILE_FIELDS

READS = {f.name: f.type for f in FILE_FIELDS} | {"id": pa.string(), "video_id": pa.string()}
Span = tuple[float, float, list[str]]
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
    or a list of strings. Rows with the same span form one clip with several texts; rows without text, or without
    0 <= start < end, are ignored. The list of YouCook2 that HowTo100M's authors use: by: video_id, start: start, end: end,
    text: text; the published annotations: `annotated.youcook2`.
    """

    NAME: ClassVar[str] = "clips.spans:SpanClips"
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
        for video, start_s, end_s, value in zip(*_columns(self.spans.path, names), strict=True):
            texts = [t for t in ([value] if isinstance(value, str) else value or ()) if t and t.strip()]
            if start_s is not None and end_s is not None and 0 <= start_s < end_s and texts:
                found.setdefault(str(video), {}).setdefault((float(start_s), float(end_s)), []).extend(texts)
        return found


def _columns(path: str, names: Mapping[str, str]) -> list[list[Any]]:
    """Returns the values of the columns. names: parameter -> column. SchemaError if a column is missing."""
    try:
        if path.endswith(".parquet"):
            table = pq.read_table(path)
        else:
            options = pyarrow.csv.ParseOptions(
                delimiter="\t" if path.endswith(".tsv") else ",", newlines_in_values=True
            )
            table = pyarrow.csv.read_csv(path, parse_options=options)
    except (OSError, pa.ArrowInvalid) as error:
        raise VlpipeError(f"clips.spans: {path} cannot be read as .parquet, .csv or .tsv: {error}") from error
    for parameter, name in names.items():
        if name not in table.column_names:
            raise SchemaError(
                f"clips.spans: {path} has no column {name!r}{did_you_mean(name, table.column_names)} "
                f"(`{parameter}` names a column of the list)"
            )
    return [table[name].to_pylist() for name in names.values()]


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
