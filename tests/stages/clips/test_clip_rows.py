from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.captions import Caption, clean, pick_track
from vlpipe.stages.clips.howto100m import HowTo100M
from vlpipe.stages.clips.milnce import MilNce
from vlpipe.stages.clips.pairing import PAIRED, Pairing
from vlpipe.stages.clips.univl import UniVL
from vlpipe.stages.clips.videobert import VideoBert
from vlpipe.stages.clips.videoclip import VideoClip
from vlpipe.stages.video.rows import CLIPS

Videos = Callable[..., pa.Table]
RULES = (HowTo100M(), UniVL(), MilNce(), VideoClip(), VideoBert())
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)


def test_what_a_clip_row_says(videos: Videos) -> None:
    table = videos([[(8, 12, "cut the onion"), (14, 20, "add salt"), (19, 30, "stir it")]], 40.0)
    out = run_map(MilNce(num_candidates=2), table)
    assert out.table.schema == PAIRED
    assert out.table.schema.names[: len(CLIPS)] == CLIPS.names
    row = out.table.to_pylist()[1]
    assert (row["parent"], row["video"], row["video_id"]) == ("video0", "0.mp4", "0")
    assert (row["start_s"], row["end_s"]) == (14, 20)
    assert [(t["text"], t["source"], t["kept"]) for t in row["texts"]] == [("add salt", "asr", None)]
    assert [c["text"] for c in row["candidates"]] == [
        "add salt",
        "cut the onion",
    ]  # 8-20 is shorter than 14-30
    assert (row["text_start_s"], row["text_end_s"]) == (14, 20)
    assert (row["gap_before_s"], row["gap_after_s"]) == (2, -1)
    ends = [(r["gap_before_s"], r["gap_after_s"]) for r in out.table.to_pylist()]
    assert (ends[0][0], ends[2][1]) == (None, None)


def test_text_grows_in_order_and_humans_are_named(videos: Videos, make_cue: Any) -> None:
    times = ((0, 2, "one"), (2, 4, "two"), (4, 6, "three"))
    table = videos([[make_cue(*t, source="manual") for t in times]])
    texts = [t for row in run_map(HowTo100M(), table).table["texts"].to_pylist() for t in row]
    assert [t["text"] for t in texts] == [
        "one two three"
    ] * 3  # the reference said "two three one", "three two one"
    assert {t["source"] for t in texts} == {"human"}


@each_rule
def test_every_video_is_a_parent_or_a_reject(rule: Pairing, videos: Videos, make_cue: Any) -> None:
    odd = [
        None,
        [],
        [(1, 2, " \n ")],
        [(1, 2, None)],
        [(math.nan, 2, "x"), (1, math.inf, "x"), (None, 3, "x"), (-5, -2, "x")],
        [(50, 60, "after the end")],
        [make_cue(1, 2, "bonjour", source="manual", lang="fr")],
        [(3, 3, "no time")],
        [(7, 4, "backwards")],
        [(1, 90, "ends after the video")],
        [(9.9, 9.9, "at the end")],
    ]
    out = run_map(rule, videos(odd, 10.0))
    parents, rejects = Counter(out.table["parent"].to_pylist()), {r.id: r for r in out.rejects}
    assert set(parents) | set(rejects) == {f"video{n}" for n in range(len(odd))}
    assert not set(parents) & set(rejects)
    why = {id_: r.why for id_, r in rejects.items()}
    assert all(r.kind == "filtered" for r in out.rejects)
    unusable = {f"video{n}": "no_usable_cue" for n in (2, 3, 4, 5)}
    assert {k: why[k] for k in why if why[k] != "no_clip"} == {
        "video0": "no_cues",
        "video1": "no_cues",
        **unusable,
    }
    assert rejects["video4"].detail == "all 4 cue(s) are left out: bad_times x 4"
    for row in out.table.to_pylist():
        assert 0 <= row["start_s"] < row["end_s"] <= 10
    if isinstance(rule, (HowTo100M, VideoBert)):
        no_time = [
            Reject(
                f"video{n}",
                "filtered",
                "no_clip",
                "none of the clips around its 1 caption(s) is longer than 0 s",
            )
            for n in (7, 10)
        ]
        assert [r for r in out.rejects if r.why == "no_clip"] == no_time
    backwards = next(r for r in out.table.to_pylist() if r["parent"] == "video8")
    assert (backwards["text_start_s"], backwards["text_end_s"]) == (4, 7)


