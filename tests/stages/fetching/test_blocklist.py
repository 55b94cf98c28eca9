"""What is blocked is not asked for, not decoded, not kept, and not named."""

from __future__ import annotations

import hashlib
import tracemalloc
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import LISTED
from vlpipe.stages.fetching.blocklist import Blocklist, DropBlocked, load, spellings
from vlpipe.stages.fetching.images import FetchImages


@dataclass(frozen=True, kw_only=True)
class LocalImages(FetchImages):
    """As the real stage, but the host is at a port that listens already."""

    ports: dict[str, int]

    def loopback(self) -> AbstractContextManager[Mapping[str, int]]:
        return nullcontext(self.ports)


def sha(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def md5(text: str | bytes) -> str:
    return hashlib.md5(text.encode() if isinstance(text, str) else text).hexdigest()


def written(path: Path, *lines: str) -> File:
    path.write_text("\n".join(lines))
    return File(path=str(path), digest=sha("\n".join(lines)))


def blocked(blocklist: Blocklist, url: str = "http://x.test/", data: bytes = b"") -> str:
    fault = blocklist.check_url(url) or blocklist.check_bytes(data)
    return "" if fault is None else f"{fault.why} {fault.detail}"


def test_each_kind_of_rule(tmp_path: Path) -> None:
    found = load(
        written(
            tmp_path / "l.txt",
            f"sha256:{sha('bad bytes').upper()}",
            f"md5:{md5('worse bytes')}",
            f"url_md5:{md5('http://a.test/A.jpg?x=1')}",
            f"url_sha256:{sha('b.test/b')}",
            "url:https://c.test/c%20c",
            "domain:d.test",
        )
    )
    assert blocked(found, data=b"bad bytes") == blocked(found, data=b"worse bytes") == "blocked content"
    for url in (
        "http://a.test/A.jpg?x=1",
        " http://a.test/A.jpg?x=1#top",
        "https://B.test:443/b/",
        "http://c.test/c c",
    ):
        assert blocked(found, url) == "blocked url", url
    assert blocked(found, "http://www.D.test./any") == blocked(found, "//d.test:81") == "blocked domain"
    for url in ("http://a.test/a.jpg?x=1", "http://bd.test/", "http://d.test.org/", "no url", "http://[x/"):
        assert blocked(found, url, b"fine") == ""


@pytest.mark.parametrize(
    "there", ["http://www.m\u00fcnchen.test/\u00e4 b", "http://www.XN--mnchen-3ya.test/%C3%A4%20b"]
)
@pytest.mark.parametrize(
    "entry",
    [
        "domain:M\u00dcNCHEN.test",
        "domain:xn--mnchen-3ya.test",
        "url:https://www.m\u00fcnchen\u3002test./\u00e4 b",
        "url:http://www.xn--mnchen-3ya.test/%C3%A4%20b",
    ],
)
def test_a_host_and_a_path_are_one_in_unicode_and_as_they_are_sent(
    tmp_path: Path, entry: str, there: str
) -> None:
    assert blocked(load(written(tmp_path / "l.txt", entry)), there)


@pytest.mark.slow
def test_a_long_list_is_read_line_by_line(tmp_path: Path) -> None:
    """100,000 hashes are 7 MB of text, and 0.8 MB in memory."""
    lines = [f"sha256:{sha(str(n))}" for n in range(100_000)]
    file = written(tmp_path / "l.txt", *lines)
    tracemalloc.start()
    found = load(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert blocked(found, data=b"99999") == "blocked content"
    assert peak < 4_000_000


def test_hashes_of_urls_are_found_however_they_were_written() -> None:
    assert {"http://a.test/b/", "http://a.test/b", "a.test/b/", "a.test/b"} <= spellings(
        "http://u@a.test/b/#f"
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://y.test/p.jpg",
        "http://y.test:80/p.jpg",
        "https://Y.TEST:443/p.jpg#top",
        "http://me@y.test/p.jpg",
    ],
)
def test_a_hashed_url_is_blocked_by_whatever_scheme_it_is_listed(tmp_path: Path, url: str) -> None:
    assert (
        blocked(load(written(tmp_path / "l.txt", f"url_md5:{md5('http://y.test/p.jpg')}")), url)
        == "blocked url"
    )
    assert (
        blocked(load(written(tmp_path / "m.txt", f"url_sha256:{sha('https://y.test/p.jpg')}")), url)
        == "blocked url"
    )
    assert blocked(load(written(tmp_path / "n.txt", f"url_sha256:{sha('https://y.test/q.jpg')}")), url) == ""


def test_a_folder_of_lists_in_all_formats(tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.csv").write_text(f"sha256,note\n{sha('one')},x\n")
    pq.write_table(pa.table({"md5": [md5("two"), None]}), folder / "b.parquet")
    (folder / "c.txt").write_text("domain:three.test\n")
    found = load(File(path=str(folder), digest="1"))
    assert [blocked(found, data=d) for d in (b"one", b"two", b"three")] == ["blocked content"] * 2 + [""]
    assert blocked(found, "http://three.test/") == "blocked domain"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("sha256:12", "line 2: wanted 64 hexadecimal digits, got '12'"),
        ("url_md5:zz", "line 2: wanted 32 hexadecimal digits, got 'zz'"),
        ("id:x", "line 2: wanted a line that begins with md5: or sha256: or url_md5: or url_sha256: or url: or "),
        ("#", "is empty: it would block nothing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list(tmp_path: Path, line: str, error: str) -> None:
    with pytest.raises(VlpipeError, match=error.replace(".", r"\.")):
        load(written(tmp_path / "l.txt", "# a list", line))


def test_a_blocked_url_is_not_asked_for_and_blocked_bytes_are_not_decoded(
    tmp_path: Path, threats: Any
) -> None:
    """threats: a server that counts who asks; `/bomb.png` would be too many pixels, were it looked at."""
    with urllib.request.urlopen(f"http://127.0.0.1:{threats.port}/bomb.png") as answer:
        bomb = answer.read()
    entries = (
        f"url_sha256:{sha('http://threat.test/ok.jpg')}",
        "url:http://threat.test/as-text",
        f"sha256:{sha(bomb)}",
    )
    blocklist = written(tmp_path / "l.txt", *entries)
    stage = LocalImages(list=ListFile(), ports={"threat.test": threats.port}, blocklist=blocklist)
    names = ("ok.jpg", "bomb.png", "gzipped", "moved", "as-text")
    urls = [f"http://threat.test/{name}" for name in names]
    rows = pa.table([list(names), urls, [[]] * len(names)], schema=LISTED)
    threats.asked.clear()
    out = run_map(stage, rows)
    assert out.table["id"].to_pylist() == ["gzipped"]
    assert [(r.id, r.kind, r.why, r.detail) for r in out.rejects] == [
        ("ok.jpg", "filtered", "blocked", "url"),
        ("bomb.png", "filtered", "blocked", "content"),
        ("moved", "filtered", "blocked", "url"),  # it leads to one
        ("as-text", "filtered", "blocked", "url"),
    ]
    assert threats.asked["/as-text"] == threats.asked["/ok.jpg"] == 0  # no request, by no redirect either


def test_what_was_fetched_before_is_dropped_without_a_fetch(tmp_path: Path) -> None:
    images = [b"fine", b"bad", b"no image at all", None]
    urls = ["http://a.test/1", "http://b.test/2", "http://b.test/3", "http://b.test/4"]
    final = ["http://a.test/1", "http://b.test/2", "http://evil.test/3", None]
    rows = pa.table({"id": ["1", "2", "3", "4"], "url": urls, "final_url": final, "image": images})
    stage = DropBlocked(blocklist=written(tmp_path / "l.txt", f"md5:{md5('bad')}", "domain:evil.test"))
    out = run_map(stage, rows)
    assert out.table["id"].to_pylist() == ["1", "4"]
    assert [(r.id, r.why, r.detail) for r in out.rejects] == [
        ("2", "blocked", "content"),
        ("3", "blocked", "domain"),
    ]
