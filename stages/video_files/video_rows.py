"""Base class of all video sources. It hashes a video file, probes it in a child process, and reads one track of cues."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.engine.worker.guard import row_fault
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.stages.common.loopback import inside, leads_out
from vlpipe.stages.fetching.fetch_rows import FILTERED
from vlpipe.stages.subtitles.cue import Cue, RawCue, Source
from vlpipe.stages.subtitles.track import Merge, Track, track
from vlpipe.stages.video.decode import Limits
from vlpipe.stages.video.open_video import need_av
from vlpipe.stages.video.rows import VIDEOS
from vlpipe.stages.video.shut_in import Look
from vlpipe.stages.video_files.probe import Prober, prober, too_long

ENDINGS = (
    *(".mp4", ".webm", ".mkv", ".m4v", ".mov", ".avi", ".flv"),
    *(".wmv", ".mpg", ".mpeg", ".ts", ".ogv", ".3gp"),
)
CHUNK_BYTES = 1 << 20
# Reject codes of subtitles: with `no_cues: keep`, a video with one of these is kept, without cues.
CUE_FAULTS = frozenset({"no_cues", "no_captions", "bad_captions", "bad_subtitles"})

Row = Mapping[str, Any]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class VideoSource(SourceStage):
    """Base class of video sources; subclasses define which videos are listed and where their subtitles are.

    no_cues: `reject` a video without readable subtitles, or `keep` it without cues. rollup: whether to merge roll-up
    captions (`subtitles.track`). subtitle_source, lang: defaults for cues whose file does not state them. max_pixels: max
    width x height of a frame. max_duration_s: longer videos are rejected, as a few bytes can declare days. probe_timeout_s,
    probe_memory_mb: limits of the child processes that probe a video and read a subtitle file.
    Reject codes: no_file, bad_path, empty, no_cues, bad_subtitles, those of `video.decode` (no_video, broken_video,
    deadline, too_many_errors, too_many_pixels), killed_decoder, decode_memory, too_long.
    Counts: cues dropped or repaired, by reason; cues_past_end are dropped, cues_cut_at_end are cut at the video's end.
    """

    NAME: ClassVar[str] = "ingest.video_rows:VideoSource"
    MAX_REJECT_RATE: ClassVar[float] = 0.9  # link rot: many of HowTo100M's videos are no longer available
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"probe_timeout_s", "probe_memory_mb"})

    source: str = "video"  # part of the row ids: lists with different sources share no id
    no_cues: Literal["reject", "keep"] = "reject"
    rollup: Merge = "auto"
    subtitle_source: Source = "unknown"
    lang: str | None = None
    max_pixels: Count = Limits().max_pixels
    max_duration_s: Positive = 12 * 3600  # YouTube's limit
    probe_timeout_s: Positive = 60.0
    probe_memory_mb: Count = 2048

    def preflight(self) -> list[str]:
        need_av()
        return []

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return VIDEOS

    @abstractmethod
    def video(self, one: Row, probe: Prober, counts: Counter[str]) -> dict[str, Any]:
        """Returns the columns after `id` and `url` for a listed row. Raises RowFault if the row is rejected."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        limits = Limits(deadline_s=self.probe_timeout_s, max_pixels=self.max_pixels)
        with prober(limits, self.probe_memory_mb) as probe:
            yield lambda batch: self.out(batch, lambda one, counts: self.video(one, probe, counts))

    def out(self, batch: pa.Table, video: Callable[[Row, Counter[str]], dict[str, Any]]) -> Out:
        """Returns the rows of a batch. video: returns the columns of one row after `id` and `url`.

        Rows for which it raises RowFault are rejected; if the stage has `OBSERVES_WORLD`, so are those of other exceptions,
        except infrastructure errors.
        """
        schema = self.schema(self.row_schema())
        found: list[pa.Table] = []
        rejects: list[Reject] = []
        counts: Counter[str] = Counter()
        for one in batch.to_pylist():
            try:
                row = {"id": one["id"], "url": one["url"], **video(one, counts)}
                found.append(pa.Table.from_pylist([row], schema))
            except Exception as error:
                if not (self.OBSERVES_WORLD or isinstance(error, RowFault)):
                    raise
                fault = row_fault(error, __name__)
                kind: Literal["fault", "filtered"] = "filtered" if fault.why in FILTERED else "fault"
                rejects.append(Reject(one["id"], kind, fault.why, fault.detail))
        table = pa.concat_tables([schema.empty_table(), *found]).combine_chunks()
        return Out(table, rejects, counts={code: num for code, num in counts.items() if num})

    def about(
        self,
        root: str,
        video: str,
        read: Callable[[Look], Track],
        probe: Prober,
        counts: Counter[str],
        *,
        text_tracks: bool = False,
    ) -> dict[str, Any]:
        """Returns the columns of VIDEOS, except `id`, `url` and `video_id`.

        read: returns the track of cues, given the result of the probe. text_tracks: whether the probe reads the text tracks
        in the file. Raises RowFault if the row is rejected.
        """
        num_bytes, sha256 = hashed(root, video)
        seen = probe.look(root, video, text_tracks=text_tracks, num_bytes=num_bytes)
        info = seen.info
        too_long(video, info.duration_s, self.max_duration_s)
        return {
            "video": video,
            "num_bytes": num_bytes,
            "sha256": sha256,
            "duration_s": info.duration_s,
            "width": info.width,
            "height": info.height,
            "fps": info.fps,
            "codec": info.codec,
            "cues": [cue.row() for cue in self._cues(video, seen, read, counts)],
        }

    def _cues(
        self, video: str, seen: Look, read: Callable[[Look], Track], counts: Counter[str]
    ) -> Sequence[Cue]:
        try:
            found = read(seen)
            counts.update(found.counts)
            return within(found.cues, seen.info.duration_s, video, counts)
        except RowFault as fault:
            if self.no_cues == "reject" or fault.why not in CUE_FAULTS:
                raise
            counts[f"kept_{fault.why}"] += 1
            return ()

    def track_of(self, found: RawCue, name: str) -> Track:
        """Returns `subtitles.track` of a file's content, with the stage's `subtitle_source`, `lang` and `rollup`.

        Raises RowFault (no_cues).
        """
        return track(found, name, source=self.subtitle_source, lang=self.lang, rollup=self.rollup)


