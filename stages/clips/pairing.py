"""Base class of the pairing rules, which turn videos with cues into clips with texts.

Each rule is a stage (`clips.milnce:MilNce`, ...) that determines the time span and the captions of each clip.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.clips.captions import SOURCES, Caption, clean, pick_track
from vlpipe.stages.clips.cut_windows import CutClips, Found, schema_with_windows, windows_problems
from vlpipe.stages.common.batches import seed_of
from vlpipe.stages.common.row import RowIds, text
from vlpipe.stages.video.rows import CLIPS, CUES, FILE_FIELDS

# CLIPS, plus the time span of the clip's text, which may differ from that of the clip, and the gaps between texts.
PAIRED = pa.schema(
    [
        *CLIPS,
        ("text_start_s", pa.float64()),
        ("text_end_s", pa.float64()),
        (
            "gap_before_s",
            pa.float64(),
        ),  # from the previous caption to the text; negative: they overlap; null: the text is the first
        ("gap_after_s", pa.float64()),
    ]
)
READS = {f.name: f.type for f in FILE_FIELDS} | {
    "id": pa.string(),
    "video_id": pa.string(),
    "duration_s": pa.float64(),
    "cues": CUES,
}
MAX_S = 24 * 3600.0  # seconds; replaces an unknown or longer duration
NumClips = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip: its time span in seconds, its text (captions `first` to `last`, inclusive), and candidate captions (MIL-NCE).

    Captions are indices into the `captions` of `Pairing.pairs`.
    """

    start_s: float
    end_s: float
    first: int
    last: int
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pairing(MapStage):
    """Turns video rows into clip rows (PAIRED).

    sources, lang: choose the track (see `captions.pick_track`). seed: random draws depend only on it and on the video's row
    id. windows: feature columns of the videos (`s3d`, `frame_feats`) that the clips get too: of each clip, the windows with
    their centre in it, else the nearest one if it overlaps the clip; of `frame_looks`, the frames that begin in it, else the
    one shown during it. A clip without any is left out, and counted as `clips:no_window`. Reject codes (filtered): no_cues
    (none in such a track), no_usable_cue (`captions.clean` drops all), no_clip (none is longer than 0 s), no_window (all
    clips are left out).
    """

    NAME: ClassVar[str] = "clips.pairing:Pairing"
    VERSION: ClassVar[int] = 2  # 2: `lang` is a whole part of a language
    FAN_OUT: ClassVar[bool] = True
    ADDED: ClassVar[frozenset[str]] = frozenset({"windows"})

    sources: tuple[str, ...] = SOURCES
    lang: str = ""
    seed: int = 0
    windows: tuple[str, ...] = ()

    @property
    def READS_HEAVY(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on `windows`
        return self.windows

    @abstractmethod
    def pairs(
        self, captions: Sequence[Caption], duration_s: float, rng: np.random.Generator
    ) -> Iterable[Pair]:
        """Yields the clips of a video.

        captions: the result of `units`, sorted by time, at least one. duration_s: of the video; MAX_S if it is unknown or
        longer.
        """

    def units(self, captions: Sequence[Caption]) -> Sequence[Caption]:
        """Returns the texts to pair with video: the captions, or e.g. sentences made from them; at least one."""
        return captions

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, _rule(self), **READS)
        return schema_with_windows(PAIRED, inp, self.windows, _rule(self))

    def preflight(self) -> list[str]:
        strange = [s for s in self.sources if s not in SOURCES]
        if strange or not self.sources:
            return [f"sources: wanted one or more of {', '.join(SOURCES)}; got {list(self.sources)}"]
        return windows_problems(self.windows)

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield CutClips(self._find, PAIRED, self.windows)

    def _find(self, videos: pa.Table) -> Found:
        rows: list[dict[str, Any]] = []
        rejects, counts = [], Counter[str]()
        for video in videos.select(list(READS)).to_pylist():
            made = self._clips(video, counts)
            if isinstance(made, Reject):
                rejects.append(made)
            else:
                rows.extend(made)
        return Found(rows, rejects, counts)

    def _clips(self, video: Mapping[str, Any], counts: Counter[str]) -> list[dict[str, Any]] | Reject:
        track = pick_track(video["cues"] or (), self.sources, self.lang)
        if not track:
            return _reject(
                video,
                "no_cues",
                f"the video has {len(video['cues'] or ())} cue(s), none with source {self._asked()}",
            )
        left_out = Counter[str]()
        duration_s = min(video["duration_s"] or MAX_S, MAX_S)
        captions = clean(track, duration_s, left_out)
        counts.update({f"cues:{why}": num for why, num in left_out.items()})
        if not captions:
            dropped = ", ".join(f"{why} x {num}" for why, num in sorted(left_out.items()))
            detail = f"all {len(track)} cue(s) are left out: {dropped}"
            return _reject(video, "no_usable_cue", detail)
        units = self.units(captions)
        rng = np.random.default_rng(seed_of(self.seed, video["id"]))
        pairs = [p for p in self.pairs(units, duration_s, rng) if p.end_s > p.start_s]
        if not pairs:
            return _reject(
                video, "no_clip", f"none of the clips around its {len(units)} caption(s) is longer than 0 s"
            )
        source = "human" if track[0]["source"] == "manual" else "asr"
        return list(_rows(_rule(self), video, source, units, pairs))

    def _asked(self) -> str:
        return "|".join(self.sources) + (f" and language {self.lang}" if self.lang else "")


