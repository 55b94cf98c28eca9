"""Words that a vocabulary does not have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.text_quality.unknown_words import UnknownWords, unknown_ratio, words_of

SCHEMA = pa.schema([("id", pa.string()), ("texts", TEXTS)])
VOCABULARY = "[PAD]\n[UNK]\n!\n##ing\na\nred\nDog\nwell\nknown\ndon\nt\n12\n"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("A red dog", 0.0),
        ("a RED xqzv", 1 / 3),
        ("a well-known dog, 12 of 3", 1 / 4),
        ("don't", 0.0),
        ("don\u2019t", 0.0),
        ("ing", 1.0),
        ("well-xqzv", 1.0),
        ("12 345 !", None),
        ("", None),
    ],
)
def test_ratio(said: str, wanted: float | None) -> None:
    known = frozenset({"a", "red", "dog", "well", "known", "don", "t"})
    assert unknown_ratio(said, known) == (wanted if wanted is None else pytest.approx(wanted))


def test_the_column_has_a_value_per_text(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(VOCABULARY)
    texts = [[text("a red dog", "web"), text("xqzv", "web")], [], [text("7", "web")], None]
    rows = [{"id": str(k), "texts": one} for k, one in enumerate(texts)]
    table = pa.Table.from_pylist(rows, SCHEMA)
    stage = UnknownWords(vocabulary=File(path=str(tmp_path / "vocab.txt")))
    found = run_map(stage, table).table
    assert found["unknown_word_ratio"].to_pylist() == [[0.0, 1.0], [], [None], []]
    (tmp_path / "empty.txt").write_text("##ing\n[PAD]\n")
    with pytest.raises(VlpipeError, match=r"empty\.txt has no word; wanted one per line"):
        run_map(UnknownWords(vocabulary=File(path=str(tmp_path / "empty.txt"))), table)


def test_a_vocabulary_with_a_mark_and_curly_apostrophes(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\ufeffred\ndon\u2019t\n".encode())
    assert words_of(tmp_path / "vocab.txt") == {"red", "don't"}
    (tmp_path / "vocab.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(VlpipeError, match=r"vocab\.txt is not UTF-8 text"):
        words_of(tmp_path / "vocab.txt")
