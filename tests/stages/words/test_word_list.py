"""A list of words as a tokenizer, with vectors that a model starts from."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.models import folder
from vlpipe.models.folder import copy_part
from vlpipe.models.systems.video.gated_embeddings import GatedEmbeddings
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.words.word_list import WordList

SAID = ["Cut the onion", "cut, cut the SALT!", "don't stir"]


def rows(*said: str) -> pa.Table:
    ids = [str(k) for k in range(len(said))]
    return pa.table({"id": ids, "texts": pa.array([[text(one, "asr")] for one in said], TEXTS)})


def made(tmp_path: Path, **more: Any) -> tuple[list[str], Tokenizer]:
    got = run_gather(WordList(**more), [dataset(tmp_path, rows(*SAID))], tmp_path / "out")
    return got.table["token"].to_pylist(), Tokenizer.load(got.artifacts)


def test_words_are_listed_by_how_often_they_are_said(tmp_path: Path) -> None:
    tokens, tokenizer = made(tmp_path)
    assert tokens == ["[PAD]", "cut", "the", "onion", "salt", "don't", "stir", "[UNK]"]
    assert tokenizer.pad == 0
    assert tokenizer.ids("Cut the leek; don't") == [1, 2, tokenizer.unk, 5]
    assert tokenizer.unk == 7


def test_rare_words_and_more_than_asked_are_left_out(tmp_path: Path) -> None:
    assert made(tmp_path, min_count=2)[0] == ["[PAD]", "cut", "the", "[UNK]"]
    assert made(tmp_path / "b", max_words=1)[0] == ["[PAD]", "cut", "[UNK]"]
    assert made(tmp_path / "c", lower=False, max_words=2)[0] == ["[PAD]", "the", "cut", "[UNK]"]
    with pytest.raises(VlpipeError, match="no text has a word"):
        made(tmp_path / "d", min_count=9)


def test_a_model_starts_from_the_vectors_of_words_that_have_one(tmp_path: Path) -> None:
    vectors = {"salt": (1.0, 2.0), "cut": (3.0, 4.0), "car": (5.0, 6.0)}
    data = b"3 2\n" + b"".join(w.encode() + b" " + struct.pack("<2f", *v) + b"\n" for w, v in vectors.items())
    (tmp_path / "v.bin").write_bytes(data)
    tokens, tokenizer = made(tmp_path, vectors=File(path=str(tmp_path / "v.bin")))
    assert tokens == ["[PAD]", "cut", "salt", "[UNK]"]
    source = folder.load(tmp_path / "out" / "artifacts")
    model = GatedEmbeddings(vocab_size=tokenizer.vocab_size, feat_dims=[4], word_dim=2, embed_dim=4)
    copy_part(model, source, "table", "text.words")
    assert model.text.words.weight.tolist() == [[0, 0], [3, 4], [1, 2], [0, 0]]
    (tmp_path / "v.bin").write_bytes(data[:-2])
    with pytest.raises(VlpipeError, match=r"v\.bin is not a word2vec file"):
        made(tmp_path / "b", vectors=File(path=str(tmp_path / "v.bin")))
