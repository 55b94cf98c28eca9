"""Masked spans of words (SpanBERT, UNIMO), and fragments that are generated from the rest of a text (UNIMO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.texts.next_words import NextWords
from vlpipe.models.systems.regions.unimo import Unimo
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.loading.corruptors.hard.mask_spans import MaskSpans
from vlpipe.stages.loading.corruptors.image_text.fragments import Fragments
from vlpipe.stages.loading.makers.base import IGNORE, Sample
from vlpipe.stages.loading.makers.text import Text

WORDS = ["red", "blue", "green", "circle", "square", "ring", "left", "right", "above", "below"]
NUM = 100  # words of a text; each is one token


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 9, 150)


def seeded(seed: int) -> Callable[[int], np.random.Generator]:
    return lambda k: np.random.default_rng((seed, k))


def texts(tokenizer: Tokenizer, num: int, repeats: int = NUM // 10) -> tuple[Text, list[Sample]]:
    maker = Text(tokenizer=tokenizer, max_length=200, max_positions=200)
    item = maker(None, " ".join(WORDS * repeats), np.random.default_rng(0))
    assert len(item["data"]) == 10 * repeats + 2  # a word is a token
    return maker, [{"text": dict(item)} for _ in range(num)]


def test_spans_fill_the_budget_exactly(tokenizer: Tokenizer) -> None:
    maker, samples = texts(tokenizer, 50)
    before = samples[0]["text"]["data"]
    for one in MaskSpans(rate=0.15)(samples, seeded(0), {"text": maker}):
        chosen = one["text"]["target/ids"] != IGNORE
        assert chosen.sum() == 15
        assert not chosen[[0, -1]].any()
        assert (one["text"]["target/ids"][chosen] == before[chosen]).all()
        assert (one["text"]["data"][~chosen] == before[~chosen]).all()
    maker, (alone,) = texts(tokenizer, 1, 1)
    (found,) = MaskSpans(rate=0.01)([alone], seeded(1), {"text": maker})
    assert (found["text"]["target/ids"] != IGNORE).sum() == 1  # at least one


def test_lengths_of_spans_are_geometric() -> None:
    """The first span of a long text, which nothing cuts: P(l) is proportional to 0.8^(l - 1), l from 1 to 10, mean 3.8.
    Within 4 standard errors."""
    corruptor, words = MaskSpans(rate=0.5), np.concatenate([[-1], np.arange(400), [-1]])
    num, lengths = 1500, []
    for seed in range(num):
        span = corruptor.spans(words, np.random.default_rng(seed))
        at = np.flatnonzero(span == 0)
        if at[-1] < 400:  # not cut by the end
            assert (np.diff(at) == 1).all()
            lengths.append(len(at))
    shares = 0.8 ** np.arange(10)
    shares /= shares.sum()
    assert shares @ np.arange(1, 11) == pytest.approx(3.8, abs=0.03)
    counts = np.bincount(lengths, minlength=11)[1:]
    error = (
        4 * np.sqrt(shares * (1 - shares) / len(lengths)) + 0.01
    )  # 1 %: longer ones are cut by the end more often
    assert (abs(counts / len(lengths) - shares) < error).all()


def test_spans_are_of_whole_words_and_replaced_as_a_whole(tokenizer: Tokenizer) -> None:
    words = np.concatenate([[-1], np.repeat(np.arange(30), 3), [-1]])
    ids = np.concatenate([[tokenizer.start], np.full(90, 30), [tokenizer.end]])
    maker: Any = Text(tokenizer=tokenizer, max_length=100)
    kinds = {"mask": 0, "random": 0, "kept": 0}
    num_cut = 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        span = MaskSpans().spans(words, np.random.default_rng(seed))
        assert (span >= 0).sum() == 14  # 0.15 x 90 = 13.5
        num_cut += sum((span[words == word] >= 0).sum() % 3 > 0 for word in range(30))
        masked, _ = MaskSpans()._masked(ids, words, rng, maker.tokenizer)
        for k in range(span.max() + 1):
            of_span = masked[span == k]
            is_mask, is_kept = of_span == tokenizer.mask, of_span == 30
            assert is_mask.all() or not is_mask.any()
            kinds["mask" if is_mask.all() else "kept" if is_kept.all() else "random"] += 1
    assert num_cut <= 600  # the last span of each text alone
    total = sum(kinds.values())
    for kind, share in {"mask": 0.8, "random": 0.1, "kept": 0.1}.items():
        assert abs(kinds[kind] / total - share) < 4 * (share * (1 - share) / total) ** 0.5 + 0.005, kinds
    with pytest.raises(ValueError, match="p must be between 0 and 1 and longest at least 1, got 1, 10"):
        MaskSpans(p=1)


def test_fragments_are_what_is_missing(tokenizer: Tokenizer) -> None:
    maker, samples = texts(tokenizer, 100)
    ids, start, end = samples[0]["text"]["data"], tokenizer.start, tokenizer.end
    lengths = []
    for one in Fragments()(samples, seeded(0), {"text": maker}):
        item = one["text"]
        prefix, data, rest = int(item["target/prefix"]), item["data"].tolist(), item["target/rest"].tolist()
        assert data[0] == start
        assert data[prefix - 1] == end
        assert prefix == len(ids) - 25
        assert set(rest[:prefix]) == {IGNORE}
        pieces, at = [], prefix
        while at < len(data):
            stop = data.index(end, at)
            assert data[at] == start
            assert rest[at : stop + 1] == [*data[at + 1 : stop + 1], IGNORE]
            pieces.append(data[at + 1 : stop])
            at = stop + 1
        assert sum(map(len, pieces)) == 25
        assert min(map(len, pieces[:-1]), default=4) >= 1
        lengths += [len(piece) for piece in pieces]
        assert whole(data[1 : prefix - 1], pieces, ids[1:-1].tolist())
        assert len(item["words"]) == len(data)
    assert max(lengths) == 25
    assert min(lengths) < 4  # what the last one had left
    stream = maker.collate([samples[0]["text"], samples[1]["text"]])
    chosen = stream.chosen(NextWords.TARGET, torch.zeros(0))
    assert len(chosen) == sum(int((one["text"]["target/rest"] != IGNORE).sum()) for one in samples[:2])


def whole(given: list[int], pieces: list[list[int]], text: list[int]) -> bool:
    """Whether `text` is `given` with `pieces` put back somewhere, in order."""
    if not pieces:
        return given == text
    size = len(pieces[0])
    return any(
        text[:at] == given[:at]
        and text[at : at + size] == pieces[0]
        and whole(given[at:], pieces[1:], text[at + size :])
        for at in range(len(given) + 1)
    )


def test_fragments_stay_within_the_models_positions(tokenizer: Tokenizer) -> None:
    maker = Text(tokenizer=tokenizer, max_length=103, max_positions=103)
    item = maker(None, " ".join(WORDS * 10), np.random.default_rng(0))
    for seed in range(20):
        (found,) = Fragments(longest=4)([{"text": dict(item)}], seeded(seed), {"text": maker})
        assert len(found["text"]["data"]) == 102
        assert int(found["text"]["target/prefix"]) == 102  # no room for two tokens more
    for words in ([], ["red"]):
        item = maker(None, " ".join(words), np.random.default_rng(0))
        (found,) = Fragments()([{"text": dict(item)}], seeded(0), {"text": maker})
        assert found["text"]["data"].tolist() == item["data"].tolist()
        assert set(found["text"]["target/rest"].tolist()) == {IGNORE}
    with pytest.raises(ValueError, match="longest must be at least shortest, got 3 and 4"):
        Fragments(longest=3)


def test_unimo_learns_fragments_from_the_rest(tokenizer: Tokenizer) -> None:
    """The rest sees no fragment, a fragment sees the rest and what is before it; the loss is that of its next tokens."""
    maker, samples = texts(tokenizer, 3, 2)
    corruptor = Fragments(shortest=2, longest=2, share=0.3)
    found = corruptor(samples, seeded(4), {"text": maker})
    stream = maker.collate([one["text"] for one in found])
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"feat_dim": 4, "num_objects": 3, "width": 12, "layers": 2, "heads": 3}
    model = Unimo(vocab_size=tokenizer.vocab_size, max_text_length=200, contrast=False, **sizes).eval()
    out = Outputs(model, Batch({"text": stream}, same=torch.arange(3)))
    hidden, objective = out.word_hidden, NextWords()
    term: Any = objective(out)["seq2seq"]
    rest = stream.target["rest"]
    logits = model.predict_words(hidden)[rest != IGNORE]
    wanted = torch.nn.functional.cross_entropy(logits, rest[rest != IGNORE])
    torch.testing.assert_close(term.total / term.count, wanted)
    assert int(term.count) == 3 * (6 + 3)  # 0.3 of 20 words in fragments of two, and their ends
    prefix = int(stream.target["prefix"][0])
    data = stream.data.clone()
    data[0, prefix + 5] = tokenizer.mask  # in the second fragment
    other = Outputs(model, Batch({"text": replace(stream, data=data)}, same=torch.arange(3))).word_hidden
    torch.testing.assert_close(other[0, : prefix + 5], hidden[0, : prefix + 5])
    assert not torch.allclose(other[0, prefix + 5 :], hidden[0, prefix + 5 :])
