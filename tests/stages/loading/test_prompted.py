"""A row's own prompt before its text: what is given, what is learned, what is cut."""

from __future__ import annotations

import numpy as np
import pytest

from vlpipe.models.interface.batch import IGNORE
from vlpipe.models.objectives.lm import next_tokens
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.prompted import Prompted
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

RNG = np.random.default_rng(0)
SAID = "a red circle and a blue square at the top = on green"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([SAID] * 3, 120)


def row(prompt: str | None) -> Row:
    return Row("r", 7, ["a blue square"], {"prompt": prompt})


def test_the_prompt_is_given_and_the_text_is_learned(tokenizer: Tokenizer) -> None:
    maker = Prompted(tokenizer=tokenizer, max_length=16, max_prompt=5)
    rows = [row("a red circle = "), row(None), row("a red circle and a blue square at the top = ")]
    text = tokenizer.ids("a blue square")
    stream = maker.collate([maker(one, "a blue square", RNG) for one in rows])
    wanted = [
        tokenizer.ids("a red circle ="),
        [],
        tokenizer.ids("a red circle and a blue square at the top =")[-5:],
    ]
    targets = next_tokens(stream)
    assert stream.mask is not None
    for at, prompt in enumerate(wanted):
        ids = stream.data[at][stream.mask[at].bool()].tolist()
        assert ids == [tokenizer.start, *prompt, *text, tokenizer.end]
        assert [one for one in targets[at].tolist() if one != IGNORE] == [*text, tokenizer.end]
    assert stream.extra["prompt"].tolist() == [1 + len(one) for one in wanted]
    item = maker(rows[0], "a blue square", RNG)
    assert item["words"].tolist() == [-1] * 5 + [0, 1, 2] + [-1]
    assert maker.count_positions(rows[0], "a blue square") == len(item["data"])


def test_without_a_prompt_it_is_the_text(tokenizer: Tokenizer) -> None:
    mine = Prompted(tokenizer=tokenizer, max_length=8, max_prompt=4)(row(""), SAID, RNG)
    plain = Text(tokenizer=tokenizer, max_length=8)(row(""), SAID, RNG)
    assert {name: mine[name].tolist() for name in plain} == {name: plain[name].tolist() for name in plain}


def test_a_long_text_is_cut_and_not_the_prompt(tokenizer: Tokenizer) -> None:
    item = Prompted(tokenizer=tokenizer, max_length=8, max_prompt=5, keep_end=True)(row(SAID), SAID, RNG)
    assert item["data"].tolist()[1:6] == tokenizer.ids(SAID)[-5:]
    assert item["data"].tolist()[6:] == [tokenizer.ids(SAID)[0], tokenizer.end]


def test_mistakes(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="remove the stream's `prompt`"):
        Prompted(tokenizer=tokenizer, prompt="a")
    with pytest.raises(ValueError, match="max_prompt must be from 1 to max_length - 3 = 5"):
        Prompted(tokenizer=tokenizer, max_length=8, max_prompt=6)
    with pytest.raises(VlpipeError, match="a text without a row has no prompt"):
        Prompted(tokenizer=tokenizer, max_length=16, max_prompt=4)(None, "a", RNG)
