"""Lists as people's programs write them: what is odd is read, or refused with its line; nothing is left out silently."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forget.entries import read_entries

LONE_CR = "the line contains a carriage return; wanted lines that end in LF or CR LF"
REFUSED = [
    ("a.csv", b"url,note\nhttp://a,x\ry\n", f"a.csv line 2: {LONE_CR}"),
    ("a.txt", b"id:a\rid:b\n", f"a.txt line 1: {LONE_CR}"),
    (
        "a.csv",
        b'url,note\n"http://a,x\n',
        "a.csv line 2: unexpected end of data; is a quotation mark left open?",
    ),
    ("a.csv", b'"ur', "a.csv line 1: unexpected end of data; is a quotation mark left open?"),
    ("a.csv", b'url,note\n\nx,"two\nlines"\n"y"x,1\n', "a.csv line 5: ',' expected after '\"'"),
    ("a.csv", b"url,note,url\nx,n,y\n", "a.csv has the column 'url' 2 times; wanted one"),
    ("a.csv", b"url, URL\nx,y\n", "a.csv has the column 'url' 2 times; wanted one"),
    ("a.csv", b"note,ID\nx,y\n", "a.csv has a column 'ID'; rename it to 'id'"),
    ("a.csv", b"id,url\nx,y,z\n", "a.csv line 2 has 3 field(s), but the header has 2"),
    ("a.csv", b"", "a.csv has none of the columns id, url; its columns are []"),
    (
        "a.csv",
        "id\nx\n".encode("utf-16-le"),
        "a.csv is not UTF-8: it looks like utf-16-le without a byte-order mark",
    ),
    ("a.csv", b"id\nx\nc\xe9\n", "a.csv line 3 is not UTF-8"),
    ("a.parquet", b"PAR1", "a.parquet cannot be read as Parquet: "),
]
READ = [
    ("a.csv", b"\xef\xbb\xbfurl\r\nhttp://a\r\n", [("url", "http://a")]),
    ("a.csv", b"url\rhttp://a\rhttp://b", [("url", "http://a"), ("url", "http://b")]),
    ("a.txt", b"id:a\rid:b\r", [("id", "a"), ("id", "b")]),
    ("a.csv", "id\nx\u0a0a\n".encode("utf-16"), [("id", "x\u0a0a")]),
    ("a.txt", "id:x\r\n".encode("utf-32"), [("id", "x")]),
    ("a.txt", b"\xef\xbb\xbfid:a\r\n# x\r\nid: b \r\n", [("id", "a"), ("id", "b")]),
    ("a.csv", b"url,note\nhttp://a," + b"x" * 200_000 + b"\n", [("url", "http://a")]),
    ("a.csv", b'note,id,note\n"a\rb",x,\n\n,,\n,y,"two\nlines"\n', [("id", "x"), ("id", "y")]),
]


@pytest.mark.parametrize(("name", "data", "error"), REFUSED)
def test_what_is_refused_says_where(tmp_path: Path, name: str, data: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VlpipeError) as said:
        list(read_entries(tmp_path / name, ("id", "url")))
    assert str(said.value).startswith(f"{tmp_path}/{error}")


@pytest.mark.parametrize(("name", "data", "wanted"), READ)
def test_what_is_read(tmp_path: Path, name: str, data: bytes, wanted: list[tuple[str, str]]) -> None:
    (tmp_path / name).write_bytes(data)
    assert [(kind, value) for _, kind, value in read_entries(tmp_path / name, ("id", "url"))] == wanted


def test_a_parquet_list_with_one_column_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(VlpipeError, match="has the column 'id' 2 times"):
        list(read_entries(tmp_path / "a.parquet", ("id",)))


def test_a_parquet_list_that_is_cut_in_its_pages(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [f"{n}" for n in range(10_000)]}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:4000] = bytes(3996)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(VlpipeError, match=r"a\.parquet cannot be read as Parquet"):
        list(read_entries(tmp_path / "a.parquet", ("id",)))


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.large_string()], ids=str
)
def test_a_parquet_list_with_another_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"id": pa.array(["a", None, "b"]).cast(kind)}), tmp_path / "a.parquet")
    assert [value for _, _, value in read_entries(tmp_path / "a.parquet", ("id",))] == ["a", "b"]


@pytest.mark.slow
def test_a_quotation_mark_that_is_left_open_does_not_collect_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'url,note\nhttp://a,"x\n' + b"http://b,y\n" * 2_000_000)
    with pytest.raises(VlpipeError, match=r"a.csv line 2: field larger than field limit"):
        list(read_entries(tmp_path / "a.csv", ("url",)))
