"""Generates the demo videos: films with subtitles (files or text tracks), captions, questions, and their ground truth.

Films and subtitles are files, not rows, so that `video_files.videos` reads their folders like any user's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo import broken
from vlpipe.stages.demo.film import LENGTH_S, Segment, draw_film, pictures, same_objects
from vlpipe.stages.demo.speech import Utterance, draw_speech
from vlpipe.stages.demo.video_captions import captions, questions
from vlpipe.stages.demo.video_files import CODINGS, Coding, overlapping_srt, rolling_vtt, write_film
from vlpipe.stages.demo.world import OBJECT, Share
from vlpipe.stages.video.rows import WORD

SUBTITLES = (
    "rolling",
    "rolling",
    "overlapping",
    "track",
    "none",
)  # rolling is twice as frequent, as it is the most common on the web
NUM_SEGMENTS = (3, 7)  # min and max per film

WHERE = (("split", pa.string()), ("video", pa.string()))  # train | eval; path relative to that folder
SPAN = (("start_s", pa.float64()), ("end_s", pa.float64()))
TABLES = {
    "videos": pa.schema(
        [
            *WHERE,
            ("duration_s", pa.float64()),
            ("subtitles", pa.string()),  # rolling (vtt), overlapping (srt), track (in the file), none
            ("lag_s", pa.float64()),  # delay of narration after the start of its segment; negative: before it
            ("fault", pa.string()),  # why the file cannot be decoded: truncated, html; null if it can
        ]
    ),
    "seen": pa.schema(
        [
            *WHERE,
            ("segment", pa.int32()),
            *SPAN,
            ("motion", pa.string()),  # of the first object; the second one stays
            ("ground", pa.string()),
            ("objects", pa.list_(OBJECT)),  # boxes at the start of the segment
        ]
    ),
    "said": pa.schema(
        [
            *WHERE,
            *SPAN,
            ("text", pa.string()),
            ("words", pa.list_(WORD)),
            ("about", pa.string()),  # seen | other (something not visible) | chatter
            ("segment", pa.int32()),  # the segment that it is about, or null
        ]
    ),
    "captions": pa.schema([*WHERE, *SPAN, ("captions", pa.list_(pa.string()))]),
    "questions": pa.schema(
        [*WHERE, *SPAN, ("kind", pa.string()), ("question", pa.string()), ("answer", pa.string())]
    ),
}


@dataclass(frozen=True, slots=True)
class Film:
    """A video before it is written to a file. subtitles: one of SUBTITLES; fault: see TABLES."""

    split: str
    name: str  # 11 characters like YouTube's; some begin with "-"
    seed: tuple[int, ...]
    coding: Coding
    subtitles: str
    lag_s: float
    segments: list[Segment]
    said: list[Utterance]
    fault: str | None

    @property
    def video(self) -> str:
        return self.name + self.coding.ending


@dataclass(frozen=True, kw_only=True)
class VideoWorld(GatherStage):
    """Generates videos. Artifacts: train/NAME.mp4|mkv|webm with NAME.en.vtt or NAME.en.srt, the same in eval/, and TABLES.

    Each of TABLES is a Parquet file. videos, seen and said are the ground truth, for evaluation stages only; captions (of
    segments) and questions are data that a user would provide. A film has segments of 3 to 6 s, at 10 frames per second.
    num_segments: the least and the most of a film. about_other: fraction of utterances that are not about what is visible;
    silent: fraction of segments without an utterance; corrupt: fraction of files that cannot be decoded. length_s: the least
    and the most of a segment, in place of 3 and 6 s. same_objects: all segments of a film show the same objects on the same
    ground, and differ in what the first object does.
    """

    ROWS_ARE: ClassVar[str] = "none"
    ADDED: ClassVar[frozenset[str]] = frozenset({"num_segments", "lag_s", "length_s", "same_objects"})

    seed: int = 0
    num_train: Annotated[int, Field(ge=1)] = 60
    num_eval: Annotated[int, Field(ge=1)] = 20
    captions_per_segment: Annotated[int, Field(ge=1)] = 2
    two_things: Share = 0.3  # fraction of segments with two objects
    about_other: Share = 0.25
    silent: Share = 0.1
    corrupt: Share = 0.03
    max_lag_s: Annotated[float, Field(ge=0)] = 2.5  # each film has one lag, drawn from -1 s to this
    num_segments: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = NUM_SEGMENTS
    lag_s: Annotated[float, Field(ge=-1)] | None = None  # the same for all films
    length_s: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = LENGTH_S
    same_objects: bool = False

    NAME: ClassVar[str] = "demo.video_world:VideoWorld"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def preflight(self) -> list[str]:
        given = {"num_segments": self.num_segments, "length_s": self.length_s}
        return [
            f"{name}: wanted [least, most], got [{least}, {most}]"
            for name, (least, most) in given.items()
            if least > most
        ]

    def run(self, job: Job) -> None:
        folder = Path(job.artifacts)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        for film in self._films():
            (folder / film.split).mkdir(exist_ok=True)
            _write(folder / film.split, film)
            for name, found in self._rows(film).items():
                rows[name] += [{"split": film.split, "video": film.video, **row} for row in found]
        for name, schema in TABLES.items():
            pq.write_table(pa.Table.from_pylist(rows[name], schema), folder / f"{name}.parquet")
        job.say(f"{len(rows['videos'])} videos, {sum(row['duration_s'] for row in rows['videos']):.0f} s")

    def _films(self) -> Iterator[Film]:
        for stream, (split, num) in enumerate((("train", self.num_train), ("eval", self.num_eval))):
            num_corrupt = round(self.corrupt * num)
            for index in range(num):
                yield self._film(split, index, (self.seed, stream, index), index < num_corrupt)

    def _film(self, split: str, index: int, seed: tuple[int, ...], is_corrupt: bool) -> Film:
        rng = np.random.default_rng(seed)
        coding = CODINGS[index % len(CODINGS)]
        kind = str(rng.choice(SUBTITLES))
        drawn_s = round(float(rng.uniform(-1, self.max_lag_s)), 2)
        lag_s = drawn_s if self.lag_s is None else self.lag_s
        num = int(rng.integers(*self.num_segments, endpoint=True))
        segments = draw_film(rng, num, self.two_things, self.length_s)
        if self.same_objects:
            segments = same_objects(rng, segments)
        return Film(
            split=split,
            name=base64.urlsafe_b64encode(hashlib.sha256(repr(seed).encode()).digest())[:11].decode(),
            seed=seed,
            coding=coding,
            subtitles="rolling" if kind == "track" and coding.ending != ".mp4" else kind,
            lag_s=lag_s,
            segments=segments,
            said=draw_speech(segments, rng, lag_s, self.about_other, self.silent),
            fault=("truncated" if coding.ending == ".mp4" else "html") if is_corrupt else None,
        )

    def _rows(self, film: Film) -> dict[str, Sequence[dict[str, Any]]]:
        rng = np.random.default_rng([*film.seed, 1])
        about = {"subtitles": film.subtitles, "lag_s": film.lag_s, "fault": film.fault}
        return {
            "videos": [{"duration_s": film.segments[-1].end_s, **about}],
            "seen": [_seen(index, one) for index, one in enumerate(film.segments)],
            "said": [_said(one) for one in film.said],
            "captions": [captions(one, self.captions_per_segment, rng) for one in film.segments],
            "questions": questions(film.segments, rng),
        }


def _write(folder: Path, film: Film) -> None:
    path = folder / film.video
    write_film(
        path, pictures(film.segments, film.seed), film.coding, film.said if film.subtitles == "track" else ()
    )
    if film.subtitles == "rolling":
        (folder / f"{film.name}.en.vtt").write_text(rolling_vtt(film.said))
    if film.subtitles == "overlapping":
        srt = overlapping_srt(film.said, np.random.default_rng([*film.seed, 2]))
        (folder / f"{film.name}.en.srt").write_text(srt)
    if film.fault == "truncated":
        path.write_bytes(
            broken.truncated(path.read_bytes())
        )  # cannot be decoded: an MP4's index is at its end
    if film.fault == "html":
        path.write_bytes(broken.html_page(film.video))


def _seen(index: int, segment: Segment) -> dict[str, Any]:
    objects = [
        {**asdict(thing), "row": thing.place[0], "column": thing.place[1]} for thing in segment.scene.things
    ]
    span = {"start_s": segment.start_s, "end_s": segment.end_s}
    return {
        "segment": index,
        **span,
        "motion": segment.motion,
        "ground": segment.scene.ground,
        "objects": objects,
    }


def _said(one: Utterance) -> dict[str, Any]:
    words = [{"start_s": w.start_ms / 1000, "end_s": w.end_ms / 1000, "word": w.text} for w in one.words]
    span = {"start_s": one.start_ms / 1000, "end_s": one.end_ms / 1000}
    return {**span, "text": one.text, "words": words, "about": one.about, "segment": one.segment}
