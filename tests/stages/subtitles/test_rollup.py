"""Roll-up captions of known words come back as exactly these words."""

from __future__ import annotations

import random
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `rolling`

from rolling import lists, speak, srt, truth, vtt

from vlpipe.stages.subtitles.cue import RawCue, Shown
from vlpipe.stages.subtitles.read import read_subtitles
from vlpipe.stages.subtitles.rollup import is_rolling, merge, overlap
from vlpipe.stages.subtitles.track import Track, track

DISTINCT = [f"w{n}" for n in range(100_000)]


def words(found: Track) -> list[str]:
    return [word for cue in found.cues for word in cue.text.split()]


def shown(*cues: tuple[float, float, str]) -> list[Shown]:
    return [Shown(start, end, tuple(text.split())) for start, end, text in cues]


def texts(cues: list[Shown]) -> list[str]:
    return [" ".join(one.words) for one in cues]


@pytest.mark.parametrize("seed", range(30))
def test_with_word_times(seed: int) -> None:
    lines = speak(seed)
    found = read_subtitles(vtt(lines), "a.en.vtt")
    assert words(found) == truth(lines)
    timed = [w for cue in found.cues for w in cue.words or ()]
    starts = {(w.word, w.start_s) for w in timed}
    several = [
        line for line in lines if len(line.words) > 1
    ]  # YouTube gives no time to a word alone in its line
    assert {(said.word, said.start_s) for line in several for said in line.words} <= starts
    assert all(
        cue.start_s <= w.start_s <= w.end_s <= cue.end_s for cue in found.cues for w in cue.words or ()
    )
    assert {(cue.source, cue.lang) for cue in found.cues} == {("auto", "en")}
    assert all(a.end_s <= b.start_s for a, b in pairwise(found.cues))


@pytest.mark.parametrize("seed", range(30))
def test_without_word_times(seed: int) -> None:
    lines = speak(seed)
    assert words(read_subtitles(srt(lines), "a.srt")) == truth(lines)
    raw = lists(lines)
    joined = RawCue()
    for start, end, text in zip(raw["start"], raw["end"], raw["text"], strict=True):
        joined.add(start, end, text)  # type: ignore[arg-type]
    assert words(track(joined, "a")) == truth(lines)


@pytest.mark.parametrize("seed", range(10))
def test_without_settling(seed: int) -> None:
    lines = speak(seed, vocabulary=DISTINCT)
    assert words(read_subtitles(srt(lines, settle=False), "a.srt")) == truth(lines)


@pytest.mark.parametrize("seed", range(10))
def test_what_does_not_roll_stays_as_it_is(seed: int) -> None:
    """The end of a cue is the beginning of the next by chance: nothing was carried over."""
    every = [
        f"{' '.join(s.word for s in line.words)} {n}"
        for n, line in enumerate(speak(seed))
        if len(line.words) > 1
    ]
    plain = shown(*[(n, n + 1, text) for n, text in enumerate(every)])
    assert not is_rolling(plain)
    found = RawCue(shown=plain)
    assert [cue.text for cue in track(found, "a").cues] == every


def test_the_examples_that_character_rules_damage() -> None:
    assert texts(merge(shown((0, 4, "I will take the cat"), (3, 6, "the cat sat down")))) == [
        "I will take the cat",
        "sat down",
    ]
    apart = shown((0, 4, "add some salt"), (3, 6, "then stir it"))
    assert texts(merge(apart)) == ["add some salt", "then stir it"]
    assert not is_rolling(apart)


def test_one_word_that_ends_one_cue_and_begins_the_next_proves_nothing() -> None:
    assert not is_rolling(shown((0, 1, "it is very"), (1, 2, "very good")))
    assert is_rolling(shown((0, 1.5, "it is very"), (1, 2, "very good")))  # both were on the screen
    assert is_rolling(shown((0, 1, "so"), (1, 2, "so good")))


def test_a_pause_clears_the_screen() -> None:
    assert texts(merge(shown((0, 1, "one two"), (1.5, 2, "one two three")))) == ["one two", "three"]
    assert texts(merge(shown((0, 1, "one two"), (1.501, 2, "one two three")))) == ["one two", "one two three"]


def test_overlapping_times_are_cut_where_the_next_begins() -> None:
    merged = merge(shown((0, 4, "a b"), (3, 6, "a b c d"), (3, 7, "e")))
    assert [(one.start_s, one.end_s) for one in merged] == [(0, 3), (3, 6), (3, 7)]


def test_the_same_at_any_time() -> None:
    lines = speak(3)
    early = read_subtitles(srt(lines), "a.srt").cues
    assert early == read_subtitles(srt(lines), "b.srt").cues
    again = shown(*[(cue.start_s, cue.end_s, cue.text) for cue in early])
    assert not is_rolling(again)


@pytest.mark.parametrize("seed", range(200))
def test_overlap_is_the_longest(seed: int) -> None:
    rng = random.Random(seed)
    before, now = ([rng.choice("ab") for _ in range(rng.randint(0, 9))] for _ in "12")
    slow = max(n for n in range(min(len(before), len(now)) + 1) if before[len(before) - n :] == now[:n])
    assert overlap(before, now) == slow


def test_overlap_takes_linear_time() -> None:
    many = ["a"] * 300_000
    begin = time.process_time()
    assert overlap(many, [*many, "b"]) == 300_000
    assert time.process_time() - begin < 5
