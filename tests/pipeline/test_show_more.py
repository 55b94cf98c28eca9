"""`show --where` on fields of lists, `--sql`, `--json`, `--images`; lengths from the receipts."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cli_helpers import Runs, vlpipe
from look_at import HOSTILE, PAGES, TEXTS, picture
from PIL import Image

from vlpipe.pipeline.cli.sixel import knows_sixel, says_sixel
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
    lines = list(drawn(picture(3), "blocks"))
    assert len(lines) == 12  # 24 x 16 pixels, 36 characters wide
    assert all(line.count("\u2580") == COLUMNS and line.endswith("\x1b[0m") for line in lines)
    (line,) = drawn(picture(3), "kitty")
    sent = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", line))
    assert Image.open(io.BytesIO(base64.b64decode(sent))).size == (24, 16)
    assert list(drawn(b"<svg/>", "blocks")) == ["<no picture: UnidentifiedImageError>"]
    assert knows_kitty({"TERM": "xterm-kitty"})
    assert not knows_kitty({"TERM": "xterm-256color"})


def read_sixels(text: str) -> Image.Image:
    """The picture that a terminal draws, read by the rules of DEC's manual alone."""
    start = re.match(r'\x1bPq"1;1;(\d+);(\d+)', text)
    assert start is not None
    assert text.endswith("\x1b\\")
    found = Image.new("RGB", (int(start[1]), int(start[2])), "magenta")
    colours: dict[int, tuple[int, int, int]] = {}
    x = y = colour = 0
    for part in re.findall(r"#\d+(?:;2;\d+;\d+;\d+)?|![0-9]+[?-~]|[?-~]|\$|-", text[start.end() : -2]):
        if part[0] == "#":
            number, *rgb = map(int, re.findall(r"\d+", part))
            if rgb:
                colours[number] = tuple(round(255 * one / 100) for one in rgb[1:])  # type: ignore[assignment]
            colour = number
        elif part in "$-":
            x, y = 0, y + 6 * (part == "-")
        else:
            num = int(part[1:-1]) if part[0] == "!" else 1
            for k in (k for k in range(6) if (ord(part[-1]) - 63) >> k & 1):
                for at in range(x, x + num):
                    found.putpixel((at, y + k), colours[colour])
            x += num
    return found


def test_a_picture_as_sixels() -> None:
    """The terminal draws each pixel, within the steps of 1 % that colours have."""
    image = Image.linear_gradient("L").resize((40, 31)).convert("RGB")
    image.putpixel((39, 30), (255, 0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (line,) = drawn(buffer.getvalue(), "sixel")
    seen = read_sixels(line)
    assert seen.size == (40, 31)
    gaps = np.abs(np.asarray(seen, int) - np.asarray(image, int))
    assert gaps.max() <= 4
    assert [*drawn(b"<svg/>", "sixel")] == ["<no picture: UnidentifiedImageError>"]


@pytest.mark.parametrize(
    ("answer", "knows"),
    [
        (b"\x1b[?62;4;6c", True),
        (b"\x1b[?64c", False),
        (b"x\x1b[?4c", True),
        (b"\x1b[?62;14;40c", False),
        (b"", False),
    ],
)
def test_what_a_terminal_answers(answer: bytes, knows: bool) -> None:
    assert says_sixel(answer) is knows


def test_a_terminal_is_asked_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of our own: what it is asked, and what it answers; one that says nothing is not waited for long."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with os.fdopen(theirs, "r+b", buffering=0) as file:
        monkeypatch.setattr(sys, "stdin", file)
        monkeypatch.setattr(sys, "stdout", file)
        asked: list[bytes] = []

        def answer() -> None:
            asked.append(os.read(ours, 64))
            os.write(ours, b"\x1b[?62;4c")

        terminal = threading.Thread(target=answer)
        terminal.start()
        assert knows_sixel({"TERM": "xterm"})
        terminal.join()
        assert asked == [b"\x1b[c"]
        assert not knows_sixel({"TERM": "xterm"})
        assert not knows_sixel({"TERM": "dumb"})
        assert termios.tcgetattr(theirs) == before
    os.close(ours)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert not knows_sixel({"TERM": "xterm"})


def test_images_need_a_terminal(scored: Path) -> None:
    said = "\n".join(vlpipe("show", scored, "-n", "1", "--images"))
    assert "\x1b" not in said
    assert "texts" in said
    vlpipe("show", scored, "--images", "--sql", "SELECT 1", code=2)
