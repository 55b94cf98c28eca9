from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlpipe.models.tokenizer import SPECIAL, Tokenizer

TRAIN = """
import random
from vlpipe.models.tokenizer import Tokenizer
random.seed(1)
words = ["".join(random.choices("abcdefghijklmnop", k=random.randint(2, 9))) for _ in range(300)]
texts = [" ".join(random.choices(words, k=8)) for _ in range(200)]
print("\\n".join(Tokenizer.train(texts, 400).tokens))
"""


@pytest.mark.slow
def test_training_gives_the_same_vocabulary_in_every_process() -> None:
    outs = {
        subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(outs) == 1
    assert len(outs.pop().split()) == 400


def test_encode_pads_and_decode_gives_the_text_back(tokenizer: Tokenizer) -> None:
    texts = ["A Red circle on the left", "it's a left-hand glove", ""]
    ids, mask = tokenizer.encode(texts, 16)
    assert ids.shape == mask.shape == (3, 16)
    assert ids.dtype == mask.dtype == torch.int64
    assert (ids[:, 0] == tokenizer.cls).all()
    assert ids[2, :3].tolist() == [tokenizer.cls, tokenizer.sep, tokenizer.pad]
    assert ((ids != tokenizer.pad) == mask.bool()).all()
    assert [tokenizer.decode(row) for row in ids.tolist()] == [
        "a red circle on the left",
        "it's a left-hand glove",
        "",
    ]


def test_a_cut_text_is_not_closed(tokenizer: Tokenizer) -> None:
    num = len(tokenizer.ids("a red circle"))
    whole, _ = tokenizer.encode(["a red circle"], num + 2)
    cut, mask = tokenizer.encode(["a red circle"], num + 1)
    assert whole[0, -1] == tokenizer.sep
    assert tokenizer.sep not in cut[0]
    assert mask.all()


def test_unseen_characters_are_unknown_not_an_error(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids("\u4e16\u754c") == [tokenizer.unk, tokenizer.unk]


def test_a_bert_vocabulary_gets_dec_and_enc_behind(tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[unused0]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n")
    found = Tokenizer.from_vocab(vocab)
    assert (found.vocab_size, found.dec, found.enc, found.pad, found.cls, found.sep) == (10, 8, 9, 0, 3, 4)
    assert found.ids("AB a") == [6, 7, 6]


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        (["[PAD]", "a"], r"\[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ([*SPECIAL, "a", "a"], r"list each token once, but lists \['a'\] more than once"),
    ],
)
def test_impossible_vocabularies_are_refused(tokens: list[str], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        Tokenizer.from_tokens(tokens)


def test_saved_folder_loads_here_and_in_transformers_with_equal_ids(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path / "tokenizer")
    again = Tokenizer.load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    texts = ["A red CIRCLE, it's bright!", "caf\u00e9 left-hand price 0123", "\u4e16 blue"]
    ids, _ = tokenizer.encode(texts, 24)
    assert torch.equal(again.encode(texts, 24)[0], ids)
    assert theirs(texts, padding="max_length", max_length=24)["input_ids"] == ids.tolist()
    theirs.save_pretrained(tmp_path / "theirs")  # tokenizer.json, no vocab.txt
    assert Tokenizer.load(tmp_path / "theirs").tokens == tokenizer.tokens


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"none of the files tokenizer/vocab.txt, tokenizer/tokenizer.json, tokenizer/vocab.json",
    ):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=r"'./nowhere' is neither an existing folder nor a hub id"):
        Tokenizer.load("./nowhere")
