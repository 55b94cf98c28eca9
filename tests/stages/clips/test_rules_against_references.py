"""Each rule against a slow, literal form of the published code (with what our docstrings say is mended)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.captions import Caption
from vlpipe.stages.clips.howto100m import HowTo100M
from vlpipe.stages.clips.milnce import MilNce
from vlpipe.stages.clips.pairing import Pair, Pairing
from vlpipe.stages.clips.univl import UniVL
from vlpipe.stages.clips.videobert import VideoBert
from vlpipe.stages.clips.videoclip import VideoClip

RULES = (
    HowTo100M(),
    HowTo100M(min_time_s=0, min_words=6),
    UniVL(),
    MilNce(),
    MilNce(clip_s=3.2),
    VideoClip(),
    VideoBert(),
)


def some_captions(rng: np.random.Generator, num: int) -> list[Caption]:
    """Sorted, with gaps, overlaps, nested and empty ones; a video of 60 s or so."""
    starts = np.sort(rng.uniform(0, 60, num))
    lengths = rng.choice([0.0, 0.5, 2.0, 4.0, 9.0], num) * rng.uniform(0.5, 1.5, num)
    words = [" ".join(rng.choice(["add", "the", "salt", "don't"], rng.integers(1, 7))) for _ in range(num)]
    return [
        Caption(float(start), float(start + length), text)
        for start, length, text in zip(starts, lengths, words, strict=True)
    ]


def lists(num: int) -> list[list[Caption]]:
    rng = np.random.default_rng(7)
    return [some_captions(rng, int(rng.integers(1, 13))) for _ in range(num)]


def end_of(captions: Sequence[Caption], first: int, last: int) -> float:
    return max(c.end_s for c in captions[first : last + 1])


def reference_grow(caps: Sequence[Caption], i: int, min_time: float, min_words: int) -> tuple[int, int]:
    s = e = i
    while True:
        words = sum(len(c.text.split()) for c in caps[s : e + 1])
        if words >= min_words and end_of(caps, s, e) - caps[s].start_s >= min_time:
            return s, e
        if s == 0 and e == len(caps) - 1:
            return s, e
        if s == 0:
            e += 1
        elif e == len(caps) - 1:
            s -= 1
        elif min_time > 0:
            d1 = end_of(caps, s, e + 1) - caps[s].start_s
            d2 = end_of(caps, s - 1, e) - caps[s - 1].start_s
            s, e = (s - 1, e) if d2 <= d1 else (s, e + 1)
        else:
            to_right = len(caps[e + 1].text.split()) <= len(caps[s - 1].text.split())
            s, e = (s - 1, e) if to_right else (s, e + 1)


def around_all(rule: Pairing, captions: Sequence[Caption], duration_s: float = math.inf) -> list[Pair]:
    return list(rule.pairs(captions, duration_s, np.random.default_rng(0)))


@pytest.mark.parametrize(("min_time", "min_words"), [(5.0, 0), (10.0, 8), (0.0, 9)])
def test_howto100m_grows_as_the_reference_does(min_time: float, min_words: int) -> None:
    for caps in lists(150):
        for i, pair in enumerate(around_all(HowTo100M(min_time_s=min_time, min_words=min_words), caps)):
            s, e = reference_grow(caps, i, min_time, min_words)
            assert pair == Pair(caps[s].start_s, end_of(caps, s, e), s, e)


def reference_nearest(caps: Sequence[Caption], i: int, num: int) -> set[int]:
    start = end = i
    n = 1
    while n < num:
        if start == 0:
            return set(range(min(num, len(caps))))
        if end == len(caps) - 1:
            return set(range(max(0, start - (num - n)), end + 1))
        left = end_of(caps, start - 1, end) - caps[start - 1].start_s
        right = end_of(caps, start, end + 1) - caps[start].start_s
        start, end = (start - 1, end) if left < right else (start, end + 1)
        n += 1
    return set(range(start, end + 1))


@pytest.mark.parametrize("num", [1, 4, 5])
def test_milnce_takes_the_candidates_the_reference_takes(num: int) -> None:
    for caps in lists(150):
        for i, pair in enumerate(around_all(MilNce(num_candidates=num), caps)):
            assert pair.candidates[0] == i
            assert len(set(pair.candidates)) == len(pair.candidates) == min(num, len(caps))
            assert set(pair.candidates) == reference_nearest(caps, i, num)


def test_milnce_widens_evenly_and_stays_within_the_video() -> None:
    for caps in lists(150):
        long = 64.0
        caps = [c for c in caps if c.end_s <= long] or [Caption(0.0, 1.0, "x")]
        for i, pair in enumerate(around_all(MilNce(), caps, long)):
            start, end = caps[i].start_s, caps[i].end_s
            if end - start < 5:  # as in the reference, but not beyond the end
                start = min(max(0, start - (5 - (end - start)) / 2), long - 5)
                end = start + 5
            assert (pair.start_s, pair.end_s) == pytest.approx((start, end))


def test_milnce_draws_a_part_of_the_clip() -> None:
    caps = [Caption(10.0, 14.0, "a"), Caption(30.0, 42.0, "b")]
    starts = set()
    for seed in range(50):
        pairs = list(MilNce(clip_s=3.2).pairs(caps, math.inf, np.random.default_rng(seed)))
        for pair, (low, high) in zip(pairs, [(9.5, 14.5), (30.0, 42.0)], strict=True):
            assert pair.end_s - pair.start_s == pytest.approx(3.2)
            assert low <= pair.start_s
            assert pair.end_s <= high + 1e-9
        starts.add(pairs[1].start_s)
    assert len(starts) == 50
    assert max(starts) - min(starts) > 7  # of 8.8 possible


def reference_seconds(caps: Sequence[Caption], s: int, e: int, num: int) -> list[int]:
    """Rows of a feature file with one per second."""
    features = list(range(num))
    rows = features[int(caps[s].start_s) : int(end_of(caps, s, e)) + 1]
    left = True
    while not rows and not (s == 0 and e == len(caps) - 1):
        if left:
            s = max(0, s - 1)
        else:
            e = min(len(caps) - 1, e + 1)
        left = not left
        rows = features[int(caps[s].start_s) : int(end_of(caps, s, e)) + 1]
    return rows


@pytest.mark.parametrize("duration_s", [70.5, 31.7, 5.2, 0.9])
def test_univl_takes_the_seconds_the_reference_takes(duration_s: float) -> None:
    for caps in lists(60):
        caps = [c for c in caps if c.start_s < duration_s] or [Caption(0.0, 0.5, "x")]
        caps = [Caption(c.start_s, min(c.end_s, duration_s), c.text) for c in caps]
        for i, pair in enumerate(around_all(UniVL(max_seconds=4), caps, duration_s)):
            s, e = reference_grow(caps, i, 5.0, 0)
            rows = reference_seconds(caps, s, e, int(duration_s))[:4]
            assert (pair.first, pair.last) == (s, e)
            assert list(range(int(pair.start_s), int(pair.end_s))) == rows


def test_univl_draws_all_before_it_draws_one_again() -> None:
    caps = [Caption(10.0 * k, 10.0 * k + 6, str(k)) for k in range(5)]
    for seed in range(20):
        firsts = [p.first for p in UniVL(num_clips=3).pairs(caps, math.inf, np.random.default_rng(seed))]
        assert len(set(firsts)) == 3
        firsts = [p.first for p in UniVL(num_clips=8).pairs(caps, math.inf, np.random.default_rng(seed))]
        assert len(firsts) == 8
        assert set(firsts[:5]) == set(range(5))


def test_videoclip_overlaps_its_text_and_keeps_its_bounds() -> None:
    duration_s = 75.3
    lengths, words = [], []
    for number, caps in enumerate(lists(80)):
        caps = [Caption(c.start_s, min(c.end_s, duration_s), c.text) for c in caps]
        rule = VideoClip(num_clips=20)
        for pair in rule.pairs(caps, duration_s, np.random.default_rng(number)):
            assert 0 <= pair.start_s < pair.end_s <= duration_s
            text_end_s = end_of(caps, pair.first, pair.last)
            assert pair.start_s <= max(text_end_s, caps[pair.first].start_s)
            assert pair.end_s > caps[pair.first].start_s
            assert pair.start_s.is_integer()
            if pair.end_s < duration_s and pair.start_s > 0:
                lengths.append(pair.end_s - pair.start_s)
            num = sum(len(c.text.split()) for c in caps[pair.first : pair.last + 1])
            if pair.first > 0 and pair.last < len(caps) - 1:
                words.append(num)
    assert min(lengths) == 3
    assert max(lengths) == 32
    assert min(words) >= 8  # it stopped growing before either end: it had enough
    assert max(words) <= 61 + 5  # the last caption added has at most 6 words


def test_videoclip_grows_evenly_to_both_sides() -> None:
    caps = [Caption(1000.0, 1001.0, "a b c d e f g h")]
    rule = VideoClip(num_clips=2000, min_seconds=11, max_seconds=11)
    starts = [p.start_s for p in rule.pairs(caps, 2000.0, np.random.default_rng(0))]
    assert np.mean(starts) == pytest.approx(
        1000 - 5, abs=0.15
    )  # 10 steps, each left with 1/2: sd of the mean .035
    assert np.var(starts) == pytest.approx(2.5, rel=0.15)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_order_and_batches_do_not_matter(rule: Pairing, videos: Callable[..., pa.Table]) -> None:
    cues = [[(c.start_s, c.end_s, c.text) for c in caps] for caps in lists(20)]
    table = videos(cues, 75.0)
    whole = run_map(rule, table).table.to_pylist()
    parts: list[dict[str, Any]] = []
    for start in range(0, 20, 3):
        parts += run_map(rule, table.slice(start, 3)).table.to_pylist()
    assert parts == whole
    order = np.random.default_rng(1).permutation(20)
    mixed = run_map(rule, table.take(order)).table.to_pylist()
    by_id = {row["id"]: row for row in whole}
    assert len(by_id) == len(whole)
    assert {row["id"]: row for row in mixed} == by_id
    backwards = videos([list(reversed(some)) for some in cues], 75.0)  # unsorted cues are sorted
    assert run_map(rule, backwards).table.to_pylist() == whole


def test_a_seed_is_another_draw(videos: Callable[..., pa.Table]) -> None:
    table = videos([[(c.start_s, c.end_s, c.text) for c in lists(3)[2]]], 75.0)
    one, again, other = (run_map(VideoClip(seed=s), table).table.to_pylist() for s in (0, 0, 1))
    assert one == again != other
