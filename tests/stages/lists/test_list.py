"""Lists in four formats: the same rows from each, every row of the real ones, errors that name the line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import LISTED
from vlpipe.stages.fetching.images import FetchImages
from vlpipe.stages.lists.list import BATCH_ROWS, EXPECTED, Pair, listed, read_pairs

PAIRS = [
    Pair("http://a.test/1.jpg", "a dog"),
    Pair("http://a.test/2.jpg", 'said "hi", caf\u00e9'),
    Pair("", "no url"),
    Pair("http://a.test/1.jpg", "a dog"),
    Pair("http://a.test/3.jpg", ""),
]


def rows(pairs: list[Pair]) -> pa.Table:
    return pa.concat_tables(listed(iter(pairs), source="web", text_source="web"))


def read(path: Path, **names: str) -> list[Pair]:
    return list(read_pairs(str(path), **{"url": "url", "text": "text", **names}))


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def write(path: Path, pairs: list[Pair]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(
            pa.table({"text": [p.text for p in pairs], "url": [p.url or None for p in pairs]}), path
        )
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, **p._asdict()}) + "\n" for p in pairs))
    elif path.suffix == ".csv":
        path.write_text("text,url\n" + "".join(f"{quoted(p.text)},{p.url}\r\n" for p in pairs), newline="")
    else:
        path.write_text("url\ttext\n" + "".join(f"{p.url}\t{p.text}\n" for p in pairs))
    return path


@pytest.mark.parametrize("ending", ["parquet", "tsv", "csv", "jsonl"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, ending: str) -> None:
    assert read(write(tmp_path / f"list.{ending}", PAIRS)) == PAIRS


def test_listed_rows() -> None:
    table = rows(PAIRS)
    assert table.schema.equals(LISTED)
    assert len(set(table["id"].to_pylist())) == 5  # the repeated pair too
    assert [len(texts) for texts in table["texts"].to_pylist()] == [1, 1, 1, 1, 0]
    assert table["texts"][0].as_py()[0] == {
        "text": "a dog",
        "source": "web",
        "model": None,
        "score": None,
        "kept": None,
        "why": None,
    }


def test_a_longer_list_starts_with_the_same_rows() -> None:
    pairs = [Pair(f"http://a.test/{n % 700}", str(n % 3)) for n in range(2 * BATCH_ROWS)]
    assert rows(pairs)[: BATCH_ROWS + 5].equals(rows(pairs[: BATCH_ROWS + 5]))


def test_a_folder_is_its_files_in_order_of_name(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", PAIRS[:2])
    write(tmp_path / "a.tsv", PAIRS[2:])
    (tmp_path / "_SUCCESS.csv").write_text("")
    (tmp_path / "readme.md").write_text("")
    assert read(tmp_path) == PAIRS[2:] + PAIRS[:2]


def test_without_a_header_line_the_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text("a dog\thttp://a.test/1\r\na cat\thttp://a.test/2")
    pairs = list(read_pairs(str(path), url="url", text="text", columns=("text", "url")))
    assert pairs == [Pair("http://a.test/1", "a dog"), Pair("http://a.test/2", "a cat")]


def test_texts_are_taken_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        '{"url": "u", "text": 1.50}\n\n{"url": "u", "text": "a\\tb\\u0007"}\n{"url": "u", "text": null}'
    )
    assert [pair.text for pair in read(path)] == ["1.50", "a\tb\x07", ""]
    numbers = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["u"], "text": [7]}), numbers)
    assert read(numbers) == [Pair("u", "7")]
    csv = tmp_path / "list.csv"
    csv.write_text('\ufeffurl,text\nu,"two\nlines"\n', encoding="utf-8")
    assert read(csv) == [Pair("u", "two\nlines")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", b"url\ttext\nu\tok\nu\tcaf\xe9 x\n", "a.tsv line 3 is not UTF-8: invalid continuation"),
        ("a.tsv", b"url\ttext\nu\ta\tb\n", "a.tsv line 2 has 3 field(s), but the list has 2 columns: url, text"),
        (
            "a.tsv",
            b"link\ttext\n",
            "a.tsv line 1 has no column 'url'; there are: link, text;"
            " for a list without a header line give `columns`",
        ),
        ("a.csv", b"url,text\nu,ok\nu,\"never closed\n", "a.csv line 3: unexpected end of data"),
        ("a.csv", b"url,text\nu,\xff\n", "a.csv line 2 is not UTF-8: invalid start byte at byte 3"),
        ("a.jsonl", b'{"url": "u", "text": "t"}\n{"url": "u",\n', "a.jsonl line 2 is not valid JSON: "),
        ("a.jsonl", b'{"url": "u", "txt": "t"}\n', "a.jsonl line 1 has no column 'text'; there are: url, txt"),
        ("a.jsonl", b'{"url": ["u"], "text": "t"}\n', "a.jsonl line 1: wanted text, got [\"u\"]"),
        ("a.jsonl", b'{"url": "u", "text": "\\ud83d"}\n', "a.jsonl line 1: the text has an unpaired surrogate"),
        ("a.jsonl", b"[1]\n", "a.jsonl line 1: wanted a JSON object with the keys 'url' and 'text'"),
        ("a.parquet", b"PAR1 no", "a.parquet is not a readable Parquet file: "),
        ("a.txt", b"u", "a.txt cannot be read as a list: its name must end in .parquet, .tsv, .csv, .jsonl, .json"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VlpipeError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{tmp_path}/{said}")


def test_parquet_faults(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["u", "u"], "text": [b"fine", b"caf\xe9"]}), path)
    with pytest.raises(VlpipeError, match=r"a.parquet row 2 is not UTF-8: unexpected end of data at byte 4$"):
        read(path)
    pq.write_table(pa.table({"url": ["u"], "text": [[["a", "b"]]]}), path)
    with pytest.raises(
        VlpipeError, match=r"a.parquet column 'text' has the type list<.*; wanted text, or a list of texts$"
    ):
        read(path)
    with pytest.raises(VlpipeError, match=r"a.parquet has no column 'alt'; there are: url, text$"):
        read(path, text="alt")
    with pytest.raises(VlpipeError, match=r"a Parquet file names its own$"):
        list(read_pairs(str(path), url="url", text="text", columns=("url", "text")))


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=r"^there is no file or folder .*/none.tsv$"):
        read(tmp_path / "none.tsv")
    with pytest.raises(
        VlpipeError, match=r"contains no list: no file name ends in .parquet, .tsv, .csv, .jsonl, .json$"
    ):
        read(tmp_path)


def test_every_row_of_the_real_lists(data: Callable[[str], Path]) -> None:
    cc3m = list(
        read_pairs(str(data("alttext/cc3m_validation.tsv")), url="url", text="text", columns=("text", "url"))
    )
    assert len(cc3m) == 15_833
    assert cc3m[0].text == "author : a life in photography -- in pictures"
    assert all(pair.url.startswith("http") for pair in cc3m)
    laion = read(data("alttext/laion_10000.parquet"), url="URL", text="TEXT")
    assert len(laion) == 10_000
    assert len(set(rows(cc3m + laion)["id"].to_pylist())) == 25_833


BAD_LINES = {
    "a.tsv": (b"url\ttext\nu1\tok\nu2\tcaf\xe9\nu3\ta\tb\nu4\tfine\n", ["ok", "u2\tcaf\\xe9", "u3\ta\tb", "fine"]),
    "a.csv": (b'url,text\nu1,ok\nu2,"caf\xe9\nmore"\nu3,a,b\nu4,fine\n', ["ok", "u2,\"caf\\xe9", "u3\ta\tb", "fine"]),
    "a.jsonl": (
        b'{"url":"u1","text":"ok"}\n{"url":\n{"url":"u3","txt":1}\n{"url":"u4","text":{"x":[]}}\n[1]\n',
        ["ok", '{"url":', '{"url": "u3", "txt": "1"}', '{"x": []}', '["1"]'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines_become_rows_that_say_what_is_wrong(tmp_path: Path, name: str) -> None:
    content, shown = BAD_LINES[name]
    (tmp_path / name).write_bytes(content)
    found = list(read_pairs(str(tmp_path / name), url="url", text="text", reject_bad_lines=True))
    assert [pair.text for pair in found] == shown
    for pair in found:
        assert bool(pair.fault) == (pair.url == "")
        assert not pair.fault or pair.fault.startswith(f"{name} line ")  # the folder is no part of the rows


def test_bad_lines_are_rejects_of_the_stage(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(BAD_LINES["a.tsv"][0].replace(b"u1", b"").replace(b"u4", b"file:///x"))
    stage = FetchImages(list=ListFile(path=str(tmp_path / "a.tsv")), bad_lines="reject")
    listed_rows = pa.concat_tables(stage.rows())
    assert listed_rows.schema.equals(stage.row_schema())
    out = run_map(stage, listed_rows)
    assert [reject.why for reject in out.rejects] == ["no_url", "bad_line", "bad_line", "bad_url"]
    assert out.rejects[1].detail == "a.tsv line 3 is not UTF-8: unexpected end of data at byte 7"


def test_a_declared_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes("url\ttext\nu\tcaf\xe9\n".encode("latin-1"))
    assert read(tmp_path / "a.tsv", encoding="latin-1") == [Pair("u", "caf\xe9")]
    (tmp_path / "a.tsv").write_bytes("url\ttext\nu\t\u65e5\u672c\n".encode("shift_jis"))
    assert read(tmp_path / "a.tsv", encoding="shift_jis") == [Pair("u", "\u65e5\u672c")]
    with pytest.raises(VlpipeError, match=r"a.tsv line 2 is not EUC_JP: "):
        read(tmp_path / "a.tsv", encoding="euc_jp")
    with pytest.raises(VlpipeError, match=r"there is no encoding 'latin-one'"):
        read(tmp_path / "a.tsv", encoding="latin-one")


def test_an_expected_digest_travels_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,md5,text\nu,ABC,t\nu,,t\n")
    pairs = list(read_pairs(str(path), url="url", text="text", expected="md5"))
    assert [pair.expected for pair in pairs] == ["ABC", ""]
    table = pa.concat_tables(listed(iter(pairs), source="web", text_source="web", more=[EXPECTED]))
    assert table["expected"].to_pylist() == ["ABC", ""]
    assert table["id"].to_pylist() == rows([Pair("u", "t"), Pair("u", "t")])["id"].to_pylist()
