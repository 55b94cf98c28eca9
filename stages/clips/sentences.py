"""Splits captions into sentences by rules: at full stops if the text has punctuation, else at pauses and by length.

VideoBERT (https://arxiv.org/abs/1904.01766) and TAN (https://arxiv.org/abs/2204.02968) add punctuation to ASR with a
network. The thresholds, and when to trust punctuation, are TAN's (https://github.com/TengdaHan/TemporalAlignNet).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vlpipe.stages.clips.captions import Caption, Word

FULL_STOPS = (".", "!", "?", "…")
STOPS = (*FULL_STOPS, ",", ";", ":")
CLOSERS = "\"'”)]»"  # may follow a full stop
PUNCTUATED = 0.5  # if at least this fraction of captions has punctuation, it is trusted (TAN)


def sentences(captions: Sequence[Caption], max_gap_s: float, max_words: int) -> list[Caption]:
    """Returns one caption per sentence, in order, with its words.

    A sentence ends at a full stop (also that of an abbreviation) or, from its `max_words`-th word on, at any punctuation. If
    fewer than half of the captions contain punctuation, it also ends at a pause longer than `max_gap_s`, and a sentence
    longer than max_words is split in two at its longest pause (ties: the most central one), recursively.
    """
    words = [word for caption in captions for word in timed_words(caption)]
    num_with = sum(any(stop in caption.text for stop in STOPS) for caption in captions)
    if num_with >= PUNCTUATED * len(captions):
        parts: Iterable[list[Word]] = _at_stops(words, max_words)
    else:
        runs = (run for part in _at_stops(words, max_words) for run in _at_gaps(part, max_gap_s))
        parts = (short for run in runs for short in _halved(run, max_words))
    return [_sentence(part) for part in parts]


def timed_words(caption: Caption) -> Sequence[Word]:
    """Returns the words with times; if the source has none, they divide the caption's time evenly (as in TAN)."""
    if caption.words:
        return caption.words
    parts = caption.text.split()
    step_s = (caption.end_s - caption.start_s) / len(parts)
    edges_s = [caption.start_s + step_s * k for k in range(len(parts))] + [caption.end_s]
    return [Word(edges_s[k], edges_s[k + 1], part) for k, part in enumerate(parts)]


def _sentence(words: Sequence[Word]) -> Caption:
    end_s = max(word.end_s for word in words)
    start_s = min(word.start_s for word in words)
    return Caption(start_s, end_s, " ".join(word.word for word in words), tuple(words))


def _at_stops(words: Sequence[Word], max_words: int) -> Iterator[list[Word]]:
    part: list[Word] = []
    for word in words:
        part.append(word)
        bare = word.word.rstrip(CLOSERS)
        if bare.endswith(FULL_STOPS) or (len(part) >= max_words and bare.endswith(STOPS)):
            yield part
            part = []
    if part:
        yield part


def _at_gaps(words: Sequence[Word], max_gap_s: float) -> Iterator[list[Word]]:
    start = 0
    for k in range(1, len(words)):
        if words[k].start_s - words[k - 1].end_s > max_gap_s:
            yield list(words[start:k])
            start = k
    yield list(words[start:])


def _halved(words: list[Word], max_words: int) -> Iterator[list[Word]]:
    if len(words) <= max_words:
        yield words
        return

    def pause(k: int) -> tuple[float, float]:  # rounded: sums of equal parts differ in their last bits
        return round(words[k].start_s - words[k - 1].end_s, 6), -abs(k - len(words) / 2)

    cut = max(range(1, len(words)), key=pause)
    yield from _halved(words[:cut], max_words)
    yield from _halved(words[cut:], max_words)
