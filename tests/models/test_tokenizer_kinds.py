"""CLIP's and GPT-2's BPE, cased WordPiece, any `tokenizers` file: the ids of transformers for the same vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, CLIPTokenizer, GPT2Tokenizer

from vlpipe.models.tokenization.bpe import Style, byte_tokens, train
from vlpipe.models.tokenizer import SPECIAL, Tokenizer
from vlpipe.stages.loading.makers.text import Text

TEXTS = [
    "A red circle to the left of a blue square.",
    "it's   a left-hand glove, 24 EUR",
    "caf\u00e9 \u4e16\u754c \U0001f431 naïve",
    "don't; they'll\tgo\nthere",
    "!?",
    "",
]
TRAINING = [*TEXTS, "the red square and the blue circle", "circle circle square", "a left hand"] * 3
THEIRS = {"clip": CLIPTokenizer, "gpt2": GPT2Tokenizer}
STYLES: tuple[Style, ...] = ("clip", "gpt2")
SMALLEST = {"clip": 514, "gpt2": 257}


def made(style: Style) -> Tokenizer:
    return Tokenizer.train_bpe(TRAINING, SMALLEST[style] + 40, style)


def theirs_of(style: Style) -> CLIPTokenizer | GPT2Tokenizer:
    tokens, merges = train(TRAINING, SMALLEST[style] + 40, style)
    return THEIRS[style](vocab={t: i for i, t in enumerate(tokens)}, merges=merges)


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_transformers(style: Style) -> None:
    ours, theirs = made(style), theirs_of(style)
    assert ours.vocab_size == SMALLEST[style] + 40
    for text in TEXTS:
        assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids, text


def test_a_padded_batch_of_clip_is_theirs() -> None:
    ours, theirs = made("clip"), theirs_of("clip")
    ids, mask = ours.encode(TEXTS, 12, keep_end=True)
    wanted = theirs(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    assert ids.tolist() == wanted.input_ids.tolist()
    assert mask.tolist() == wanted.attention_mask.tolist()


@pytest.mark.parametrize("style", STYLES)
def test_decoding_gives_the_text_back(style: Style) -> None:
    tokenizer = made(style)
    for text in TEXTS:
        back = tokenizer.decode([tokenizer.start, *tokenizer.ids(text), tokenizer.end])
        if style == "gpt2":
            assert back == text
        else:
            assert back.replace(" ", "") == "".join(text.lower().split())


@pytest.mark.parametrize("style", STYLES)
def test_a_word_of_unseen_bytes_has_tokens(style: Style) -> None:
    tokenizer = made(style)
    ids = tokenizer.ids("\u0e01\U0001f9ff")
    assert len(ids) == 7  # bytes
    assert not {tokenizer.start, tokenizer.end} & set(ids)


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_folder_opens_here_and_in_transformers(style: Style, tmp_path: Path) -> None:
    tokenizer = made(style)
    tokenizer.save(tmp_path)
    again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.tokens == tokenizer.tokens
    for text in TEXTS:
        assert again.encode_one(text, 40) == tokenizer.encode_one(text, 40)
        assert theirs(text).input_ids == tokenizer.encode_one(text, 40)[0]
        assert again.decode(again.ids(text)) == tokenizer.decode(tokenizer.ids(text))
    assert (again.pad, again.start, again.end) == (tokenizer.pad, tokenizer.start, tokenizer.end)


@pytest.mark.parametrize("style", STYLES)
def test_vocabulary_and_merges_in_two_files(style: Style, tmp_path: Path) -> None:
    theirs_of(style).save_pretrained(tmp_path / "theirs")
    tokens, merges = train(TRAINING, SMALLEST[style] + 40, style)
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json has no merges\.txt beside it"):
        Tokenizer.load(tmp_path)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for found in (Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "theirs")):
        assert [found.ids(text) for text in TEXTS] == [made(style).ids(text) for text in TEXTS]
        assert (found.start, found.end) == (made(style).start, made(style).end)


def test_the_vocabulary_begins_as_openais() -> None:
    assert byte_tokens()[:3] == ["!", '"', "#"]
    assert len(set(byte_tokens())) == 256
    assert set(byte_tokens()) == set(pre_tokenizers.ByteLevel.alphabet())


TRAIN = """
import random
from vlpipe.models.tokenizer import Tokenizer
random.seed(1)
words = ["".join(random.choices("abcdefghijklmnop", k=random.randint(2, 9))) for _ in range(300)]
texts = [" ".join(random.choices(words, k=8)) for _ in range(200)]
print("\\n".join(Tokenizer.train_bpe(texts, 800, "clip").tokens))
"""


@pytest.mark.slow
def test_training_gives_the_same_vocabulary_in_every_process() -> None:
    outs = {
        subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, check=True).stdout
        for _ in range(3)
    }
    assert len(outs) == 1
    assert len(outs.pop().split()) == 800


@pytest.mark.parametrize("style", STYLES)
def test_too_few_tokens_are_refused(style: Style) -> None:
    with pytest.raises(ValueError, match=rf"needs texts with words and vocab_size >= {SMALLEST[style]}, got"):
        Tokenizer.train_bpe(TRAINING, SMALLEST[style] - 1, style)
    with pytest.raises(ValueError, match="got 0 different words"):
        Tokenizer.train_bpe([""], 1000, style)


def test_a_merge_of_unknown_tokens_is_refused() -> None:
    tokens, merges = train(TRAINING, 560, "clip")
    with pytest.raises(
        ValueError, match=r"the merges must be of tokens of the vocabulary, but \('x', 'qqq'\) is not"
    ):
        Tokenizer.from_bpe(tokens, [*merges, ("x", "qqq")])
    with pytest.raises(ValueError, match=r"a clip vocabulary must contain .* but lacks <\|startoftext\|>"):
        Tokenizer.from_bpe([t for t in tokens if t != "<|startoftext|>"], [])


@pytest.mark.parametrize("text", ["<|endoftext|> a", "[MASK] [SEP] a", "<|startoftext|>"])
def test_special_tokens_in_a_text_are_text(text: str, tmp_path: Path) -> None:
    bert = Tokenizer.train(TRAINING, 200)
    saved = made("clip")
    saved.save(tmp_path)
    for tokenizer in (bert, saved, Tokenizer.load(tmp_path), made("gpt2")):
        assert set(tokenizer.ids(text)) <= {
            *tokenizer.plain_ids.tolist(),
            bert.unk if tokenizer is bert else 0,
        }


def test_a_cased_wordpiece_keeps_case(tmp_path: Path) -> None:
    words = ["Red", "red", "Circle", "café"]
    tokenizer = Tokenizer.from_tokens([*SPECIAL, *words], cased=True)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.ids("Red red Circle café RED") == [*(tokenizer.tokens.index(w) for w in words), again.unk]
    theirs = BertTokenizer.from_pretrained(tmp_path)
    assert theirs("Red red Circle café RED", add_special_tokens=False).input_ids == again.ids(
        "Red red Circle café RED"
    )
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    theirs.save_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).ids("Red red") == again.ids("Red red")


def test_any_file_of_tokenizers_with_usual_special_tokens(tmp_path: Path) -> None:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "circle", "<mask>"]
    fast = FastTokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.enable_padding(length=9)
    fast.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.load(tmp_path)
    assert found.encode_one("a red cat", 9) == ([0, 4, 5, 3, 2], [-1, 0, 1, 2, -1])
    assert (found.pad, found.mask, found.unk) == (1, 7, 3)
    with pytest.raises(
        ValueError, match=r"this one has no \[DEC\] token; it has <pad>, <unk>, <s>, </s>, <mask>"
    ):
        _ = found.dec


def test_without_start_and_end_it_is_refused(tmp_path: Path) -> None:
    FastTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        ValueError, match=r"names no start token \(cls_token, bos_token\), and its vocabulary has none of"
    ):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "a"}, "eos_token": "b"})
    )
    assert (Tokenizer.load(tmp_path).start, Tokenizer.load(tmp_path).end) == (0, 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a file of the library tokenizers"):
        Tokenizer.load(tmp_path)


PAIRS = [
    ("a red circle", "blue"),
    ("a red circle to the left of it", "a blue square"),
    ("a", "b c d e f g h"),
]


@pytest.mark.parametrize("max_length", [5, 8, 9, 30])
def test_two_texts_are_berts(max_length: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TRAINING, 300)
    tokenizer.save(tmp_path)
    theirs = BertTokenizer.from_pretrained(tmp_path)
    for first, second in PAIRS:
        ids, words, types = tokenizer.encode_pair(first, second, max_length)
        wanted = theirs(first, second, truncation="longest_first", max_length=max_length)
        assert (ids, types) == (wanted.input_ids, wanted.token_type_ids)
        assert [i for i, w in zip(ids, words, strict=True) if w < 0] == [
            tokenizer.cls,
            tokenizer.sep,
            tokenizer.sep,
        ]
    assert tokenizer.encode_pair("a", "", 9)[2] == [0, 0, 0, 1]  # theirs takes an empty second text for none
    with pytest.raises(ValueError, match="max_length of two texts must be at least 5, got 4"):
        tokenizer.encode_pair("a", "b", 4)


def test_a_text_that_is_cut_keeps_its_end_token_if_asked_to() -> None:
    tokenizer = made("clip")
    for keep_end in (False, True):
        item = Text(tokenizer=tokenizer, max_length=5, keep_end=keep_end)(None, TEXTS[0], None)
        assert len(item["data"]) == len(item["words"]) == 5
        assert (item["data"][-1] == tokenizer.end, item["words"][-1] == -1) == (keep_end, keep_end)


def with_added(folder: Path, *, special: bool = False) -> BertTokenizer:
    """BERT's tokenizer of transformers with two more tokens, saved into a folder."""
    tokens = [*SPECIAL[:5], "a", "cat", "covid", "-", "19", "<", "image", ">"]
    theirs = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    theirs.add_tokens(["covid-19", "<image>"], special_tokens=special)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("has_vocabulary", [True, False])