def _reject(video: Mapping[str, Any], why: str, detail: str) -> Reject:
    return Reject(video["id"], "filtered", why, detail)


def _rule(stage: Pairing) -> str:
    return type(stage).__module__.removeprefix("vlpipe.stages.")


def _rows(
    rule: str, video: Mapping[str, Any], source: str, units: Sequence[Caption], pairs: Sequence[Pair]
) -> Iterator[dict[str, Any]]:
    ids = RowIds(f"{rule}:{video['id']}")
    ends_s = np.maximum.accumulate([unit.end_s for unit in units]).tolist()  # running max of end times
    for pair in pairs:
        spoken = " ".join(unit.text for unit in units[pair.first : pair.last + 1])
        text_start_s = units[pair.first].start_s
        text_end_s = span_end(units, pair.first, pair.last)
        after = units[pair.last + 1].start_s - text_end_s if pair.last + 1 < len(units) else None
        yield {
            **{f.name: video[f.name] for f in FILE_FIELDS},
            "id": ids.next(f"{pair.start_s:.6f}-{pair.end_s:.6f}", spoken),
            "parent": video["id"],
            "video_id": video["video_id"],
            "start_s": pair.start_s,
            "end_s": pair.end_s,
            "texts": [text(spoken, source)],
            "candidates": [
                {"start_s": units[i].start_s, "end_s": units[i].end_s, "text": units[i].text}
                for i in pair.candidates
            ],
            "text_start_s": text_start_s,
            "text_end_s": text_end_s,
            "gap_before_s": text_start_s - ends_s[pair.first - 1] if pair.first else None,
            "gap_after_s": after,
        }


def span_end(captions: Sequence[Caption], first: int, last: int) -> float:
    """Returns the latest end of captions `first` to `last`, in seconds; captions may be nested, so `last` may end first."""
    return max(caption.end_s for caption in captions[first : last + 1])


def span_s(captions: Sequence[Caption], first: int, last: int) -> float:
    return span_end(captions, first, last) - captions[first].start_s


def centres(num: int, num_clips: int | None, rng: np.random.Generator) -> list[int]:
    """Returns the index, below `num`, of each clip's central caption.

    num_clips: number of indices, drawn with replacement; None: each index once, in order.
    """
    return list(range(num)) if num_clips is None else rng.integers(num, size=num_clips).tolist()
