from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.dedup.keep_order import Keep, keys_of, read_rows

ROWS = pa.table(
    {
        "id": ["e", "d", "c", "b", "a"],
        "sha256": ["5", "1", "1", None, "9"],
        "width": pa.array([10, 10, 10, 10, 60_000], pa.int32()),
        "height": pa.array([10, 10, 10, 10, 60_000], pa.int32()),
        "texts": pa.array(
            [
                [text("x", "web", score=0.30001)],
                [text("x", "web", score=0.30004), text("y", "human")],
                [text("x", "synth", score=0.2), text("y", "web", score=0.9)],
                [],
                None,
            ],
            TEXTS,
        ),
    }
)


def best_first(tmp_path: Path, keep: Keep | None, rows: pa.Table = ROWS) -> list[str]:
    got = read_rows([dataset(tmp_path, rows, shard_rows=2)], keep, "test")
    found: list[str] = got.ids.take(got.order).to_pylist()
    return found


@pytest.mark.parametrize(
    ("keep", "want"),
    [
        (("pixels desc",), "abcde"),  # 60,000 x 60,000 does not overflow; ties by id
        (("sha256",), "cdeab"),  # null comes last
        (("score desc",), "cdeab"),  # 0.30001 and 0.30004 are one score; no score comes last
        ((({"source": ("human", "web")}),), "dceab"),
        (("width", "sha256 desc"), "ecdba"),
        (("score desc", {"source": ("web", "human")}), "cdeab"),
        ((), "abcde"),
    ],
)
def test_each_key(tmp_path: Path, keep: Keep, want: str) -> None:
    assert "".join(best_first(tmp_path, keep)) == want


def test_by_default_the_order_is_score_pixels_source_bytes_id(tmp_path: Path) -> None:
    assert "".join(best_first(tmp_path / "all", None)) == "cdeab"
    assert "".join(best_first(tmp_path / "some", None, ROWS.drop_columns(["texts"]))) == "acdeb"
    assert "".join(best_first(tmp_path / "id", None, ROWS.select(["id"]))) == "abcde"


def test_a_score_column_counts_before_the_texts(tmp_path: Path) -> None:
    rows = ROWS.append_column("score", pa.array([0.1, 0.2, 0.3, 0.4, None], pa.float32()))
    assert "".join(best_first(tmp_path, ("score desc",), rows)) == "bcdea"


def test_a_score_that_is_no_number_hides_no_other(tmp_path: Path) -> None:
    nan = float("nan")
    texts = [
        [text("x", "web", score=nan)],
        [text("x", "web", score=nan), text("y", "web", score=0.9)],
        [text("z", "web", score=0.5)],
    ]
    rows = pa.table({"id": ["a", "b", "c"], "texts": pa.array(texts, TEXTS)})
    assert "".join(best_first(tmp_path, ("score desc",), rows)) == "bca"


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (
            ("scores desc",),
            r"dedup: keep: 'scores' is neither a column that can order rows nor .*; did you mean 'score'\?",
        ),
        (("image",), r"keep: 'image' is neither a column that can order rows"),
        (("texts",), r"keep cannot order rows by 'texts', a list<"),
        (
            ("sha256 down",),
            r"keep: 'sha256 down' does not say how to order rows; wanted COLUMN, COLUMN desc, or COLUMN: \[best",
        ),
        (({"width": ("1", "2")},), r"keep ranks the values of 'width', which must be strings, not int32"),
    ],
)
def test_a_key_that_cannot_be_is_named_before_anything_runs(keep: Keep, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        keys_of(keep, ROWS.schema.append(heavy("image", pa.binary())), "dedup")


def test_what_a_key_is_computed_from_must_be_there() -> None:
    with pytest.raises(SchemaError, match=r"dedup \(for 'pixels' in keep\) reads column 'width'"):
        keys_of(("pixels",), pa.schema([("id", pa.string())]), "dedup")


def test_an_id_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    data = dataset(tmp_path, pa.table({"id": ["a", "b"]}))
    with pytest.raises(VlpipeError, match=r"2 id\(s\) occur more than once in the rows of input, input"):
        read_rows([data, data], None, "dedup")