def test_tokens_that_were_added_are_those_of_transformers(tmp_path: Path, has_vocabulary: bool) -> None:
    theirs = with_added(tmp_path)
    if has_vocabulary:  # as older versions of transformers save it
        (tmp_path / "vocab.txt").write_text("\n".join(theirs.convert_ids_to_tokens(range(13))) + "\n")
        (tmp_path / "added_tokens.json").write_text(json.dumps(theirs.get_added_vocab()))
    ours = Tokenizer.load(tmp_path)
    for text in ("a covid-19 cat", "<image>", "a covid - 19"):
        assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids, text
    assert ours.end not in ours.ids("[SEP] a")
    assert (ours.vocab_size, ours.pad, ours.start, ours.end) == (15, 0, 2, 3)
    ours.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").ids("a covid-19 cat") == ours.ids("a covid-19 cat")


def test_added_tokens_without_their_place_are_refused(tmp_path: Path) -> None:
    bert = Tokenizer.train(TRAINING, 200)
    bert.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[DEC]": bert.dec, "[ENC]": bert.enc}))
    assert Tokenizer.load(tmp_path).tokens == bert.tokens  # as BLIP's folder has them
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": bert.vocab_size}))
    with pytest.raises(ValueError, match=r"adds '<image>' to the tokens of vocab\.txt as number \d+, but"):
        Tokenizer.load(tmp_path)
