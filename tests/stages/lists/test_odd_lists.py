"""Lists as people's programs write them: every row is read as it was meant, or refused with its line and the way out."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError, WorkflowError
from vlpipe.pipeline.storage import text_lines
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.lists.list import Pair, count_at_most, listed, read_pairs
from vlpipe.stages.lists.text_limit import TextLimit

TEXT = "url\ttext\nhttp://a\tcaf\u00e9 \u65e5\u672c \U0001f600\nhttp://b\tsaid \u0a0a \u0d0d\n"
WANTED = [Pair("http://a", "caf\u00e9 \u65e5\u672c \U0001f600"), Pair("http://b", "said \u0a0a \u0d0d")]


def read(path: Path, **more: Any) -> list[Pair]:
    return list(read_pairs(str(path), **{"url": "url", "text": "text", **more}))


def said(path: Path, **more: Any) -> str:
    with pytest.raises(VlpipeError) as caught:
        read(path, **more)
    return str(caught.value).removeprefix(f"{path.parent}/")


DUPLICATES = {
    "a.csv": b"url,text,text\nhttp://a,good,WRONG\n",
    "a.tsv": b"url\ttext\ttext\nhttp://a\tgood\tWRONG\n",
    "b.csv": b"URL,url,URL,TEXT,TEXT\nhttp://a,http://b,http://c,good,WRONG\n",
    "a.jsonl": b'{"url": "http://a", "text": "good", "text": "WRONG"}\n',
    "b.jsonl": b'{"url": "http://a", "t\\u0065xt": "good", "text": "WRONG"}\n',
    "a.json": b'[{"url": "http://a", "text": "good", "text": "WRONG"}]',
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DUPLICATES[name])
    assert " times; wanted one" in said(tmp_path / name)


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["http://a"]), pa.array(["good"]), pa.array(["WRONG"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["url", "text", "text"]), tmp_path / "a.parquet")
    assert said(tmp_path / "a.parquet") == "a.parquet has the column 'text' 2 times; wanted one"


def test_a_repeated_key_of_json_is_only_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(DUPLICATES["a.jsonl"] + b'{"url": "http://b", "text": "fine"}\n')
    bad, fine = read(tmp_path / "a.jsonl", reject_bad_lines=True)
    assert bad.fault == "a.jsonl line 1 has the column 'text' 2 times; wanted one"
    assert fine == Pair("http://b", "fine")


def test_columns_that_no_one_reads_may_repeat(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b",,url,text\n1,2,http://a,good\n")
    assert read(tmp_path / "a.csv") == [Pair("http://a", "good")]


ENCODINGS = [
    ("utf-16", "utf-8"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16"), ("utf-16-be", "utf-16"),
    ("utf-16-le", "utf-16-le"), ("utf-16-be", "UTF-16BE"), ("utf-32", "utf-8"), ("utf-32", "utf-32"),
    ("utf-32-le", "utf-32"), ("utf-32-be", "utf-32"), ("utf-8-sig", "utf-8"), ("utf-8", "utf-8-sig"),
    ("gb18030", "gb18030"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "declared"), ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "json"])
def test_encodings_and_line_ends(tmp_path: Path, written: str, declared: str, end: str, ending: str) -> None:
    content = TEXT
    if ending == "csv":
        content = TEXT.replace("\t", ",")
    elif ending != "tsv":
        content = "".join(
            json.dumps({"url": p.url, "text": p.text}, ensure_ascii=False) + "\n" for p in WANTED
        )
    if ending == "json":
        content = f"[{content.replace(chr(10), ',', 1)}]\n"
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content.replace("\n", end).encode(written))
    assert read(path, encoding=declared) == WANTED
    assert count_at_most(str(path)) >= 2


def test_a_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for mark, codec in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"\xef\xbb\xbf", "utf-8")):
        (tmp_path / "a.tsv").write_bytes(mark + TEXT.encode(codec))
        assert read(tmp_path / "a.tsv", encoding=codec) == WANTED


def test_an_encoding_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(TEXT.encode("utf-16-le"))
    assert said(path).startswith("a.tsv is not UTF-8: it looks like utf-16-le without a byte-order mark")
    path.write_bytes(TEXT.encode("utf-16"))
    assert said(path, encoding="utf-16-be") == (
        "a.tsv begins with the byte-order mark of utf-16-le, but `encoding` is utf-16-be"
    )
    path.write_bytes(TEXT.encode("utf-8-sig"))
    assert "byte-order mark of utf-8, but `encoding` is latin-1" in said(path, encoding="latin-1")
    assert "there is no encoding 'base64'" in said(path, encoding="base64")


def test_one_undecodable_line_of_utf16_is_one_row(tmp_path: Path) -> None:
    lines = [line.encode("utf-16-le") for line in TEXT.splitlines(keepends=True)]
    lines.insert(2, b"x\x00\x00\xd8\t\x00y\x00\n\x00")  # half of a surrogate pair
    (tmp_path / "a.tsv").write_bytes(b"".join([*lines, b"z\x00\t"]))
    found = read(tmp_path / "a.tsv", encoding="utf-16", reject_bad_lines=True)
    assert [found[0], found[2]] == WANTED
    assert found[1].fault == "a.tsv line 3 is not UTF-16-LE: it cannot be decoded at character 2"
    assert found[3].fault.startswith("a.tsv line 5 is not UTF-16-LE")
    assert len(found) == 4


def test_a_lone_carriage_return_in_a_text_stays(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"url\ttext\nhttp://a\tone\rtwo\n")
    assert read(tmp_path / "a.tsv") == [Pair("http://a", "one\rtwo")]
    (tmp_path / "a.csv").write_bytes(b'url,text\rhttp://a,"one\rtwo"\rhttp://b,\r')
    assert read(tmp_path / "a.csv") == [Pair("http://a", "one\rtwo"), Pair("http://b", "")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", b"\nurl\ttext\n\nhttp://a\tx\n\r\n  \nhttp://b\ty\n\n"),
        ("a.csv", b"\nurl,text\n\nhttp://a,x\n\r\n  \nhttp://b,y\n\n"),
        ("a.jsonl", b'\n{"url": "http://a", "text": "x"}\n\n\r\n  \n{"url": "http://b", "text": "y"}\n\n'),
        ("a.json", b'\n[{"url": "http://a", "text": "x"}\n\n,\r\n  {"url": "http://b", "text": "y"}\n\n]\n'),
        ("b.json", b'{"url": "http://a", "text": "x"}\n\n{"url": "http://b", "text": "y"}\n'),
    ],
)
def test_blank_lines_are_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == [Pair("http://a", "x"), Pair("http://b", "y")]


def test_a_long_field_is_a_text_like_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'url,text\nhttp://a,"{"x" * 140_000}"\nhttp://b,y\n')
    assert [len(pair.text) for pair in read(tmp_path / "a.csv")] == [140_000, 1]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_line_that_is_too_long_is_one_bad_row_in_bounded_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 10_000)
    start = {"csv": 'http://a,"', "tsv": "http://a\t", "jsonl": '{"url": "http://a", "text": "'}[name[2:]]
    end = {"csv": '"', "tsv": "", "jsonl": '"}'}[name[2:]]
    fine = {"csv": "http://b,y", "tsv": "http://b\ty", "jsonl": '{"url": "http://b", "text": "y"}'}[name[2:]]
    header = {"csv": "url,text\n", "tsv": "url\ttext\n", "jsonl": ""}[name[2:]]
    with open(tmp_path / name, "w") as file:
        file.write(header + start)
        for _ in range(200):
            file.write("x" * 100_000)
        file.write(f"{end}\n{fine}\n")
    tracemalloc.start()
    bad, good = read(tmp_path / name, reject_bad_lines=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is longer than 10,000 bytes" in bad.fault
    assert good == Pair("http://b", "y")
    assert peak < 6_000_000


def test_nan_is_null(tmp_path: Path) -> None:
    nan = float("nan")
    pq.write_table(pa.table({"url": ["u"] * 3, "text": [nan, 1.5, None]}), tmp_path / "a.parquet")
    assert [pair.text for pair in read(tmp_path / "a.parquet")] == ["", "1.5", ""]
    lists = pa.array([[nan, 2.5], None, [nan]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"url": ["u"] * 3, "text": lists}), tmp_path / "b.parquet")
    assert [pair.texts for pair in read(tmp_path / "b.parquet")] == [("2.5",), (), ()]
    (tmp_path / "a.jsonl").write_text('{"url": "u", "text": NaN}\n{"url": "u", "text": [NaN, "nan"]}\n')
    assert [pair.texts for pair in read(tmp_path / "a.jsonl")] == [(), ("nan",)]


TYPES = [
    pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary()), pa.list_view(pa.string()),
    pa.list_(pa.dictionary(pa.int32(), pa.string())), pa.list_(pa.string_view()),
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_list_column_of_parquet_gives_all_its_texts(tmp_path: Path, kind: pa.DataType) -> None:
    values = [["a", "", None, "b"], None, [], ["c"]]
    if pa.types.is_binary(kind.value_type):
        values = [v and [one and one.encode() for one in v] for v in values]  # type: ignore[misc]
    column = pa.array(values, kind)
    table = pa.table({"url": ["u1", "u2", "u3", "u4"], "text": column})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [pair.texts for pair in read(tmp_path / "a.parquet")] == [("a", "b"), (), (), ("c",)]


def test_a_json_list_gives_all_its_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"url": "u", "text": ["a", null, "b"]}\n{"url": "u", "text": [["a"]]}\n'
    )
    first, bad = read(tmp_path / "a.jsonl", reject_bad_lines=True)
    assert first.texts == ("a", "b")
    assert bad.fault.startswith("a.jsonl line 2: wanted text, got")
    rows = pa.concat_tables(listed(iter([first]), source="web", text_source="web"))
    assert [one["text"] for one in rows["texts"][0].as_py()] == ["a", "b"]


def test_a_list_of_one_text_is_the_same_row_as_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"url": "u", "text": ["a"]}\n')
    (tmp_path / "b.jsonl").write_text('{"url": "u", "text": "a"}\n')
    a, b = (
        pa.concat_tables(listed(iter(read(tmp_path / n)), source="w", text_source="web"))
        for n in ("a.jsonl", "b.jsonl")
    )
    assert a.equals(b)


@pytest.mark.parametrize("header", ["URL,TEXT", "Url, Text", "url ,TEXT,Txt"])
def test_columns_are_found_without_regard_to_case(tmp_path: Path, header: str) -> None:
    more = ",z" * (header.count(",") - 1)
    (tmp_path / "a.csv").write_text(f"{header}\nhttp://a,x{more}\n")
    assert read(tmp_path / "a.csv") == [Pair("http://a", "x")]


def test_the_name_as_written_goes_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("URL,url,text,TEXT\n1,http://a,x,2\n")
    assert read(tmp_path / "a.csv") == [Pair("http://a", "x")]


def planned(tmp_path: Path, name: str, *sets: str) -> str:
    (tmp_path / "w.yaml").write_text(
        f'steps:\n  images: {{use: "fetching.images:FetchImages", list: {tmp_path / name}}}\n'
    )
    try:
        Workflow.load(str(tmp_path / "w.yaml"), sets=sets)
    except WorkflowError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("image_url,caption", "--set images.url=image_url --set images.text=caption"),
        ("link,ALT", "--set images.url=link --set images.text=ALT"),
        ("URL,Url,text", "--set images.url=URL"),
        ("url,label", "--set images.text=COLUMN"),
    ],
)
def test_the_plan_says_what_to_type(tmp_path: Path, header: str, options: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n" + ",".join(["http://a"] * (header.count(",") + 1)) + "\n")
    text = planned(tmp_path, "a.csv")
    assert text.endswith(f"; use {options}")
    if "COLUMN" not in options:
        assert planned(tmp_path, "a.csv", *options.replace("--set ", "").split()) == ""


def test_the_plan_says_which_encoding_to_type(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(TEXT.encode("utf-16-be"))
    assert planned(tmp_path, "a.tsv").endswith("; use --set images.encoding=utf-16-be")
    assert planned(tmp_path, "a.tsv", "images.encoding=utf-16-be") == ""


def test_a_text_has_a_maximum_length() -> None:
    pairs = [Pair("u", "0123456789", more_texts=("short",)), Pair("u", "0123456789ab")]
    limit = TextLimit(max_chars=8)
    rows = pa.concat_tables(listed(iter(pairs), source="w", text_source="web", limit=limit))
    texts = [[(one["text"], one["kept"], one["why"]) for one in row] for row in rows["texts"].to_pylist()]
    assert texts == [
        [("01234567", False, "too_long"), ("short", None, None)],
        [("01234567", False, "too_long")],
    ]
    cut = pa.concat_tables(
        listed(iter(pairs), source="w", text_source="web", limit=TextLimit(max_chars=8, longer="cut"))
    )
    assert [[one["text"] for one in row] for row in cut["texts"].to_pylist()] == [
        ["01234567", "short"],
        ["01234567"],
    ]
    assert all(one["kept"] is None for row in cut["texts"].to_pylist() for one in row)
    assert cut["id"].equals(rows["id"])
    assert len(set(cut["id"].to_pylist())) == 2


def test_batches_are_bounded_in_bytes() -> None:
    pairs = (Pair(f"u{n}", "x" * 1_000_000) for n in range(80))
    sizes = [table.num_rows for table in listed(pairs, source="w", text_source="web")]
    assert sum(sizes) == 80
    assert max(sizes) == 34  # 32 MiB


@pytest.mark.slow
def test_parquet_batches_are_bounded_in_bytes(tmp_path: Path) -> None:
    texts = [chr(65 + n % 26) * 100_000 + str(n) for n in range(1_500)]
    pq.write_table(
        pa.table({"url": [str(n) for n in range(1_500)], "text": texts}),
        tmp_path / "a.parquet",
        use_dictionary=False,
    )
    before = pa.total_allocated_bytes()
    most, num = 0, 0
    for pair in read_pairs(str(tmp_path / "a.parquet"), url="url", text="text"):
        most = max(most, pa.total_allocated_bytes() - before)
        assert pair.text == texts[num]
        num += 1
    assert num == 1_500
    assert most < 150_000_000  # of 150 MB: a batch, and the pages that are read


JSON_FAULTS = {
    b'[{"url": "u", "text": "t"}': "a.json item 1 must be followed by ',' or ']', but is followed by the end of the file",
    b'[{"url": "u", "text": "t"} {"url"': "a.json item 1 must be followed by ',' or ']', but is followed by '{\"url\"'",
    b'[{"url": "u", "text": "t"},': "a.json item 2 is not valid JSON, or the file is truncated: ",
    b'[{"url": "u", "text": "t"}] x': "a.json: nothing may follow the JSON array, but it is followed by 'x'",
    b'[{"url": "u"}]': "a.json item 1 has no column 'text'; there are: url",
    b"[[1]]": "a.json item 1: wanted a JSON object with the keys 'url' and 'text'",
    b'[{"url": "caf\xe9"}]': "a.json is not UTF-8: invalid continuation byte",
    b"[" * 100_000: "a.json item 1 cannot be read: its JSON is nested too deeply",
}


@pytest.mark.parametrize("content", JSON_FAULTS, ids=range(len(JSON_FAULTS)))
def test_a_broken_array_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert said(tmp_path / "a.json").startswith(JSON_FAULTS[content])


@pytest.mark.slow
def test_a_long_array_is_read_in_bounded_memory(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "w") as file:
        file.write("[")
        for n in range(60_000):
            file.write(
                f'{"," if n else ""}\n{{"caption": "text {n} {"x" * 300}", "url": "http://a.test/{n}"}}'
            )
        file.write("]")
    tracemalloc.start()
    num = 0
    for pair in read_pairs(str(tmp_path / "a.json"), url="url", text="caption"):
        assert pair.url == f"http://a.test/{num}"
        num += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num == 60_000
    assert peak < 12_000_000  # of a file of 21 MB


def test_laions_own_list(data: Callable[[str], Path]) -> None:
    pairs = read(data("alttext/laion_10000.parquet"))
    assert len(pairs) == 10_000
    assert (
        sum(pair.url.startswith("http") for pair in pairs) == 9_999
    )  # one row of the set has another order of columns
