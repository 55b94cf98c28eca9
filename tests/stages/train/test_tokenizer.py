from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.train.tokenizer import TrainBpe, TrainTokenizer

SCHEMA = pa.schema([("id", pa.string()), ("texts", TEXTS)])


def words(folder: Path, name: str, *texts: dict[str, object]) -> Dataset:
    return dataset(folder, pa.Table.from_pylist([{"id": "a", "texts": list(texts)}], SCHEMA), name=name)


def test_learned_from_what_was_kept_in_all_inputs(tmp_path: Path) -> None:
    inputs = [
        words(tmp_path, "web", *[text("zebra crossing", "web")] * 9, *[text("spam", "web", kept=False)] * 9),
        words(tmp_path, "human", *[text("lion sleeping", "human", kept=True)] * 9),
    ]
    got = run_gather(TrainTokenizer(vocab_size=120), inputs, tmp_path / "run")
    tokens = got.table["token"].to_pylist()
    assert {"zebra", "crossing", "lion", "sleeping"} <= set(tokens)
    assert "spam" not in tokens
    assert tuple(tokens) == Tokenizer.load(got.artifacts).tokens
    assert got.table["token_id"].to_pylist() == list(range(len(tokens)))
    again = run_gather(TrainTokenizer(vocab_size=120), inputs, tmp_path / "again")
    assert (again.artifacts / "vocab.txt").read_bytes() == (got.artifacts / "vocab.txt").read_bytes()


def test_a_given_vocabulary_is_taken_as_it_is(tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n")
    stage = TrainTokenizer(vocab=File(path=str(vocab)))
    got = run_gather(stage, [words(tmp_path, "web", text("x", "web"))], tmp_path / "run")
    assert got.table["token"].to_pylist()[5:] == ["red", "[DEC]", "[ENC]"]


def test_preflight() -> None:
    assert TrainTokenizer(vocab_size=5).preflight() == ["vocab_size must be at least 100, got 5"]


def test_a_bpe_of_what_was_kept(tmp_path: Path) -> None:
    kept, dropped = [text("zebra crossing", "web")] * 9, [text("spam spam", "web", kept=False)] * 9
    got = run_gather(TrainBpe(vocab_size=530), [words(tmp_path, "web", *kept, *dropped)], tmp_path / "run")
    tokenizer = Tokenizer.load(got.artifacts)
    assert tuple(got.table["token"].to_pylist()) == tokenizer.tokens
    assert len(tokenizer.ids("zebra crossing")) < len(tokenizer.ids("spam spammers")) - 2
    assert TrainBpe(vocab_size=513).preflight() == ["vocab_size must be at least 514 for style clip, got 513"]
    assert TrainBpe(vocab_size=257, style="gpt2").preflight() == []
