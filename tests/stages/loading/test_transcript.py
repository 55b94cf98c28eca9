"""What is said during a clip as token ids: nothing, or a column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from vlpipe.models.tokenization.word_list import ROLES, pipeline
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.loading.makers.base import EXTRA
from vlpipe.stages.loading.makers.downstream.choices import CHOICES
from vlpipe.stages.loading.makers.downstream.said_choices import SaidChoices
from vlpipe.stages.loading.makers.videos.transcript import NoTranscript, Transcript
from vlpipe.stages.loading.rows import Row

RNG = np.random.default_rng(0)


def test_a_transcript_is_cut_and_may_be_missing() -> None:
    tokenizer = Tokenizer(pipeline(["a", "b", "c"], lower=True), ROLES)
    start, end = tokenizer.start, tokenizer.end
    a, b, c = (tokenizer.ids(word)[0] for word in "abc")

    def made(maker: NoTranscript, said: str | None) -> list[int]:
        row = Row("r", 0, ["c c"], {"transcript": said})
        found: list[int] = maker(row, "c c", RNG)["data"].tolist()
        return found

    assert made(NoTranscript(tokenizer=tokenizer), "a b") == [start, end]
    read = Transcript(tokenizer=tokenizer, max_length=4)
    assert made(read, "a b") == [start, a, b, end]
    assert made(read, None) == [start, end]
    assert made(read, "a b c a")[:4] == [start, a, b, c][: len(made(read, "a b c a"))]
    assert not NoTranscript.NEEDS_TEXT
    assert Transcript.COLUMNS == ("transcript",)
    both = read.collate([read(Row("r", 0, [], {"transcript": one}), "", RNG) for one in ("a b", None)])
    assert both.mask is not None
    assert both.mask.sum(1).tolist() == [4, 2]


def test_choices_with_what_is_said_before_them() -> None:
    tokenizer = Tokenizer(pipeline(["a", "b", "c", "d"], lower=True), ROLES)
    start, end = tokenizer.start, tokenizer.end
    a, b, c, d = (tokenizer.ids(word)[0] for word in "abcd")
    one = {"question": "a", "choices": ["b", "c"], "label": 1, "name": "n", "task": "answer"}

    def made(said: str | None, length: int = 12) -> list[list[int]]:
        row = Row("r", 0, ["a"], {"choices": pa.scalar([one], CHOICES), "transcript": said})
        item = SaidChoices(tokenizer=tokenizer, max_length=length)(row, "a", RNG)
        assert item[f"{EXTRA}segment"][0].sum() == 2
        found: list[list[int]] = item["data"].tolist()
        return found

    assert made("d d") == [[start, a, d, d, end, b, end], [start, a, d, d, end, c, end]]
    assert made(None) == [[start, a, end, b, end], [start, a, end, c, end]]
    assert made("d d d", 6) == [[start, a, d, end, b, end], [start, a, d, end, c, end]]