def test_counts_say_what_was_left_out(videos: Videos) -> None:
    table = videos([[(1, 2, "a"), (1, 2, ""), (11, 12, "b")], [(1, 2, ""), (3, 8, "c")]], 10.0)
    assert run_map(MilNce(), table).counts == {"cues:no_text": 2, "cues:past_end": 1}


def test_one_track_is_taken(make_cue: Any, videos: Videos) -> None:
    auto = [make_cue(k, k + 1, f"auto{k}") for k in range(3)]
    french = [make_cue(k, k + 1, f"mot{k}", source="manual", lang="fr") for k in range(2)]
    english = [make_cue(5, 6, "word", source="manual", lang="en-GB")]
    cues = [*auto, *french, *english]

    def texts(**asked: Any) -> list[str]:
        rows = run_map(MilNce(**asked), videos([cues])).table["texts"].to_pylist()
        return [t["text"] for row in rows for t in row]

    assert texts() == ["mot0", "mot1"]
    assert texts(lang="en") == ["word"]
    assert texts(sources=("auto",)) == ["auto0", "auto1", "auto2"]
    assert texts(sources=("auto", "manual"), lang="fr") == ["mot0", "mot1"]
    assert pick_track(list(reversed(cues)), ("manual",), "") == list(reversed(french))
    filipino = [{**one, "lang": "fil"} for one in french] * 2
    finnish = [{**french[0], "lang": "fi_FI"}]
    assert pick_track(filipino + finnish, ("manual",), "fi") == finnish
    assert pick_track(filipino, ("manual",), "FIL") == filipino
    rejected = run_map(MilNce(sources=("unknown",), lang="de"), videos([cues])).rejects
    assert rejected[0].detail == "the video has 6 cue(s), none with source unknown and language de"


def test_word_times_are_kept_within_the_caption_or_not_at_all(make_cue: Any) -> None:
    def words(*times: tuple[Any, Any, str]) -> list[dict[str, Any]]:
        return [{"start_s": s, "end_s": e, "word": w} for s, e, w in times]

    def cleaned(some: list[dict[str, Any]], text: str = "add salt") -> Caption:
        return clean([make_cue(2, 4, text, words=some)], math.inf, Counter())[0]

    found = cleaned(words((1.5, 3, "add"), (3, 9, " salt")))
    assert [(w.start_s, w.end_s, w.word) for w in found.words] == [(2, 3, "add"), (3, 4, "salt")]
    assert cleaned(words((2, 3, "add"))).words == ()  # not the words of the text
    assert cleaned(words((2, 3, "add"), (None, 4, "salt"))).words == ()


def test_unknown_duration_and_zero_are_the_same(videos: Videos) -> None:
    cues = [[(1, 2, "a"), (100, 104, "b")]]
    assert run_map(MilNce(), videos(cues)).table == run_map(MilNce(), videos(cues, 0.0)).table


def test_thousands_of_cues_at_one_time_stay_small(videos: Videos) -> None:
    out = run_map(HowTo100M(), videos([[(0, 0, "x")] * 3000 + [(1, 2, "y")]]))
    assert out.table.num_rows < 3001
    assert max(len(t[0]["text"]) for t in out.table["texts"].to_pylist()) <= 2 * 256


def test_drawn_twice_is_two_rows(videos: Videos) -> None:
    out = run_map(HowTo100M(num_clips=9), videos([[(0, 6, "one"), (6, 12, "two")]]))
    assert out.table.num_rows == 9
    assert len(set(out.table["id"].to_pylist())) == 9


def test_two_rules_give_one_clip_two_ids(videos: Videos) -> None:
    table = videos([[(0.0, 6.0, "one")]])
    ids = {run_map(rule, table).table["id"][0].as_py() for rule in (HowTo100M(), MilNce(), VideoBert())}
    assert len(ids) == 3


def test_mistakes_are_told(videos: Videos) -> None:
    assert MilNce(sources=("asr",)).preflight() == [
        "sources: wanted one or more of manual, unknown, auto; got ['asr']"
    ]
    assert VideoClip(min_words=9, max_words=8).preflight() == [
        "min_words must be at most max_words; got min_words: 9, max_words: 8"
    ]
    with pytest.raises(
        SchemaError, match=r"clips\.milnce reads column 'cues', which its input does not have"
    ):
        MilNce().schema(videos([[]]).drop_columns("cues").schema)


def test_howto100m_counts_words_as_its_code_does() -> None:
    caps = [Caption(0, 9, "- -- -"), Caption(9, 18, "don't stop")]
    pairs = list(HowTo100M(min_words=1).pairs(caps, math.inf, np.random.default_rng(0)))
    assert [(p.first, p.last) for p in pairs] == [(0, 1), (1, 1)]