def within(cues: Sequence[Cue], duration_s: float | None, video: str, counts: Counter[str]) -> Sequence[Cue]:
    """Returns the cues that start before the video ends, cut at its end. Raises RowFault (no_cues) if there are none."""
    if duration_s is None:
        return cues
    kept = [cue for cue in cues if cue.start_s < duration_s]
    counts["cues_past_end"] += len(cues) - len(kept)
    counts["cues_cut_at_end"] += sum(cue.end_s > duration_s for cue in kept)
    if not kept:
        raise RowFault("no_cues", f"{video} ends at {duration_s:g} s, before its first cue")
    return [cue if cue.end_s <= duration_s else _cut(cue, duration_s) for cue in kept]


def _cut(cue: Cue, end_s: float) -> Cue:
    words = cue.words and tuple(
        replace(w, start_s=min(w.start_s, end_s), end_s=min(w.end_s, end_s)) for w in cue.words
    )
    return replace(cue, end_s=end_s, words=words)


def hashed(root: str, video: str) -> tuple[int, str]:
    """Returns the size in bytes and the sha256 of a file. Raises RowFault: bad_path, no_file, empty."""
    digest, num_bytes = hashlib.sha256(), 0
    with opened(root, video) as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
            num_bytes += len(piece)
    if not num_bytes:
        raise RowFault("empty", f"the file {video} has 0 bytes")
    return num_bytes, digest.hexdigest()


@contextmanager
def opened(root: str, name: str) -> Iterator[Any]:
    """Opens a file below a folder or fsspec URL for reading. Raises RowFault: bad_path, no_file."""
    path = below(root, name)
    if "://" not in root:
        if not os.path.isfile(path):
            raise RowFault("no_file", f"there is no file {name} in the folder given by `videos`")
        with open(path, "rb") as file:
            yield file
        return
    import fsspec

    fs, plain_path = fsspec.core.url_to_fs(path)
    try:
        handle = fs.open(plain_path, "rb")
    except FileNotFoundError as error:
        raise RowFault("no_file", f"there is no file {name} in the folder given by `videos`") from error
    with handle:
        yield handle


def below(root: str, name: str) -> str:
    """Returns the path or URL of `name` below the root. Raises RowFault (bad_path) if it leads out of the root."""
    if "://" in root:
        bad = name.startswith("/") or ".." in name.split("/")
        path = None if bad else f"{root.rstrip('/')}/{name}"
    else:
        path = None if name.startswith("/") else inside(root, name)
    if path is None:
        raise RowFault("bad_path", leads_out(name, "videos"))
    return path


def exists(root: str, name: str) -> bool:
    """Returns whether the file exists below a folder or fsspec URL. Raises RowFault (bad_path)."""
    path = below(root, name)
    if "://" not in root:
        return os.path.isfile(path)
    import fsspec

    fs, plain_path = fsspec.core.url_to_fs(path)
    return bool(fs.isfile(plain_path))
