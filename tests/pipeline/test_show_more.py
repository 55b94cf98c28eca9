"""`show --where` on fields of lists, `--sql`, `--json`, `--images`; lengths from the receipts."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from cli_helpers import Runs, vlpipe
from look_at import HOSTILE, PAGES, TEXTS, picture
from PIL import Image

from vlpipe.pipeline.cli.thumbnails import COLUMNS, drawn, knows_kitty
from vlpipe.pipeline.inspect.rows.written import written_conditions
from vlpipe.pipeline.parquet.column_stats import count_in


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = Runs(tmp_path_factory.mktemp("show_more"), PAGES)
    runs("run", "--local", "--until", "scored")
    return runs.step("scored")


SCHEMA = pa.schema([("id", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("texts", TEXTS)])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("score < 0.5 and source = 'web'", ["texts.score<0.5", "texts.source=web"]),
        ("texts.score.max>=0.5", ["texts.score.max>=0.5"]),
        ("score.max >= 0.5", ["texts.score.max>=0.5"]),
        ("why = 'x and y' AND width>3", ["texts.why=x and y", "width>3"]),
        ('text ~ "it\'s"', ["texts.text~it's"]),
        ("text = 'it''s'", ["texts.text=it's"]),
        ("kept = false", ["texts.kept=false"]),
        ("why = null", ["texts.why=null"]),
        ("width < height", None),
        ("width * 2 < 10", None),
        ("len(texts) > 1", None),
        ("width < 3 or width > 5", None),
        ("absent = 3", None),
        ("width = 'abc'", None),
        ("width = 3 and", None),
        ("", None),
    ],
)
def test_conditions_as_written(text: str, wanted: list[str] | None) -> None:
    found = written_conditions(text, SCHEMA)
    assert (None if found is None else [str(one) for one in found]) == wanted


def test_where_on_texts_counts_and_shows(scored: Path) -> None:
    said = vlpipe("show", scored, "-n", "1", "--where", "score < 0.1 and source = 'web'")
    (match,) = [line for line in said if line.startswith("match")]
    assert re.fullmatch(r"match +(\d+) of 51 rows: texts\.score<0\.1 and texts\.source=web", match)
    first = json.loads(
        vlpipe("show", scored, "-n", "1", "--where", "score < 0.1 and source = 'web'", "--json")[0]
    )
    assert any(t["score"] < 0.1 and t["source"] == "web" for t in first["texts"])
    assert vlpipe("show", scored, "--where", "score > 7", "--json") == []


def test_json_lines_are_ascii_and_whole(scored: Path) -> None:
    lines = vlpipe("show", scored, "-n", "100", "--json")
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 51
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert {row["texts"][0]["text"] for row in rows} >= {*HOSTILE[:3], HOSTILE[4]}


def test_sql_with_a_heavy_column(scored: Path) -> None:
    said = vlpipe(
        "show", scored, "--sql", "SELECT count(*) n, sum(octet_length(image)) b FROM rows", "--json"
    )
    found = json.loads(said[0])
    ids = [json.loads(line)["id"] for line in vlpipe("show", scored, "-n", "100", "--json")]
    assert found == {"n": 51, "b": sum(len(picture(int(id_[3:]))) for id_ in ids)}
    table = vlpipe("show", scored, "-n", "2", "--sql", "SELECT id, width FROM rows ORDER BY width DESC")
    assert table[0].split() == ["id", "width"]
    assert table[-1] == "the first 2 rows; -n gives more"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM read_text('/etc/passwd')", "Permission Error"),
        ("COPY (SELECT 1) TO 'out.csv'", "wants one SELECT"),
        ("SELECT 1; SELECT 2", "wants one SELECT"),
        ("SELECT absent FROM rows", "absent"),
        ("INSTALL httpfs", "wants one SELECT"),
        ("SELECT FROM WHERE", "syntax error"),
    ],
)
def test_sql_reads_the_step_and_nothing_else(scored: Path, sql: str, said: str) -> None:
    assert said in vlpipe("show", scored, "--sql", sql, code=1)[-1]
    assert not Path("out.csv").exists()


def test_sql_over_rejects_and_a_shard(scored: Path) -> None:
    rejects = vlpipe(
        "show", scored / "_rejects", "--sql", "SELECT why, count(*) n FROM rows GROUP BY why", "--json"
    )
    assert json.loads(rejects[0]) == {"why": "no_text_kept", "n": 3}
    shard = vlpipe("show", scored / "000001.parquet", "--sql", "SELECT count(*) n FROM rows", "--json")
    assert 0 < json.loads(shard[0])["n"] < 51


def test_the_schema_has_lengths(scored: Path) -> None:
    said = {line.split()[0]: line for line in vlpipe("show", scored, "-n", "0") if line}
    assert said["column"].split() == ["column", "type", "nulls", "min", "max", "length"]
    assert said["id"].split()[-1] == "16"
    assert said["width"].split()[-2:] == ["10", "68"]


def test_lengths_of_texts_bytes_and_lists() -> None:
    def stats(*values: object, kind: pa.DataType) -> dict[str, object]:
        stat: dict[str, object] = {"nulls": 0}
        for value in values:
            count_in(stat, pa.chunked_array([pa.array([value], kind)]))
        return stat

    assert stats("né", None, "", kind=pa.string()) == {"nulls": 1, "min_length": 0, "max_length": 2}
    assert stats(b"abc", kind=pa.binary()) == {"nulls": 0, "min_length": 3, "max_length": 3}
    assert stats([1, 2], [], kind=pa.list_(pa.int8())) == {"nulls": 0, "min_length": 0, "max_length": 2}
    assert stats(None, kind=pa.string()) == {"nulls": 1}
    assert stats(1.5, float("nan"), kind=pa.float32()) == {
        "nulls": 0,
        "not_finite": 1,
        "min": 1.5,
        "max": 1.5,
    }


def test_a_picture_as_half_blocks_and_as_kitty_draws_it() -> None:
    lines = list(drawn(picture(3), kitty=False))
    assert len(lines) == 12  # 24 x 16 pixels, 36 characters wide
    assert all(line.count("\u2580") == COLUMNS and line.endswith("\x1b[0m") for line in lines)
    (line,) = drawn(picture(3), kitty=True)
    sent = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", line))
    assert Image.open(io.BytesIO(base64.b64decode(sent))).size == (24, 16)
    assert list(drawn(b"<svg/>", kitty=False)) == ["<no picture: UnidentifiedImageError>"]
    assert knows_kitty({"TERM": "xterm-kitty"})
    assert not knows_kitty({"TERM": "xterm-256color"})


def test_images_need_a_terminal(scored: Path) -> None:
    said = "\n".join(vlpipe("show", scored, "-n", "1", "--images"))
    assert "\x1b" not in said
    assert "texts" in said
    vlpipe("show", scored, "--images", "--sql", "SELECT 1", code=2)
