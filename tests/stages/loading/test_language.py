"""Texts for language models: the start is given, the rest is learned; tokenizers without a start token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.loading.makers.language.prefix_text import PrefixText

TEXTS = ["a red circle on the left", "one"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(TEXTS * 3, 290, "gpt2")


def test_a_text_is_cut_between_words(tokenizer: Tokenizer) -> None:
    maker = PrefixText(tokenizer=tokenizer, max_length=40)
    seen = set()
    for seed in range(40):
        item = maker(None, TEXTS[0], np.random.default_rng(seed))
        first, rest = tokenizer.decode(item["extra/prefix"]), tokenizer.decode(item["data"])
        assert f"{first} {rest}" == TEXTS[0]
        assert item["extra/prefix"][-1] == item["data"][-1] == tokenizer.end
        assert item["data"][0] == tokenizer.start
        seen.add(len(first.split()))
    assert seen == {1, 2, 3, 4, 5}
    again = maker(None, TEXTS[0], np.random.default_rng(39))
    assert np.array_equal(again["data"], item["data"])


def test_prefixes_of_different_length_are_padded(tokenizer: Tokenizer) -> None:
    maker = PrefixText(tokenizer=tokenizer, max_length=40, prompt="say: ")
    items = [maker(None, text, np.random.default_rng(3)) for text in TEXTS]
    assert tokenizer.decode(items[1]["extra/prefix"]).strip() == "say:"  # a text of one word is not cut
    assert tokenizer.decode(items[1]["data"]) == "one"
    stream = maker.collate(items)
    lengths = [len(item["extra/prefix"]) for item in items]
    assert stream.extra["prefix_mask"].sum(1).tolist() == lengths
    assert stream.extra["prefix"].shape == stream.extra["prefix_mask"].shape == (2, max(lengths))
    assert "prompt" not in stream.extra
    assert stream.places["next"].numel() == sum(len(item["data"]) - 1 for item in items)


def test_a_tokenizer_without_a_start_token_starts_with_padding(tmp_path: Path) -> None:
    """T5's has <pad>, </s> and <unk>."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4}
    fast = Fast(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = Tokenizer.load(tmp_path)
    assert (found.start, found.end, found.pad) == (0, 1, 0)
    assert found.encode_one("a red", 9)[0] == [0, 3, 4, 1]
