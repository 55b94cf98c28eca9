"""Lists of URLs and texts, read in each format; lists of what is blocked or forgotten."""

import contextlib
import tempfile
from pathlib import Path

from kind import Kind, pieces

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.forget.entries import read_entries
from vlpipe.stages.fetching.blocklist import KINDS, load
from vlpipe.stages.lists.captions import read_captions
from vlpipe.stages.lists.list import listed, read_pairs

ROW = "http://a.test/caf\u00e9.jpg{0}a \u201ctext\u201d\n"
TSV = ("url\ttext\n" + ROW.format("\t") * 3).encode()
CSV = ("url,text\n" + ROW.format(",") + 'http://a.test/b.jpg,"a ""b"",\nc"\n').encode()
JSONL = (
    b'{"url": "http://a.test/a.jpg", "text": "a"}\n{"url": "http://a.test/b.jpg", "text": ["a", null, "b"]}\n'
)
JSON = b'[{"url": "http://a.test/a.jpg", "text": "a", "width": 1.0}, {"text": NaN, "url": "http://a.test/b.jpg"}]'
COLUMNS = b'{"url": ["http://a.test/a.jpg", "http://a.test/b.jpg"],\n"text": [["a", "b"], 1.5]}'
TXT = b"# a comment\nurl:http://a.test/a.jpg\ndomain:b.test\nsha256:" + b"0f" * 32 + b"\n"
ENTRIES = b"sha256,domain\n" + b"0f" * 32 + b",b.test\n"
CAPTIONS = b'{"file": "a.jpg", "captions": ["a", "b"]}\n'
FOLDER = tempfile.TemporaryDirectory(prefix="vlpipe-fuzz-")
HERE = Path(FOLDER.name)


def read(data: bytes) -> None:
    """Reads the bytes under each ending. Every line of a list is a row or has its fault, or the file is refused."""
    for ending in (".tsv", ".csv", ".jsonl", ".json"):
        file = HERE / f"list{ending}"
        file.write_bytes(data)
        with contextlib.suppress(VlpipeError):
            pairs = list(read_pairs(str(file), url="url", text="text", reject_bad_lines=True))
            assert sum(one.num_rows for one in listed(iter(pairs), source="web", text_source="web")) == len(
                pairs
            )
    with contextlib.suppress(VlpipeError):
        list(read_captions(str(HERE / "list.jsonl")))
    for ending in (".txt", ".csv"):
        file = HERE / f"entries{ending}"
        file.write_bytes(data)
        with contextlib.suppress(VlpipeError):
            list(read_entries(file, (*KINDS, "id")))
        with contextlib.suppress(VlpipeError):
            load(File(path=str(file)))


KIND = Kind(
    name="lists",
    read=read,
    seeds=(
        *(
            TSV,
            CSV,
            JSONL,
            JSON,
            COLUMNS,
            TXT,
            ENTRIES,
            CAPTIONS,
            TSV.decode().encode("utf-16"),
            JSON.decode().encode("utf-32"),
        ),
        *(
            CSV.replace(b"\n", b"\r\n"),
            TSV.replace(b"\n", b"\r"),
            b"\xef\xbb\xbf" + CSV,
            b"URL\tTEXT\n" + TSV[9:],
        ),
    ),
    pieces=pieces(
        'url¦text¦\t¦,¦"¦""¦"a"¦\n¦\r\n¦\r¦a¦http://a.test/a.jpg¦{¦}¦[¦]¦'
        '{"url": "u", "text": "t"}¦{"url": "u", "text": "t"},¦"a",¦"text": "x", ¦'
        "1,¦1¦:¦\\¦\\u0000¦\\ud800¦null,¦NaN,¦#¦url:http://a.test/\n¦domain:b.test\n¦\xc3¦\xe2\x80\xa8¦"
        "x,y\n¦x\ty\n"
    ),
    frames=(
        *(
            (b"url\ttext\n", b"\n"),
            (b"url,text\n", b"\n"),
            (b'url,text\n"', b'",a\n'),
            (b"url,text", b"\n"),
            (b"url\ttext", b"\n"),
            (b"", b""),
        ),
        *(
            (b"[", b'{"url": "u", "text": "t"}]'),
            (b'[{"url": "u", "text": [', b"null]}]"),
            (b'{"url": "u", "text": "', b'"}\n'),
            (b"{", b"}\n"),
        ),
        *(
            (b'{"url": "u", "text": "t", ', b'"x": 1}\n'),
            (b"\xff\xfe", b""),
            (b"url:", b"\n"),
            (b"domain:", b"\n"),
            (b"url,domain\n", b"\n"),
        ),
    ),
)
