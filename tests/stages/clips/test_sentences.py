from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vlpipe.stages.clips.captions import Caption, Word
from vlpipe.stages.clips.sentences import sentences, timed_words


def texts(captions: Sequence[Caption], max_gap_s: float = 1.0, max_words: int = 20) -> list[str]:
    return [s.text for s in sentences(captions, max_gap_s, max_words)]


def test_full_stops_end_sentences_across_captions() -> None:
    caps = [
        Caption(0, 2, "First, cut it."),
        Caption(2, 4, 'Then he said "stop!" and'),
        Caption(9, 11, "it cost 3.50, ok?"),
    ]
    assert texts(caps) == ["First, cut it.", 'Then he said "stop!"', "and it cost 3.50, ok?"]
    found = sentences(caps, 1.0, 20)
    assert [(s.start_s, s.end_s) for s in found] == [(0, 2), (2, 3.6), (3.6, 11)]  # word 4 of 5 ends at 3.6


def test_a_comma_ends_a_long_one() -> None:
    caps = [Caption(0, 30, "a b, c d e, f g, h i.")]
    assert texts(caps, max_words=4) == ["a b, c d e,", "f g, h i."]


def test_pauses_count_only_where_there_is_no_punctuation() -> None:
    plain = [Caption(0, 2, "cut the onion"), Caption(2.5, 4, "very fine"), Caption(5.5, 7, "now add salt")]
    assert texts(plain) == ["cut the onion very fine", "now add salt"]
    punctuated = [Caption(c.start_s, c.end_s, c.text + ",") for c in plain]
    assert texts(punctuated) == ["cut the onion, very fine, now add salt,"]


def test_what_is_too_long_is_halved_at_its_longest_pause() -> None:
    words = [Word(k + (0.5 if k > 2 else 0), k + 0.9 + (0.5 if k > 2 else 0), f"w{k}") for k in range(8)]
    caps = [Caption(0, 9, " ".join(w.word for w in words), tuple(words))]
    assert texts(caps, max_words=5) == ["w0 w1 w2", "w3 w4 w5 w6 w7"]
    even = [Caption(0, 8, "a b c d e f g h")]  # no pause at all: in the middle
    assert texts(even, max_words=4) == ["a b c d", "e f g h"]
    assert texts(even, max_words=2) == ["a b", "c d", "e f", "g h"]


@pytest.mark.parametrize("seed", range(20))
def test_no_word_is_lost_moved_or_too_much(seed: int) -> None:
    rng = np.random.default_rng(seed)
    at, caps = 0.0, []
    for _ in range(rng.integers(1, 30)):
        at += float(rng.choice([0.0, 0.3, 2.0]))
        length = float(rng.uniform(0, 4))
        some = " ".join(
            rng.choice(["add", "salt", "stir.", "well,"], rng.integers(1, 9), p=[0.5, 0.4, 0.05, 0.05])
        )
        caps.append(Caption(at, at + length, some))
        at += length
    found = sentences(caps, 1.0, 10)
    words = [w for c in caps for w in timed_words(c)]
    assert [w for s in found for w in s.words] == words
    assert [s.text for s in found] == [" ".join(w.word for w in s.words) for s in found]
    for s in found:
        assert (s.start_s, s.end_s) == (min(w.start_s for w in s.words), max(w.end_s for w in s.words))
        assert not any(w.word.endswith(".") for w in s.words[:-1])
    if sum("," in c.text or "." in c.text for c in caps) < len(caps) / 2:
        assert all(len(s.words) <= 10 for s in found)
        gaps = [b.start_s - a.end_s for s in found for a, b in zip(s.words, s.words[1:], strict=False)]
        assert max(gaps, default=0) <= 1.0 + 1e-9


def test_words_share_the_time_of_a_caption_evenly() -> None:
    found = timed_words(Caption(1, 4, "a b c"))
    assert [(w.start_s, w.end_s, w.word) for w in found] == [(1, 2, "a"), (2, 3, "b"), (3, 4, "c")]


def test_a_real_rolling_file(tmp_path: Path) -> None:
    """Word times of a real YouTube caption file: sentences of 1 to 20 words that follow its pauses."""
    import os

    folder = Path(os.environ.get("VLPIPE_DATA") or Path(__file__).parents[4] / "shared" / "data")
    files = sorted((folder / "subtitles").glob("**/*merlot*/*.vtt")) if folder.is_dir() else []
    if not files:
        pytest.skip(f"there is no real subtitle file at {folder} (VLPIPE_DATA)")
    timed = re.findall(r"<(\d+):(\d+):([\d.]+)><c> ?([^<]+)</c>", files[0].read_text(encoding="utf-8"))
    starts = [int(h) * 3600 + int(m) * 60 + float(s) for h, m, s, _ in timed]
    words = [
        Word(start, min(after, start + 0.5), one)
        for (*_, word), start, after in zip(timed, starts, [*starts[1:], math.inf], strict=True)
        for one in word.split()
    ]
    caption = Caption(words[0].start_s, words[-1].end_s, " ".join(w.word for w in words), tuple(words))
    found = sentences([caption], 1.0, 20)
    assert [w for s in found for w in s.words] == words
    assert all(1 <= len(s.words) <= 20 for s in found)
    assert 30 < len(found) < 150
